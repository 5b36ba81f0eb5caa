"""CARoPE: the sheet's rates and phases, RoPE at the start, an explicit reference, and which tokens
a logit depends on.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.carope import carope_increments, carope_log_rate, carope_match, carope_start
from tests.golden_files import golden
from tests.methods.from_input import check_values_and_gradients, draw_inputs, run
from tests.methods.pair_logits import logits
from tests.refusals import refused

GOLDEN = golden('carope')
B, N, K, H, D, L = 2, 4, 2, 8, 12, 21
TOLERANCE = 2e-5  # phases of some 20 rad in float32


def build(options='', *, moved=True, **context):
    """The encoding with its mask; `moved` off the start at which it is RoPE."""
    sizes = dict(heads=N, kv_heads=K, head_dim=H, model_dim=D) | context
    encoding = pj.make(f'carope({options})', causal=True, **sizes)
    if moved:
        kernel = encoding.parts[0].kernel
        kernel[...] = 0.5 * jax.random.normal(jax.random.key(1), kernel.shape)
    return encoding


INPUTS = draw_inputs((B, N, K, H, D), L)


def reference(part, q, k, v, x):
    """The definition: phases of every token as complex numbers, one causal document a row."""
    a = x @ part.kernel[...] + (0.0 if part.bias is None else part.bias[...])
    rate = 1.0 / (1.0 + jnp.log1p(jnp.exp(a)))
    phi = jnp.cumsum(rate[..., None] ** jnp.arange(H // 2), axis=1)
    if part.layout == 'half':
        planes = lambda a: a[..., : H // 2] + 1j * a[..., H // 2 :]
    else:
        planes = lambda a: a[..., ::2] + 1j * a[..., 1::2]
    turned = lambda a: planes(a) * jnp.exp(1j * phi)
    repeat = lambda a: jnp.repeat(a, N // K, axis=2)
    s = jnp.einsum('bihf,bjhf->bhij', turned(q), turned(repeat(k)).conj()).real / H**0.5
    w = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(s.shape[2:], bool)), s, -jnp.inf), axis=-1)
    return jnp.einsum('bhij,bjhd->bihd', w, repeat(v))


def test_golden_start():
    golden = GOLDEN['start']
    for head_dim, bias, rate in zip(golden['head_dim'], golden['bias'], golden['rate']):
        assert carope_start(head_dim, 1e4) == pytest.approx(bias, abs=1e-6)
        part = pj.make('carope()', heads=2, head_dim=head_dim, model_dim=4)
        np.testing.assert_allclose(part.bias[...], bias, atol=1e-6)
        np.testing.assert_allclose(jnp.exp(carope_log_rate(part.bias[...])), rate, atol=1e-6)


def test_golden_phases_without_bias():
    rate = GOLDEN['rate_at_zero']
    part = pj.make('carope(bias=False)', heads=1, head_dim=4, model_dim=3)
    a, tok = jnp.ones((1, 5, 1, 4)), pj.Tokens.of(length=5)
    *_, tk = part.project(a, a, a, tok, tok, jnp.ones((1, 5, 3)))
    phases = jnp.cumsum(carope_increments(tk.feats['carope'][0, :, 0], 2), axis=0)
    m = np.arange(1, 6)
    np.testing.assert_allclose(phases, np.stack([m, rate * m], axis=-1), atol=5e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_starts_as_rope(layout):
    q, k, _, x = INPUTS
    repeated, tok = jnp.repeat(k, N // K, axis=2), pj.Tokens.of(length=L)
    rope = pj.make(f'rope(layout="{layout}")', head_dim=H)
    q2, k2, *_ = rope.project(q, repeated, repeated, tok, tok)
    expected = jnp.einsum('bihd,bjhd->bhij', q2, k2) / H**0.5
    s = logits(build(f'layout="{layout}"', moved=False), q, k, None, x)
    np.testing.assert_allclose(np.tril(s), np.tril(expected), atol=TOLERANCE)


@pytest.mark.parametrize('options', ['', 'bias=False', 'layout="interleaved"'])
@pytest.mark.full
def test_values_and_gradients_equal_reference(options):
    by_definition = lambda e, *a: reference(e.parts[0], *a)
    check_values_and_gradients(build(options), INPUTS, by_definition, TOLERANCE)


def test_a_logit_depends_on_the_tokens_from_after_the_key_to_the_query():
    encoding, (q, k, _, x), token = build(), INPUTS, 9
    after, before = (logits(encoding, q, k, None, x) for x in (x.at[:, token].multiply(-3.0), x))
    i, j = np.mgrid[:L, :L]
    between = (j < token) & (token <= i)
    changed = np.abs(after - before).max(axis=(0, 1))
    assert changed[(j <= i) & ~between].max() < TOLERANCE
    assert changed[between].max() > 0.1


def test_increments_are_bounded_whatever_the_tokens_are():
    """The paper's bounded transformation: between 0 and one radian a token, the whole radian in the
    first plane.
    """
    log_rate = carope_log_rate(jnp.array([-1e4, -5.0, 0.0, 5.0, 1e4]))
    increments = np.asarray(carope_increments(log_rate, 4))
    assert np.isfinite(increments).all() and (increments >= 0).all() and (increments <= 1).all()
    np.testing.assert_array_equal(increments[:, 0], 1.0)
    assert (np.diff(increments[1:4], axis=1) < 0).all()


def test_padding_adds_no_phase():
    """Also between the tokens of a document, where neither the mask nor a common offset would hide
    it.
    """
    encoding, (q, k, v, x) = build(), INPUTS
    valid = jnp.arange(L)[None] % 3 != 1
    kept = np.flatnonzero(valid[0])
    out = run(encoding, q, k, v, x, pj.Tokens.of(valid=valid), block=(8, 5))
    expected = run(encoding, *(a[:, kept] for a in (q, k, v, x)), pj.Tokens.of(length=len(kept)))
    np.testing.assert_allclose(out[:, kept], expected, atol=TOLERANCE)


def test_a_window_does_not_change_the_phases_inside_it():
    """Blocks out of the window are skipped, and nothing is missing."""
    tok, windowed = pj.Tokens.of(length=L), pj.chain(build(), pj.make('window(size=4)'))
    expected = run(windowed, *INPUTS, tok, implementation='dense')
    found = run(windowed, *INPUTS, tok, block=(4, 4))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_phases_keep_their_digits_over_many_blocks():
    """After 100,096 tokens the carry is as exact as the float32 rate allows; a plain sum is off ten
    times as much.
    """
    blocks, size, planes = 391, 256, 4
    rate = carope_increments(jnp.log(jnp.float32(GOLDEN['start']['rate'][0])), planes)
    increments = jnp.broadcast_to(rate, (1, 1, size, planes))
    q, k = jnp.zeros((1, 1, 1, 2 * planes)), jnp.zeros((1, 1, size, 2 * planes))
    last = jnp.eye(size)[None, :, -1:]
    block = lambda carry, _: (carope_match(q, k, increments, last, carry)[1], None)
    carry = jax.lax.scan(block, jnp.zeros((1, 1, 1, planes)), None, length=blocks)[0][0, 0, 0]
    assert np.abs(carry).max() <= np.pi + 1e-3
    total = blocks * size * np.asarray(rate, np.float64)
    error = np.angle(np.exp(1j * (np.asarray(carry, np.float64) - total)))
    assert (np.abs(error) < 3e-7 * total).all(), error


test_wrong_calls = refused() | {
    'of one token per key: 21 keys, input: none': lambda: run(
        build(), *INPUTS[:3], None, pj.Tokens.of(length=L)
    ),
    'of one token per key: 21 keys, input: 3 tokens': lambda: run(
        build(), *INPUTS[:3], INPUTS[3][:, :3], pj.Tokens.of(length=L)
    ),
}
