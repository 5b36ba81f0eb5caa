"""CoPE against the sheet's numbers, a dense reference that builds e[p], and its limiting cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.cope import interpolate, suffix_sum
from tests.golden_files import golden
from tests.methods.from_input import check_values_and_gradients, draw_inputs, run

GOLDEN = golden('cope')
B, N, K, H, D, L = 2, 4, 2, 8, 12, 37
TOLERANCE = 1e-5  # float32 sums of 37 terms in another order, times the slopes of a table of size 1
OPTIONS = ['', 'scale_pos=False', "gates='separate'", "gates='value'"]


def build(options='', npos=6, *, seed=0, **context):
    arguments = f'npos={npos}' + (f', {options}' if options else '')
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D) | context
    encoding = pj.make(f'cope({arguments})', causal=True, rngs=nnx.Rngs(seed), **sizes)
    cope = encoding.parts[0]
    cope.table[...] = jax.random.normal(jax.random.key(seed + 1), cope.table.shape)
    return encoding


INPUTS = draw_inputs((B, N, K, H, D), L)


def reference(cope, q, k, v, x, visible):
    """The definition, with e[p_ij] of shape [T, S, H] built for every head; `visible` [B, T, S]."""
    table, npos, root = cope.table[...], cope.table.shape[1], H**0.5
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    gate_key = {
        'key': lambda: k,
        'value': lambda: v,
        'separate': lambda: jnp.einsum('bsd,dkh->bskh', x, cope.key_kernel[...]),
    }[cope.gates]()
    s = jnp.einsum('bihd,bjhd->bhij', q, repeat(k))
    gates = (
        jax.nn.sigmoid(jnp.einsum('bihd,bjhd->bhij', q, repeat(gate_key)) / root) * visible[:, None]
    )
    p = gates @ jnp.tril(jnp.ones(gates.shape[-1:] * 2))  # the sum of the gates from j on
    p = jnp.minimum(p, npos - 1)
    low = jax.lax.stop_gradient(jnp.floor(p))
    high = jax.lax.stop_gradient(jnp.ceil(p))
    e = lambda place: table.T[place.astype(int)]
    part = (p - low)[..., None]
    bias = jnp.einsum('bihd,bhijd->bhij', q, (1 - part) * e(low) + part * e(high))
    logits = (s + bias) / root if cope.scale != 1.0 else s / root + bias
    weights = jax.nn.softmax(jnp.where(visible[:, None], logits, -jnp.inf), axis=-1)
    return jnp.einsum('bhij,bjhd->bihd', weights, repeat(v))


@pytest.mark.parametrize('case', ['npos_4', 'npos_2'])
def test_sheet(case):
    golden = GOLDEN[case]
    table = jnp.array(golden['table'])
    spec, npos = f'cope(npos={table.shape[1]})', jnp.arange(table.shape[1], dtype=jnp.float32)
    encoding = pj.make(spec, causal=True, heads=1, head_dim=1, model_dim=1)
    encoding.parts[0].table[...] = table
    q, k, v = jnp.ones((1, 4, 1, 1)), jnp.zeros((1, 4, 1, 1)), jnp.eye(4)[None, :, None]
    out = run(encoding, q, k, v, None, pj.Tokens.of(length=4))
    np.testing.assert_allclose(out[0, 3, 0], golden['probabilities'], atol=1e-6)
    positions = interpolate(npos[None, None, None], suffix_sum(jnp.full((1, 1, 1, 4), 0.5)))
    np.testing.assert_allclose(positions[0, 0, 0], golden['positions'], atol=1e-6)


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.full
def test_values_and_gradients_equal_reference(options):
    causal = jnp.tril(jnp.ones((B, L, L), bool))
    by_definition = lambda e, *a: reference(e.parts[0], *a, causal)
    check_values_and_gradients(build(options), INPUTS, by_definition, TOLERANCE)


def test_interpolation_has_no_gradient_where_clamped():
    z, p = jnp.array([[[[0.0, 10.0, 30.0]]]]), jnp.array([[[[0.25, 1.5, 2.0, 7.0]]]])
    d_z, d_p = jax.grad(lambda z, p: interpolate(z, p).sum(), argnums=(0, 1))(z, p)
    assert d_p[0, 0, 0].tolist() == [10.0, 20.0, 0.0, 0.0]
    assert d_z[0, 0, 0].tolist() == [0.75, 0.75, 2.5]


@pytest.mark.full_but_one
@pytest.mark.parametrize('length', [1, 32, 33, 100])
def test_suffix_sum(length):
    a = np.random.default_rng(0).random((3, length)).astype(np.float32)
    expected = np.cumsum(a[:, ::-1].astype(np.float64), 1)[:, ::-1]
    np.testing.assert_allclose(suffix_sum(jnp.array(a)), expected, rtol=1e-6)


def by_nope():
    return run(pj.make('nope()', causal=True), *INPUTS, pj.Tokens.of(length=L))


def test_zero_table_is_nope():
    encoding = build()
    encoding.parts[0].table[...] = 0 * encoding.parts[0].table[...]
    np.testing.assert_array_equal(run(encoding, *INPUTS, pj.Tokens.of(length=L)), by_nope())


def test_one_position_shifts_all_logits_alike():
    found = run(build(npos=1), *INPUTS, pj.Tokens.of(length=L))
    np.testing.assert_allclose(found, by_nope(), atol=1e-6)


def test_open_gates_count_like_a_relative_bias():
    """Gates of 1 give p_ij = i - j + 1; with npos = L + 1 nothing is clamped."""
    encoding, (q, k, v, x) = build("gates='value'", npos=L + 1), INPUTS
    q = jnp.abs(q) + 0.5
    # So q . v is far beyond where a float32 sigmoid is 1.
    v = jnp.full_like(v, 50.0).at[..., 0].set(v[..., 0] + 50.0)
    bias = jnp.einsum('bthd,dp->bhtp', q, encoding.parts[0].table[...]) / H**0.5
    distance = jnp.arange(L)[:, None] - jnp.arange(L)[None]
    places = jnp.broadcast_to(jnp.maximum(distance + 1, 0), (B, N, L, L))
    bias = jnp.take_along_axis(bias, places, axis=-1)
    logits = jnp.einsum('bihd,bjhd->bhij', q, jnp.repeat(k, N // K, 2)) / H**0.5 + bias
    weights = jax.nn.softmax(jnp.where(distance >= 0, logits, -jnp.inf), -1)
    expected = jnp.einsum('bhij,bjhd->bihd', weights, jnp.repeat(v, N // K, 2))
    found = run(encoding, q, k, v, x, pj.Tokens.of(length=L), block=8)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_bfloat16_counts_in_float32():
    """1000 gates of 1/2: a bfloat16 sum would stop at 256."""
    length, npos = 1000, 600
    encoding = pj.make(f'cope(npos={npos})', causal=True, heads=1, head_dim=1, model_dim=1)
    encoding.parts[0].table[...] = jnp.where(jnp.arange(npos) == 500, 20.0, 0.0)[None]
    q = jnp.ones((1, length, 1, 1), jnp.bfloat16)
    v = (jnp.arange(length) < 2).astype(jnp.bfloat16)[None, :, None, None]
    out = run(encoding, q, 0 * q, v, None, pj.Tokens.of(length=length))
    # Only j = 0 (p = 500) and j = 1 stand out.
    assert out.dtype == jnp.bfloat16 and float(out[0, -1, 0, 0]) > 0.99


def test_positions_do_not_matter_but_the_order_of_the_sweep_does():
    encoding, moved = build(), pj.Tokens.of(positions=jnp.arange(L)[None] * 3 + 100)
    found, expected = (run(encoding, *INPUTS, tok) for tok in (moved, pj.Tokens.of(length=L)))
    np.testing.assert_array_equal(found, expected)
    promises = encoding.parts[0].card.promises
    assert promises.relative and not promises.sweep_free


def test_gates_of_their_own_need_the_layer_input():
    with pytest.raises(ValueError, match='37 keys, input: none'):
        run(build("gates='separate'"), *INPUTS[:3], None, pj.Tokens.of(length=L))
