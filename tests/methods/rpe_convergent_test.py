"""Convergent biases: the two types by hand, the series of every kernel, and what a divergent one
does to far keys.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.alibi import alibi_bias, alibi_slopes
from posenc_jax.methods.rpe_convergent import DIVERGENT, KERNELS, rpe_convergent_bias
from tests.golden_files import golden_suite

N = 4


def make(arguments='', heads=N, **options):
    return pj.make(f'rpe_convergent({arguments})', heads=heads, **options)


def decay(kernel, slope, distance):
    q_pos, k_pos = jnp.asarray(distance)[None], jnp.zeros((1, 1), int)
    return rpe_convergent_bias(kernel, jnp.array([slope]), q_pos, k_pos)[0, 0, :, 0]


def first_four(kernel):
    return lambda values: decay(kernel, values['slope'], np.arange(4))


def series(_):
    """The sum of type 1: the terms 1 / d^2 behind the first N have the sum 1 / N."""
    total = np.exp(np.asarray(decay('type1', 1.0, np.arange(200_000)), np.float64)).sum()
    return total + 1 / 200_000


test_golden = golden_suite('rpe_convergent', rtol=1e-6, atol=1e-7) | {
    'type1': first_four('type1'),
    'type2': first_four('type2'),
    'sum_of_type1': (series, {'rtol': 1e-7}),
}


EXPECTED = {  # at y = 8, written without r
    'type1': 1 / 65, 'type2': np.exp(-np.log(11) ** 2), 'linear': np.exp(-8), 'square': np.exp(-64),
    'root': np.exp(-8**0.5),
    'half_three_quarters': np.exp(-0.5 * 8**0.75), 'five_quarters': np.exp(-(8**1.25)),
    'harmonic': 1 / 9,
    'log_over_square': (1 + np.log(9)) / 81, 'log_harmonic': 1 / (11 * np.log(11)), 'fourth': 0.0,
}  # fmt: skip


@pytest.mark.parametrize('kernel', KERNELS)
def test_every_kernel_by_its_exponential(kernel):
    np.testing.assert_allclose(np.exp(decay(kernel, 0.5, [16])[0]), EXPECTED[kernel], rtol=2e-5)


@pytest.mark.parametrize('kernel', KERNELS)
def test_series_converge_but_for_two(kernel):
    """Blocks of doubled width (Cauchy's condensation): their sums fall off geometrically, or the
    series diverges.
    """
    weights = np.exp(np.asarray(decay(kernel, 1.0, np.arange(1 << 18)), np.float64))
    blocks = [weights[1 << n : 2 << n].sum() for n in range(8, 18)]
    # log_harmonic adds 1 / n to the sum at the n-th doubling, as the harmonic series does.
    assert (kernel in DIVERGENT) == (blocks[-1] > 0.35 * blocks[0])
    assert kernel not in DIVERGENT or blocks[-1] * 18 > 0.9 * blocks[0] * 9


def test_the_linear_kernel_is_alibi():
    pos = jnp.arange(30)[None]
    expected = alibi_bias(jnp.asarray(alibi_slopes(N)), pos, pos)
    np.testing.assert_array_equal(make("kernel='linear'").bias(pos, pos), expected)


@pytest.mark.parametrize('kernel', KERNELS)
def test_symmetric_falling_and_the_same_at_every_shift(kernel):
    pos = jnp.arange(40)[None]
    bias = np.asarray(make(f'kernel={kernel!r}').bias(pos, pos)[0])
    np.testing.assert_array_equal(bias, np.swapaxes(bias, 1, 2))
    assert (np.diff(bias[:, 0]) < 0).all()
    np.testing.assert_array_equal(make(f'kernel={kernel!r}').bias(pos + 5000, pos + 5000)[0], bias)


@pytest.mark.parametrize('kernel', ['type1', 'type2', 'harmonic'])
def test_far_keys_take_over_only_where_the_series_diverges(kernel):
    """The claim: with equal content, what the trained window holds of a row goes to a limit, or to
    nothing.
    """
    weights = np.exp(np.asarray(decay(kernel, 0.25, np.arange(200_000)), np.float64))
    share = weights[:64].sum() / np.cumsum(weights)
    grown = share[1023] / share[-1]
    assert grown > 1.5 if kernel in DIVERGENT else grown < 1.02, grown


def test_slopes_and_encoders():
    given = make(f'slopes={tuple(map(float, range(1, N + 1)))}')
    np.testing.assert_array_equal(given.slopes[...], np.arange(1, N + 1))
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 9, N, 8)) for i in range(3))
    tok, turned = pj.Tokens.of(length=9), lambda a: a[:, ::-1]
    run = lambda *arrays: pj.attend(make(causal=False), *arrays, tok, tok)
    np.testing.assert_allclose(run(*map(turned, (q, k, v))), turned(run(q, k, v)), atol=1e-6)
