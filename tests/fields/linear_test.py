"""The linear layer of features: outputs against NumPy, and its first weights."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.fields import make_field
from tests.golden_files import golden

GOLDEN = golden('linear')['values']


def test_outputs():
    network = make_field('linear()', features=2, outputs=4)
    network.layer.weight[...] = jnp.array(GOLDEN['weight'])
    network.layer.bias[...] = jnp.array(GOLDEN['bias'])
    x = jnp.array(GOLDEN['x'])
    np.testing.assert_allclose(network(x, x), GOLDEN['values'], atol=1e-6)


def test_weights_lie_within_their_bound():
    network = make_field('linear()', features=64, outputs=32, rngs=nnx.Rngs(0))
    assert 0.99 / 8 < np.abs(network.layer.weight[...]).max() <= 1 / 8
