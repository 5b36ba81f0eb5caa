"""FINER: the activation and its slope with and without a gradient of the factor, the network
against NumPy, and the biases of the first layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.fields import make_field
from posenc_jax.fields.finer import finer_activation
from tests.golden_files import golden_suite


def slope(through):
    return lambda case: jax.grad(lambda z: finer_activation(z, through=through))(case['z'])


test_golden = golden_suite(
    'finer',
    {
        'finer': lambda case: finer_activation(jnp.array(case['z'])),
        'siren': lambda case: finer_activation(jnp.array(case['z']), 30 / (1 + case['z'])),
        'slope': (slope(False), {'rtol': 1e-5}),
        'slope_through': (slope(True), {'rtol': 1e-5}),
    },
    atol=1e-6,
)


def test_the_network_is_that_of_numpy():
    x = jax.random.uniform(jax.random.key(0), (5, 2), minval=-1.0)
    network = make_field('finer(width=8, layers=2, omega=7.0)', features=2, outputs=1)
    h = np.asarray(x, np.float64)
    *hidden, last = ([np.asarray(a, np.float64) for a in m.weights] for m in network.layers)
    for w, b in hidden:
        z = h @ w + b
        h = np.sin(7 * (np.abs(z) + 1) * z)
    np.testing.assert_allclose(network(x, x), h @ last[0] + last[1], atol=1e-5)


def test_a_factor_of_one_is_a_siren():
    """In the limit of small arguments of a large omega, the factor |z| + 1 is 1."""
    small = 2.0**-20
    siren = make_field('siren(width=8, layers=3)', features=2, outputs=1, rngs=nnx.Rngs(1))
    finer = make_field(f'finer(width=8, layers=3, omega={30 / small})', features=2, outputs=1)
    for number, (own, other) in enumerate(zip(finer.layers, siren.layers)):
        factor = small if number < 3 else 1.0
        own.weight[...], own.bias[...] = factor * other.weight[...], factor * other.bias[...]
    x = jax.random.uniform(jax.random.key(0), (5, 2), minval=-1.0)
    np.testing.assert_allclose(finer(x, x), siren(x, x), atol=1e-3)


def test_the_first_biases_are_spread_and_the_factor_may_carry_a_gradient():
    make = lambda options: make_field(
        f'finer(width=64, layers=2{options})', features=4, outputs=1, rngs=nnx.Rngs(1)
    )
    plain, wide, through = map(make, ('', ', first_bias=5.0', ', scale_gradient=True'))
    first, second = (np.abs(wide.layers[i].bias[...]).max() for i in range(2))
    assert 4.5 < first <= 5 and second <= 1 / 8
    assert 0.4 < np.abs(plain.layers[0].bias[...]).max() <= 1 / 2
    for layer, other in zip(plain.layers, wide.layers):
        np.testing.assert_array_equal(layer.weight[...], other.weight[...])
    x = jnp.full((3, 4), 0.2)
    np.testing.assert_array_equal(plain(x, x), through(x, x))
    own, more = (jax.grad(lambda x: n(x, x).sum())(x) for n in (plain, through))
    assert np.abs(own - more).max() > 1e-3
