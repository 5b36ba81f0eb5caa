"""Transformer-XL: closed forms, an explicit reference that builds R_d, limits, far positions,
decoding in the model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.transformer_xl import transformer_xl_frequencies, transformer_xl_table
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
from tests.methods.from_input import check_values_and_gradients, draw_inputs, run

GOLDEN = golden('transformer_xl')
B, N, K, H, D, L = 2, 4, 2, 8, 12, 21
TOLERANCE = 2e-5  # float32 inner products of width 12


def build(options='', *, std=0.5, **context):
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D) | context
    arguments = ', '.join(filter(None, [options, f'std={std}']))
    return pj.make(f'transformer_xl({arguments})', causal=True, rngs=nnx.Rngs(0), **sizes)


def inputs(length=L, seed=3):
    return draw_inputs((B, N, K, H, D), length, seed)


def reference(part, q, k, v, x):
    """The definition, with R_d of shape [T, S, D] in float64 before it is used."""
    distance = np.arange(L)[:, None] - np.arange(L)[None]
    if part.clamp_len is not None:
        distance = np.minimum(distance, part.clamp_len)
    angle = distance[..., None] * part.base ** (-2 * np.arange(D // 2) / D)
    table = jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], -1), jnp.float32)
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    r = jnp.einsum('ijd,dnh->ijnh', table, part.kernel[...])
    s = jnp.einsum('bihd,bjhd->bhij', q + part.u[...], repeat(k)) + jnp.einsum(
        'bihd,ijhd->bhij', q + part.v[...], r
    )
    w = jax.nn.softmax(jnp.where(distance >= 0, s / H**0.5, -jnp.inf), axis=-1)
    return jnp.einsum('bhij,bjhd->bihd', w, repeat(v))


def test_golden_table():
    golden = GOLDEN['table']
    table = transformer_xl_table(jnp.array([golden['distance']]), transformer_xl_frequencies(4))
    np.testing.assert_allclose(table[0], golden['R'], atol=1e-7)


@pytest.mark.parametrize('block', [4, 1, 3])
@pytest.mark.parametrize('shift', [0, 1_000_000])
def test_golden_row(block, shift):
    encoding = build(heads=1, kv_heads=1, head_dim=1, model_dim=2)
    part = encoding.parts[0]
    part.u[...], part.v[...], part.kernel[...] = (
        jnp.full((1, 1), 5.0),
        jnp.ones((1, 1)),
        jnp.array([1.0, 0.0]).reshape(2, 1, 1),
    )
    zero, tok = jnp.zeros((1, 4, 1, 1)), pj.Tokens.of(positions=jnp.arange(4)[None] + shift)
    out = run(
        encoding, zero, zero, jnp.eye(4)[None, :, None], jnp.zeros((1, 4, 2)), tok, block=block
    )
    np.testing.assert_allclose(out[0, 3, 0], GOLDEN['probabilities'], atol=1e-6)


@pytest.mark.parametrize('options', ['clamp_len=6', 'clamp_len=0', 'base=50.0'])
@pytest.mark.full
def test_values_and_gradients_equal_reference(options):
    check_values_and_gradients(
        build(options), inputs(), lambda e, *a: reference(e.parts[0], *a), TOLERANCE
    )


def test_zeros_are_plain_attention():
    arrays, tok = inputs(), pj.Tokens.of(length=L)
    out = run(build(std=0.0), *arrays, tok, block=8)
    np.testing.assert_allclose(
        out, run(pj.make('nope()', causal=True), *arrays, tok, block=8), atol=2e-6
    )


def test_without_the_map_only_a_bias_of_the_content_is_left():
    """W_r = 0: v does nothing, and u adds to every query."""
    encoding, (q, *others), tok = build(), inputs(), pj.Tokens.of(length=L)
    part = encoding.parts[0]
    part.kernel[...] = 0 * part.kernel[...]
    expected = run(pj.make('nope()', causal=True), q + part.u[...], *others, tok)
    np.testing.assert_allclose(run(encoding, q, *others, tok), expected, atol=2e-6)


@pytest.mark.parametrize('options', ['', 'clamp_len=6'])
def test_only_distances_count_also_far_out(options):
    encoding, arrays = build(options), inputs()
    near = run(encoding, *arrays, pj.Tokens.of(length=L))
    far = run(encoding, *arrays, pj.Tokens.of(positions=jnp.arange(L)[None] + 50_000_000))
    np.testing.assert_allclose(far, near, atol=TOLERANCE)


def test_clamped_distances_are_alike():
    """Two keys beyond the clamp, one vector: one weight; without the clamp two."""
    q, k, v, x = inputs()
    k, v = (
        jnp.broadcast_to(k[:, :1], k.shape),
        jnp.broadcast_to(jnp.eye(L)[None, :, None], (B, L, K, L)),
    )
    last = lambda options: np.asarray(run(build(options), q, k, v, x, pj.Tokens.of(length=L)))[
        :, -1
    ]
    clamped, free = last('clamp_len=6'), last('')
    np.testing.assert_allclose(clamped[..., : L - 7], clamped[..., :1].repeat(L - 7, -1), rtol=1e-5)
    assert np.ptp(free[..., : L - 7], axis=-1).max() > 0.01


def test_positions_of_its_own_for_every_row():
    encoding, arrays = build(), inputs()
    shifts = jnp.array([[0], [40]])
    out = run(encoding, *arrays, pj.Tokens.of(positions=jnp.arange(L)[None] + shifts), block=(8, 5))
    np.testing.assert_allclose(out, run(encoding, *arrays, pj.Tokens.of(length=L)), atol=TOLERANCE)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('clamp_len=-1', 'clamp_len must be at least 0.*got -1'),
        ('base=0.0', 'base must be positive, got 0.0'),
        ('std=-0.1', 'std must be at least 0, got -0.1'),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(SpecError, match=message):
        pj.make(f'transformer_xl({options})', heads=N, head_dim=H, model_dim=D)
    with pytest.raises(SpecError, match='even model_dim, got 7'):
        pj.make('transformer_xl()', heads=N, head_dim=H, model_dim=7)


def test_queries_of_another_number_of_heads():
    encoding, q = (
        pj.make('transformer_xl()', heads=2, head_dim=8, model_dim=8, rngs=nnx.Rngs(0)),
        jnp.ones((1, 3, 1, 8)),
    )
    tok = encoding.place(pj.Tokens.of(length=3))
    with pytest.raises(
        ValueError, match='transformer_xl has parameters of 2 heads, the queries have 1'
    ):
        encoding.project(q, q, q, tok, tok)
