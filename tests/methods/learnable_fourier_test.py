"""Learnable Fourier features: the network by hand, the kernel of the features, groups, and refused
arguments and positions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.features.coordinates import make_features
from posenc_jax.methods.learnable_fourier import (
    learnable_fourier_features,
    learnable_fourier_network,
)
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden, golden_suite
from tests.refusals import refused

GOLDEN = golden('learnable_fourier')['values']
D = 6
THIRD = np.pi / 3


def make(arguments='', width=D):
    return pj.make(f'learnable_fourier({arguments})', model_dim=width, rngs=nnx.Rngs(0))


def vectors(encoding, positions, width=D, valid=None):
    tok = pj.Tokens.of(positions=positions, valid=valid)
    return np.asarray(encoding.embed(jnp.zeros((tok.pos.shape[0], tok.length, width)), tok))


def waves(thirds):
    return jnp.array(thirds, jnp.float32) * THIRD


def products(a, b, w_r):
    feature = lambda pos: learnable_fourier_features(jnp.asarray(pos), w_r)
    return np.asarray((feature(a) * feature(b)).sum(-1))


def features_by_hand(golden):
    return learnable_fourier_features(jnp.array(golden['position']), waves(golden['thirds_of_pi']))


def vector_by_hand(golden):
    """The output of the network; the tanh form of the GELU would be off by 1.5e-4."""
    parameters = [jnp.array(golden[name]) for name in ('w1', 'b1', 'w2', 'b2')]
    return learnable_fourier_network(features_by_hand(golden), *parameters)


test_golden = golden_suite('learnable_fourier') | {
    'network.features': (features_by_hand, {'rtol': 1e-6}),
    'network.vector': (vector_by_hand, {'rtol': 3e-6}),
    'inner_product.product': (
        lambda golden: products(golden['a'], golden['b'], waves(golden['thirds_of_pi'])),
        {'atol': 1e-6},
    ),
}


@pytest.mark.full
def test_the_module_adds_the_network_of_its_variables():
    golden = GOLDEN['network']
    encoding = make('components=2, features=2, hidden=2', width=2)
    encoding.w_r[...] = waves(golden['thirds_of_pi'])
    for name in ('w1', 'b1', 'w2', 'b2'):
        getattr(encoding, name)[...] = jnp.array(golden[name])
    tok = pj.Tokens.of(positions=[[golden['position']] * 2], valid=[[True, False]])
    x = jnp.array([[[1.0, -1.0], [3.0, 5.0]]])
    out = encoding.embed(x, tok)
    np.testing.assert_allclose(out[0, 0], np.add([1, -1], golden['vector']), rtol=3e-6)
    np.testing.assert_array_equal(out[0, 1], x[0, 1])  # padding


@pytest.mark.full_but_one
@pytest.mark.parametrize('kind', ['whole', 'fractional'])
def test_features_have_one_norm_and_see_differences_only(kind):
    """Also far away, where a float32 product of position and frequency is off by 1e-2."""
    pos = jax.random.randint(jax.random.key(0), (2, 50, 3), -100, 100)
    shift = jnp.array([1_000_003, -77, 2_000_000])
    if kind == 'fractional':
        pos, shift = pos / 8, jnp.array([1000.0, -77.5, 0.125])  # exact in float32
    w_r = jax.random.normal(jax.random.key(1), (16, 3))
    a, b = pos
    np.testing.assert_allclose(products(a, a, w_r), GOLDEN['squared_norm'], rtol=1e-5)
    product = products(a, b, w_r)
    direct = np.cos(np.asarray(a - b, np.float64) @ np.asarray(w_r, np.float64).T).sum(-1) / 32
    np.testing.assert_allclose(product, direct, atol=2e-6)
    np.testing.assert_allclose(products(a + shift, b + shift, w_r), product, atol=2e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize('case', GOLDEN['kernel'])
def test_the_first_features_approximate_a_gaussian_of_the_distance(case):
    """A claim of the paper: the features start as a kernel of the L2 distance, of any direction."""
    encoding = make(f'components=2, features=40000, hidden=1, gamma={case["gamma"]}')
    w_r = encoding.w_r[...]
    assert np.std(w_r) == pytest.approx(1 / case['gamma'], rel=0.02)
    difference, origin = np.array(case['difference']), np.array([7, -3])
    # Five standard errors of a mean of 20000 cosines, halved.
    product = products(origin + difference, origin, w_r)
    np.testing.assert_allclose(product, case['product'], atol=5 * 0.5 * 0.71 / 20000**0.5)


@pytest.mark.full
def test_groups_are_independent_and_share_weights():
    two = make('components=4, groups=2, features=8, hidden=3')
    assert (two.w_r.shape, two.w2.shape) == ((4, 2), (D // 2, 3))
    here, moved, swapped = vectors(two, [[[1, 2, 3, 4], [1, 2, 9, 4], [3, 4, 1, 2]]])[0]
    np.testing.assert_array_equal(here[:3], moved[:3])
    assert np.abs(here[3:] - moved[3:]).max() > 1e-4
    np.testing.assert_allclose(here, np.roll(swapped, 3), rtol=1e-6)
    one = make('components=4, features=8, hidden=3')
    assert (one.w_r.shape, one.w2.shape) == ((4, 4), (D, 3))
    here, moved = vectors(one, [[[1, 2, 3, 4], [1, 2, 9, 4]]])[0]
    assert np.abs(here - moved).min() > 1e-6


@pytest.mark.full
def test_the_encoder_of_coordinates_is_the_same_function():
    sizes = 'components=4, groups=2, features=8, hidden=3'
    encoder = make_features(f'learnable_fourier({sizes}, width={D}, gamma=10.0)', nnx.Rngs(0))
    points = [[[1, 2, 3, 4], [5, 6, 7, 8]]]
    np.testing.assert_array_equal(encoder.encode(jnp.array(points)), vectors(make(sizes), points))


@pytest.mark.full
def test_one_component_with_and_without_an_axis():
    plain, with_axis = (vectors(make(), pos) for pos in ([[4, 0, 7]], [[[4], [0], [7]]]))
    np.testing.assert_array_equal(plain, with_axis)


@pytest.mark.full
def test_fractional_positions_have_gradients():
    encoding = make('components=2, features=8, hidden=3')
    out = lambda pos: encoding.embed(jnp.zeros((1, 2, D)), pj.Tokens.of(positions=pos))
    gradient = jax.grad(lambda pos: (out(pos) ** 2).sum())(jnp.array([[[0.5, 1.0], [2.0, 3.25]]]))
    assert np.isfinite(gradient).all() and np.abs(gradient).min() > 0


test_wrong_calls = refused() | {
    r'needs positions \[B, L, 2\], got \(1, 2\)': lambda: vectors(make('components=2'), [[0, 1]]),
    r'needs positions \[B, L, 2\], got \(1, 1, 3\)': lambda: vectors(
        make('components=2'), [[[0, 1, 2]]]
    ),
    r'needs positions \[B, L, 1\], got': lambda: vectors(make(), [[[0, 1]]]),
    'width 6, got 8': lambda: vectors(make(), [[0, 1]], width=8),
}


@pytest.mark.parametrize(
    'arguments, message',
    [
        ('components=0', 'components must be at least 1 and at most 1048576, got 0'),
        ('components=3, groups=2', 'groups must be .* a divisor of components=3 .*, got 2'),
        ('width=5, components=2, groups=2', 'groups must be .* a divisor of width=5, got 2'),
        ('features=3', 'features must be even and at least 2, got 3'),
    ],
)
def test_wrong_values_of_the_encoder_are_refused(arguments, message):
    with pytest.raises(SpecError, match=message):
        make_features(f'learnable_fourier({arguments})')
