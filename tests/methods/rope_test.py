"""RoPE: the sheet's numbers, layouts, partial widths, precision, and that only differences of
positions matter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.rope import Rotary, rope, rope_frequencies, rotate
from tests.golden_files import golden_suite
from tests.refusals import refused

TO_HALF = lambda width: np.concatenate([np.arange(0, width, 2), np.arange(1, width, 2)])


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def turned(layout):
    x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    return lambda _: rope(x, jnp.array([[3]]), layout=layout).ravel()


def logits_of_ones(values):
    ones = jnp.ones((1, 1, 1, 64))
    return [(rope(ones, jnp.array([[s]])) * ones).sum() / 64 for s in values['ones_distance']]


test_golden = golden_suite('rope', atol=2e-6) | {
    'half': turned('half'),
    'interleaved': turned('interleaved'),
    'ones_logit': (logits_of_ones, {'atol': 6e-5}),
}


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_against_complex_multiplication_in_float64(layout):
    x, pos = draw(0, 2, 5, 3, 8), np.asarray([[0, 1, 7, 1000, 65536], [3, 3, 2, 1, 0]])
    wide = np.asarray(x, np.float64)
    a, b = (wide[..., :4], wide[..., 4:]) if layout == 'half' else (wide[..., ::2], wide[..., 1::2])
    turned = (a + 1j * b) * np.exp(1j * pos[:, :, None, None] * rope_frequencies(8, 10000.0))
    expected = np.concatenate([turned.real, turned.imag], -1)
    out = np.asarray(rope(x, jnp.asarray(pos), layout=layout))
    out = out if layout == 'half' else out[..., TO_HALF(8)]
    np.testing.assert_allclose(out, expected, atol=2e-6)


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_partial_rotates_leading_features_with_their_own_exponent(layout):
    x, pos = draw(0, 1, 4, 2, 12), jnp.arange(4)[None]
    out = pj.make(f'rope(partial=0.5, layout="{layout}")', head_dim=12).rotate(x, pos)
    np.testing.assert_array_equal(out[..., 6:], x[..., 6:])
    np.testing.assert_allclose(out[..., :6], rope(x[..., :6], pos, layout=layout), atol=1e-6)


@pytest.mark.parametrize('offset', [1, 1000, 10**6, 2**31 - 100])
def test_a_constant_added_to_all_positions_changes_nothing(offset):
    arrays, encoding = draw(0, 3, 1, 9, 2, 64), pj.make('rope()', head_dim=64, causal=True)

    @jax.jit
    def out(tok):
        return pj.attend(encoding, *encoding.project(*arrays, tok, tok), applied=pj.TOKEN_STAGE)

    at = lambda offset: out(pj.Tokens.of(positions=np.arange(9)[None] + offset))
    np.testing.assert_allclose(at(offset), at(0), atol=5e-6)


def test_temperature_multiplies_both_sides():
    x = draw(0, 1, 3, 2, 8)
    np.testing.assert_allclose(rotate(x, jnp.zeros((1, 3, 1, 4)), scale=1.5), 1.5 * x, rtol=1e-6)


@pytest.mark.full
def test_gradients_are_the_inverse_rotation_and_reach_the_angles():
    x, g, pos = draw(0, 1, 3, 2, 8), draw(1, 1, 3, 2, 8), jnp.arange(3)[None]
    _, pull = jax.vjp(lambda x: rope(x, pos), x)
    np.testing.assert_allclose(pull(g)[0], rope(g, -pos), atol=1e-6)
    angles = draw(2, 1, 3, 1, 4)
    f = lambda a: (rotate(x, a) * g).sum()
    step = draw(3, 1, 3, 1, 4) * 1e-2
    np.testing.assert_allclose(
        (jax.grad(f)(angles) * step).sum(), (f(angles + step) - f(angles - step)) / 2, rtol=1e-3
    )


def rotated(*shape, pos=(1, 2)):
    return lambda: Rotary(head_dim=8).rotate(jnp.ones(shape), jnp.zeros(pos))


test_wrong_arrays = refused() | {
    'head_dim=8.*width 6': rotated(1, 2, 1, 6),
    '2 components': rotated(1, 2, 1, 8, pos=(1, 2, 2)),
    '10 features.*only 8': lambda: rotate(jnp.ones((1, 8)), jnp.ones((1, 5))),
    "did you mean 'half'": lambda: rotate(jnp.ones((1, 8)), jnp.ones((1, 4)), layout='hal'),
}
