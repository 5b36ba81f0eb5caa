"""GRU and LSTM layers: recurrent networks of before transformers, in which order needs no code."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.products import linear
from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.layers import normal
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.registry import Card, Promises, register


class CellMixer(RecurrentMixer):
    """A layer that runs a recurrent cell of Flax along the tokens, in float32, and projects its
    states to the model width.

    Args:
      features: width of the state; None for that of the model.
      layers: depth of the model, which scales the initial projection.

    Attributes:
      kind: of the cell, whose result for a token is the new hidden state.
    """

    kind: ClassVar[Any]

    def __init__(
        self,
        features: Size | None = None,
        model_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.features = model_dim if features is None else features
        self.cell = self.kind(model_dim, self.features, rngs=rngs)
        for _, variable in nnx.to_flat_state(nnx.state(self.cell, nnx.Param)):
            variable.set_metadata(axes=(None,) * variable.get_value().ndim)
        size, axes, gain = (self.features, model_dim), ('hidden', 'width'), (2 * layers) ** -0.5
        self.w_out = normal(rngs, size, self.features, axes, gain=gain)

    def scan(self, x, tok, starts, state):
        graphdef, variables = nnx.split(self.cell)
        fresh, valid = self.initial(x.shape[0]), jnp.ones(starts.shape, bool)
        if tok.valid is not None:
            valid &= tok.valid

        def choose(condition, this, other):
            return jax.tree.map(lambda a, b: jnp.where(condition[:, None], a, b), this, other)

        def step(state, token):
            x, starts, valid = token
            after, h = nnx.merge(graphdef, variables)(choose(starts, fresh, state), x)
            return choose(valid, after, state), h

        rows = jnp.swapaxes(x.astype(jnp.float32), 0, 1)
        state, states = jax.lax.scan(step, state, (rows, starts.T, valid.T))
        return linear(jnp.swapaxes(states, 0, 1).astype(x.dtype), self.w_out[...]), state


@register(
    'gru',
    kind='mixer',
    card=Card(
        name='GRU',
        example='gru()',
        use_when='You want a recurrent baseline that needs no positions.',
        causal_only=True,
        promises=Promises(relative=True, sweep_free=False, needs_training=True),
    ),
)
class GRULayer(CellMixer):
    """A gated recurrent unit in the place of attention: a baseline that carries order in its state.

    `r, z = sigmoid(W x_t + U h_{t-1} + b)`, `n = tanh(W_n x_t + b_n + r (U_n h_{t-1}))`,
    `h_t = (1 - z) n + z h_{t-1}`, `y_t = h_t W_out`. Positions are not read.

    Differs from the paper: r multiplies `U_n h` instead of h, and z and 1 - z are exchanged, as in
    `flax.nnx.GRUCell`, which is run here; an output projection follows.

    Args:
      features: width of the state; None for that of the model.

    Reference: Cho, van Merrienboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio, arXiv 1406.1078.
    """

    kind = nnx.GRUCell

    def initial(self, batch: int) -> Float[Array, 'B F']:
        return jnp.zeros((batch, self.features), jnp.float32)


@register(
    'lstm',
    kind='mixer',
    card=Card(
        name='LSTM',
        example='lstm()',
        use_when='You want a recurrent baseline that needs no positions.',
        causal_only=True,
        promises=Promises(relative=True, sweep_free=False, needs_training=True),
    ),
)
class LSTMLayer(CellMixer):
    """A long short-term memory in the place of attention: a baseline that carries order in its
    state.

    `i, f, o = sigmoid(W x_t + U h_{t-1} + b)`, `g = tanh(W_g x_t + U_g h_{t-1} + b_g)`,
    `c_t = f c_{t-1} + i g`, `h_t = o tanh(c_t)`, `y_t = h_t W_out`. Positions are not read.

    Differs from the paper: the forget gate f, which Gers, Schmidhuber and Cummins added in 2000;
    an output projection follows. The cell is `flax.nnx.OptimizedLSTMCell`.

    Args:
      features: width of the state; None for that of the model.

    Reference: Hochreiter, Schmidhuber, Neural Computation 9(8), 1997.

    Example:
      >>> from posenc_jax.protocol.tokens import Tokens
      >>> layer = LSTMLayer(features=3, model_dim=4, layers=1, rngs=nnx.Rngs(0))
      >>> y, state = layer.fill(jnp.ones((2, 5, 4)), Tokens.of(length=5), capacity=5)
      >>> y.shape, [a.shape for a in state.inner]
      ((2, 5, 4), [(2, 3), (2, 3)])
    """

    kind = nnx.OptimizedLSTMCell

    def initial(self, batch: int) -> tuple[Float[Array, 'B F'], Float[Array, 'B F']]:
        zeros = jnp.zeros((batch, self.features), jnp.float32)
        return zeros, zeros
