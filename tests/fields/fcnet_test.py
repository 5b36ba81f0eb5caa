"""FcNet: outputs against NumPy, and dropout in training alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.fields import make_field
from posenc_jax.fields.fcnet import residual_block
from tests.golden_files import golden

GOLDEN = golden('fcnet')['values']


@pytest.fixture(scope='module')
def network():
    made = make_field('fcnet(width=4, blocks=2)', features=2, outputs=1)
    pairs = [GOLDEN['first'], *GOLDEN['blocks']]
    for layer, (weight, bias) in zip([made.first, *made.blocks], pairs, strict=True):
        layer.weight[...], layer.bias[...] = jnp.array(weight), jnp.array(bias)
    made.head.weight[...] = jnp.array(GOLDEN['head'])
    return made


def test_outputs(network):
    x = jnp.array(GOLDEN['x'])
    np.testing.assert_allclose(network(x, x), GOLDEN['values'], atol=1e-6)
    assert network.head.bias is None


def test_dropout_is_of_training_alone(network):
    x = jnp.array(GOLDEN['x'])
    dropped = network(x, x, key=jax.random.key(0))
    assert np.abs(dropped - network(x, x)).max() > 1e-3
    np.testing.assert_array_equal(dropped, network(x, x, key=jax.random.key(0)))


def test_dropout_keeps_the_mean():
    one, none = jnp.eye(1), jnp.zeros(1)
    keys = jax.random.split(jax.random.key(0), 2000)
    block = lambda key: residual_block(jnp.ones(1), (one, none), (one, none), 0.5, key)
    values = jax.vmap(block)(keys)
    assert set(np.unique(values)) == {1.0, 3.0} and abs(float(values.mean()) - 2) < 0.1
