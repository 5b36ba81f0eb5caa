"""Tests of the LSTM layer: its states against those of torch, what carries order, and refused
arguments.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.mixers.recurrent_baselines import LSTMLayer
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('lstm')


def layer_of_torch():
    """The layer with the weights of torch; its output projection is the identity on the states."""
    layer = LSTMLayer(features=3, model_dim=2, layers=1, rngs=nnx.Rngs(0))
    layer.cell.dense_i.kernel[...] = jnp.asarray(GOLDEN['weight_ih']).T
    layer.cell.dense_h.kernel[...] = jnp.asarray(GOLDEN['weight_hh']).T
    layer.cell.dense_h.bias[...] = jnp.asarray(GOLDEN['bias_hh'])
    layer.w_out = nnx.Param(jnp.eye(3), axes=('hidden', 'width'))
    return layer


def test_the_states_are_those_of_torch():
    x, tok = jnp.asarray(GOLDEN['x'])[None], pj.Tokens.of(length=4)
    y, state = layer_of_torch().fill(x, tok, 4)
    np.testing.assert_allclose(y[0], GOLDEN['states'], rtol=1e-5, atol=1e-6)
    cell, hidden = state.inner
    np.testing.assert_allclose(cell[0], GOLDEN['cell'], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(hidden[0], GOLDEN['states'][-1], rtol=1e-5, atol=1e-6)


def test_order_is_read_and_positions_are_not():
    layer, x = LSTMLayer(model_dim=6, layers=1, rngs=nnx.Rngs(0)), jnp.zeros((1, 5, 6))
    x = x.at[0, :2].set(jax.random.normal(jax.random.key(0), (2, 6)))
    tok = pj.Tokens.of(length=5)
    out = layer.whole(x, tok)
    exchanged = layer.whole(x.at[0, :2].set(x[0, 1::-1]), tok)
    assert jnp.abs(out - exchanged)[0, -1].max() > 1e-3
    np.testing.assert_array_equal(layer.whole(x, pj.Tokens.of(positions=[[9, 3, 3, 0, 1]])), out)


def test_the_width_of_the_state_is_that_of_the_model_or_given():
    width = lambda **fields: LSTMLayer(**fields, model_dim=6, layers=1, rngs=nnx.Rngs(0)).features
    assert width() == 6 and width(features=9) == 9
    cfg = TransformerConfig(
        vocab_size=5, train_len=8, layers=1, width=8, heads=2, encoding='lstm(features=0)'
    )
    with pytest.raises(SpecError, match='lstm features must be at least 1, got 0'):
        Transformer(cfg, rngs=nnx.Rngs(0))
