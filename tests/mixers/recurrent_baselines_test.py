"""The GRU and LSTM layers: their states against those of torch, what carries order, and the width
of the state.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.mixers.recurrent_baselines import GRULayer, LSTMLayer
from tests.golden_files import golden

LAYERS = {'gru': GRULayer, 'lstm': LSTMLayer}
every_layer = pytest.mark.parametrize('key', LAYERS)


@every_layer
def test_the_states_are_those_of_torch(key):
    """With an output projection that is the identity on the states."""
    values = golden(key)
    layer = LAYERS[key](features=3, model_dim=2, layers=1, rngs=nnx.Rngs(0))
    layer.cell.dense_i.kernel[...] = jnp.asarray(values['weight_ih']).T
    layer.cell.dense_h.kernel[...] = jnp.asarray(values['weight_hh']).T
    biased = layer.cell.dense_i if key == 'gru' else layer.cell.dense_h
    biased.bias[...] = jnp.asarray(values['bias_ih' if key == 'gru' else 'bias_hh'])
    layer.w_out = nnx.Param(jnp.eye(3), axes=('hidden', 'width'))
    y, state = layer.fill(jnp.asarray(values['x'])[None], pj.Tokens.of(length=4), 4)
    *cell, hidden = [state.inner] if key == 'gru' else state.inner
    np.testing.assert_allclose(y[0], values['states'], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(hidden[0], values['states'][-1], rtol=1e-5, atol=1e-6)
    for found in cell:
        np.testing.assert_allclose(found[0], values['cell'], rtol=1e-5, atol=1e-6)


@every_layer
def test_order_is_read_and_positions_are_not(key):
    layer, x = LAYERS[key](model_dim=6, layers=1, rngs=nnx.Rngs(0)), jnp.zeros((1, 5, 6))
    x = x.at[0, :2].set(jax.random.normal(jax.random.key(0), (2, 6)))
    out = layer.whole(x, pj.Tokens.of(length=5))
    exchanged = layer.whole(x.at[0, :2].set(x[0, 1::-1]), pj.Tokens.of(length=5))
    assert jnp.abs(out - exchanged)[0, -1].max() > 1e-3
    np.testing.assert_array_equal(layer.whole(x, pj.Tokens.of(positions=[[9, 3, 3, 0, 1]])), out)


@every_layer
def test_the_width_of_the_state_is_that_of_the_model_or_given(key):
    width = lambda **own: LAYERS[key](**own, model_dim=6, layers=1, rngs=nnx.Rngs(0)).features
    assert width() == 6 and width(features=9) == 9
