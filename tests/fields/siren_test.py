"""SIREN: outputs against NumPy, and the spread of every layer at the start."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from posenc_jax.fields import make_field
from posenc_jax.fields.siren import siren
from tests.golden_files import golden

GOLDEN = golden('siren')['values']
LAYERS = [
    (jnp.array(w), jnp.array(b)) for w, b in zip(GOLDEN['weights'], GOLDEN['biases'], strict=True)
]


def test_outputs_of_both_presets():
    x = jnp.array(GOLDEN['x'])
    np.testing.assert_allclose(siren(x, LAYERS), GOLDEN['values'], atol=1e-4)
    np.testing.assert_allclose(siren(x, LAYERS, hidden=1.0), GOLDEN['geo'], atol=1e-5)


def test_every_layer_is_spread_alike():
    """The arguments of the sines have the standard deviation that the authors derive."""
    network = make_field('siren(width=256, layers=4)', features=2, outputs=1, rngs=nnx.Rngs(0))
    h = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    for number, layer in enumerate(list(network.layers)[:-1]):
        z = 30 * (h @ np.asarray(layer.weight[...]) + np.asarray(layer.bias[...]))
        low, high = GOLDEN['hidden_std' if number else 'first_std']
        assert low < z.std() < high
        h = np.sin(z)
        low, high = GOLDEN['activation_std']
        assert low < h.std() < high


def test_the_presets_draw_their_weights_within_their_bounds():
    for preset, hidden in (('siren', 30.0), ('geo', 1.0)):
        spec = f"siren(width=64, layers=3, preset='{preset}')"
        first, second, *_ = make_field(spec, features=4, outputs=1, rngs=nnx.Rngs(1)).layers
        bound = np.sqrt(6 / 64) / hidden
        assert 0.9 / 4 < np.abs(first.weight[...]).max() <= 1 / 4
        assert 0.98 * bound < np.abs(second.weight[...]).max() <= bound
        biases = (1 / 4, bound) if preset == 'geo' else (1 / 2, 1 / 8)
        for layer, most in zip((first, second), biases):
            assert 0.8 * most < np.abs(layer.bias[...]).max() <= most
