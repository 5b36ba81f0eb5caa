"""D'OH: one trained variable, weights that latent and seed decide, and their scale."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.fields import make_field
from tests.golden_files import golden

GOLDEN = golden('doh')['values']


def make(arguments, seed=0):
    return make_field(f'doh({arguments})', features=2, outputs=1, rngs=nnx.Rngs(seed))


def test_the_latent_is_all_that_is_trained_and_weights_have_the_right_scale():
    network = make(f'siren(width=64, layers=2), latent={GOLDEN["trained"]}')
    (latent,) = jax.tree.leaves(nnx.state(network, nnx.Param))
    assert latent.size == GOLDEN['trained'] and 0.55 < latent.std() < 0.6
    first, hidden, _ = network.made().layers
    for layer, std in ((first, GOLDEN['std']['first']), (hidden, GOLDEN['std']['hidden'])):
        spread = 0.05 if layer is hidden else 0.2  # 4096 weights, and 128
        assert abs(float(layer.weight[...].std()) / std - 1) < spread
    assert 0.7 < float(first.bias[...].std()) / GOLDEN['std']['first'] < 1.3


def test_latent_and_seed_decide_the_values_to_the_bit():
    x = jax.random.uniform(jax.random.key(0), (5, 2), minval=-1.0)
    one, other = (make('spder(width=8, layers=2), latent=16, seed=3', n) for n in (0, 1))
    assert np.abs(one(x, x) - other(x, x)).max() > 1e-6  # another latent
    other.latent[...] = one.latent[...]
    np.testing.assert_array_equal(other(x, x), one(x, x))
    third = make('spder(width=8, layers=2), latent=16, seed=4')
    third.latent[...] = one.latent[...]
    assert np.abs(third(x, x) - one(x, x)).max() > 1e-6  # another seed
    assert one.seed[...].dtype == jnp.int32


def test_weights_are_linear_in_the_latent():
    network = make('mlp(width=4, layers=1), latent=8')
    first = network.made().layers[0].weights
    network.latent[...] = 2 * network.latent[...]
    for once, twice in zip(first, network.made().layers[0].weights):
        np.testing.assert_allclose(twice, 2 * once, rtol=1e-5)
