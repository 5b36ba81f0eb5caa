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
from posenc_jax.methods.tapa import tapa_distance, tapa_logits
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('tapa')
N, K, H, L = 4, 2, 8, 12


def draw(length=L, width=H, dtype=jnp.float32):
    """Queries and keys, heads first."""
    return [
        jax.random.normal(jax.random.key(i), (2, heads, length, width), dtype)
        for i, heads in enumerate((N, K))
    ]


def logits(spec, q, k, pos=None, **context):
    part = pj.make(spec, head_dim=q.shape[-1], **context)
    tok = pj.Tokens.of(positions=jnp.arange(q.shape[2])[None] if pos is None else pos)
    return np.asarray(pair_logits(part, q, k, tok, tok)[0])


def test_golden_logits():
    golden = GOLDEN['logits']
    q, k = (
        jnp.zeros((1, 1, 17, 4)) + jnp.array(row)
        for row in ([1.0, 0.0, 1.0, 0.0], [2.0, 0.0, 0.25, 0.0])
    )
    s = logits(f'tapa(theta=0.5, alpha={golden["alpha"]})', q, k)[0, 0]
    for distance, logit in zip(golden['distance'], golden['logit']):
        np.testing.assert_allclose([s[16, 16 - distance], s[16 - distance, 16]], logit, atol=1e-6)


def test_golden_powers_of_the_distance():
    golden = GOLDEN['powers']
    powers = tapa_distance(jnp.array([[0]]), jnp.array([golden['distance']]), golden['alpha'])
    np.testing.assert_allclose(powers[0, 0], golden['power'], atol=6e-4)  # the sheet's digits


@pytest.mark.parametrize('theta, size', [(0.5, 4), (0.25, 2), (0.875, 7)])
def test_equals_the_formula(theta, size):
    q, k = draw()
    pos = jnp.cumsum(jax.random.randint(jax.random.key(5), (2, L), 0, 40), axis=1)
    s = logits(f'tapa(theta={theta}, alpha=0.3)', q, k, pos)
    q, k = (np.asarray(a, np.float64) for a in (q, np.repeat(k, N // K, axis=1)))
    product = lambda cut: np.einsum('bnih,bnjh->bnij', q[..., cut], k[..., cut])
    distance = np.abs(np.asarray(pos)[:, None, :, None] - np.asarray(pos)[:, None, None, :]).astype(
        np.float64
    )
    turns = distance**0.3 * product(slice(size, None)) / (H - size) ** 0.5
    amplitude = product(slice(size)) / size**0.5
    np.testing.assert_allclose(
        s, amplitude * np.cos(2 * np.pi * turns), atol=1e-4
    )  # up to 25 turns in float32


def test_the_amplitude_bounds_the_logit():
    q, k = draw()
    bound = jnp.abs(tapa_logits(q, k, jnp.zeros((1, L, L)), 4))
    s = np.abs(logits('tapa()', q, k))
    assert (s <= bound + 1e-6).all() and (s < 0.5 * bound).any()


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


def test_both_directions_are_alike():
    q, k = draw()
    pos = jnp.arange(L)[None]
    np.testing.assert_allclose(logits('tapa()', q, k, pos), logits('tapa()', q, k, -pos), atol=1e-6)
    pj.make('tapa()', causal=False, head_dim=H)


def test_far_distances_stay_close():
    """With alpha = 0.1 a distance a thousand times as long turns the phase less than twice as
    far.
    """
    at = lambda distance: float(
        tapa_distance(jnp.array([[distance]]), jnp.array([[0]]), 0.1)[0, 0, 0]
    )
    assert at(1_000_000) / at(1000) == pytest.approx(1000**0.1, rel=1e-6) and 1000**0.1 < 2


def test_distances_of_fractional_positions_have_finite_gradients():
    def total(pos):
        return tapa_distance(pos, pos, 0.5).sum()

    gradient = jax.grad(total)(jnp.array([[0.0, 0.25, 0.25]]))
    np.testing.assert_allclose(
        gradient, [[-4.0, 2.0, 2.0]], rtol=1e-6
    )  # two pairs 0.25 apart, each way 0.5 / sqrt(0.25)


def test_low_precision_phases_are_float32():
    q, k = draw(dtype=jnp.bfloat16)
    s = logits('tapa()', q, k)
    assert s.dtype == np.float32
    np.testing.assert_allclose(
        s, logits('tapa()', *(a.astype(jnp.float32) for a in (q, k))), atol=2e-5
    )


def test_a_phase_is_a_factor_of_the_queries_that_make_phases():
    q, k = draw()
    turned = logits('tapa()', q.at[..., 4:].multiply(0.25), k)
    np.testing.assert_allclose(logits('tapa(phase=0.25)', q, k), turned, atol=2e-5)


@pytest.mark.parametrize(
    'spec, width, message',
    [
        (
            'tapa(theta=0.3)',
            8,
            '2.4 features, expected a whole number from 1 to 7; the nearest theta is 0.25',
        ),
        ('tapa(theta=0.01)', 8, 'the nearest theta is 0.125'),
        ('tapa(theta=1.0)', 8, r'theta must be positive and below 1, got 1.0'),
        ('tapa(alpha=0.0)', 8, 'alpha must be positive, got 0.0'),
        ('tapa(phase=0.0)', 8, 'phase must be positive, got 0.0'),
        ('tapa()', 1, 'head_dim must be at least 2, got 1'),
        ('tapa() | xpos()', 8, 'tapa and xpos both need'),
    ],
)
def test_errors(spec, width, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, head_dim=width)


def test_several_position_components_are_refused():
    q, k = draw(2)
    with pytest.raises(ValueError, match='one position per token'):
        logits('tapa()', q, k, jnp.zeros((1, 2, 2)))
