"""The plain network of rectified linear units: outputs against NumPy, and its first weights."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.fields import make_field
from posenc_jax.fields.network import perceptron
from tests.golden_files import golden

GOLDEN = golden('mlp')['values']


def test_outputs():
    layers = [
        (jnp.array(w), jnp.array(b))
        for w, b in zip(GOLDEN['weights'], GOLDEN['biases'], strict=True)
    ]
    found = perceptron(jnp.array(GOLDEN['x']), layers, [jax.nn.relu] * 2)
    np.testing.assert_allclose(found, GOLDEN['values'], atol=1e-6)


def test_the_network_is_the_function_and_keeps_its_variance():
    network = make_field('mlp(width=256, layers=2)', features=64, outputs=1, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (100, 64))
    layers = [layer.weights for layer in network.layers]
    np.testing.assert_allclose(network(x, x), perceptron(x, layers, [jax.nn.relu] * 2), atol=1e-5)
    hidden = jax.nn.relu(network.layers[0](x))
    assert 0.8 < float(jnp.mean(hidden**2)) < 1.25  # the inputs have mean square 1
