"""Gaussian activations: one by hand, the paper's width, and the network against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from posenc_jax.fields import make_field
from posenc_jax.fields.gauss import gauss_activation
from tests.golden_files import golden_suite

test_golden = golden_suite(
    'gauss',
    {'value': lambda case: gauss_activation(jnp.array(case['z']), case['scale'])},
    atol=1e-6,
)


def test_the_width_of_the_paper():
    z, sigma = jnp.linspace(-0.3, 0.3, 7), 0.1
    found = gauss_activation(z, 1 / (2**0.5 * sigma))
    np.testing.assert_allclose(found, np.exp(-(np.asarray(z) ** 2) / (2 * sigma**2)), rtol=1e-5)


def test_the_network_is_that_of_numpy():
    x = jax.random.uniform(jax.random.key(0), (5, 2), minval=-1.0)
    network = make_field('gauss(width=8, layers=3, scale=2.0)', features=2, outputs=2)
    h = np.asarray(x, np.float64)
    *hidden, last = ([np.asarray(a, np.float64) for a in m.weights] for m in network.layers)
    for w, b in hidden:
        h = np.exp(-((2 * (h @ w + b)) ** 2))
    np.testing.assert_allclose(network(x, x), h @ last[0] + last[1], atol=1e-5)
    bounds = [np.abs(m.weight[...]).max() * m.weight.shape[0] ** 0.5 for m in network.layers]
    assert max(bounds) <= 1 and min(bounds) > 0.6
