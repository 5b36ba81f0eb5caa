"""TAPA: the sheet's logits and powers of the distance, an explicit reference, and what a pair
without phase means.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.methods.tapa import tapa_distance
from tests.golden_files import golden_suite

N, K, H, L = 4, 2, 8, 12


def draw(length=L):
    """Queries and keys, heads first."""
    shape = lambda heads: (2, heads, length, H)
    return [jax.random.normal(jax.random.key(i), shape(heads)) for i, heads in enumerate((N, K))]


def logits(spec, q, k, pos=None, **context):
    part = pj.make(spec, head_dim=q.shape[-1], **context)
    tok = pj.Tokens.of(positions=jnp.arange(q.shape[2])[None] if pos is None else pos)
    return np.asarray(pair_logits(part, q, k, tok, tok)[0])


def golden_logits(values):
    """The logits of earlier keys; later keys at the same distances have the same."""
    rows = jnp.array([1.0, 0.0, 1.0, 0.0]), jnp.array([2.0, 0.0, 0.25, 0.0])
    q, k = (jnp.zeros((1, 1, 17, 4)) + row for row in rows)
    s = logits(f'tapa(theta=0.5, alpha={values["alpha"]})', q, k)[0, 0]
    places = 16 - np.array(values['distance'])
    np.testing.assert_allclose(s[places, 16], values['logit'], atol=1e-6)
    return s[16, places]


def powers(values):
    return tapa_distance(jnp.array([[0]]), jnp.array([values['distance']]), values['alpha'])[0, 0]


test_golden = golden_suite('tapa') | {
    'logits.logit': (golden_logits, {'atol': 1e-6}),
    'powers.power': (powers, {'atol': 6e-4}),  # the sheet's digits
}


@pytest.mark.parametrize('theta, size', [(0.5, 4), (0.25, 2), (0.875, 7)])
def test_equals_the_formula(theta, size):
    q, k = draw()
    pos = jnp.cumsum(jax.random.randint(jax.random.key(5), (2, L), 0, 40), axis=1)
    s = logits(f'tapa(theta={theta}, alpha=0.3)', q, k, pos)
    q, k = (np.asarray(a, np.float64) for a in (q, np.repeat(k, N // K, axis=1)))
    product = lambda cut: np.einsum('bnih,bnjh->bnij', q[..., cut], k[..., cut])
    distance = np.abs(np.subtract(pos[:, None, :, None], pos[:, None, None, :], dtype=np.float64))
    turns = distance**0.3 * product(slice(size, None)) / (H - size) ** 0.5
    expected = product(slice(size)) / size**0.5 * np.cos(2 * np.pi * turns)
    np.testing.assert_allclose(s, expected, atol=1e-4)  # up to 25 turns in float32


def test_without_a_phase_it_is_nope_on_the_amplitude():
    q, k = draw()
    s = logits('tapa()', q.at[..., 4:].set(0.0), k)
    np.testing.assert_array_equal(s, logits('nope()', q[..., :4], k[..., :4]))


@pytest.mark.full
def test_pairs_without_a_phase_interact_alike_at_any_distance():
    """The paper's claim that far tokens keep their interaction, and that rotary positions bias it
    by the distance.
    """
    q, k = draw(2)
    q, k = q.at[..., 4:6].set(0.0), k.at[..., 6:].set(0.0)  # q_P and k_P orthogonal
    far = jnp.array([[0, 1_000_000]])
    alike = logits('tapa()', q, k, far)
    np.testing.assert_allclose(alike, logits('tapa()', q, k), atol=1e-6)
    near = np.asarray(scaled_dot_product(q, k))
    turn = lambda a: pj.make('rope()', head_dim=H).rotate(a.swapaxes(1, 2), far).swapaxes(1, 2)
    assert np.abs(np.asarray(scaled_dot_product(turn(q), turn(k))) - near).max() > 0.1


def test_distances_of_fractional_positions_have_finite_gradients():
    def total(pos):
        return tapa_distance(pos, pos, 0.5).sum()

    gradient = jax.grad(total)(jnp.array([[0.0, 0.25, 0.25]]))
    # Two pairs 0.25 apart, each way 0.5 / sqrt(0.25).
    np.testing.assert_allclose(gradient, [[-4.0, 2.0, 2.0]], rtol=1e-6)


def test_a_phase_is_a_factor_of_the_queries_that_make_phases():
    q, k = draw()
    turned = logits('tapa()', q.at[..., 4:].multiply(0.25), k)
    np.testing.assert_allclose(logits('tapa(phase=0.25)', q, k), turned, atol=2e-5)
