"""The causal form of PEG for lines of tokens: a short depthwise convolution as a layer."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.mixers.piecewise_scan import known_rows
from posenc_jax.protocol.bounds import Ge, Le
from posenc_jax.protocol.registry import Card, Promises, register


def peg_causal_depthwise(
    x: Float[Array, 'B T D'],
    kernel: Float[Array, 'k D'],
    before: Float[Array, 'B _ D'],
    valid: Bool[Array, 'B T'],
    starts: Bool[Array, 'B T'],
) -> tuple[Float[Array, 'B T D'], Float[Array, 'B _ D']]:
    """`y_t = sum_j w[k - 1 - j] x_(t-j)` over the valid tokens of a document, j = 0 .. k - 1.

    Args:
      x: the rows.
      kernel: w; its last entry is that of the token itself.
      before: the k - 1 valid rows before, zeros where there are fewer.
      valid: False for padding, which is skipped and whose results have no meaning.
      starts: True where a token is the first of its document.

    Returns:
      y, and the last k - 1 valid rows of the last document, zeros where there are fewer.
    """
    lags = kernel.shape[0] - 1
    place = jnp.cumsum(valid, axis=1) - 1  # among the valid rows
    # Valid tokens since the first of the document, or since before this piece.
    first = jax.lax.cummax(jnp.where(starts & valid, place, -1 - lags), axis=1)
    order = jnp.argsort(~valid, axis=1, stable=True)
    rows = jnp.concatenate([before, jnp.take_along_axis(x, order[..., None], axis=1)], axis=1)

    def row_at(place, first, lag):
        """The valid row `lag` rows before a place, [B, T, D]; zeros before its document."""
        at = jnp.clip(place - lag + lags, 0, rows.shape[1] - 1)
        known = place - lag >= first
        return jnp.where(known[..., None], jnp.take_along_axis(rows, at[..., None], axis=1), 0)

    y = sum(kernel[lags - lag] * row_at(place, first, lag) for lag in range(lags + 1))
    last, of_last = place[:, -1:], first[:, -1:]
    after = [row_at(last, of_last, lag) for lag in reversed(range(lags))]
    return y, jnp.concatenate([before[:, :0], *after], axis=1)


@register(
    'peg_causal',
    kind='mixer',
    card=Card(
        name='causal PEG',
        example='peg_causal(kernel=3)',
        use_when=(
            'You have a model of text without positions and want short convolutions to '
            'tell the order.'
        ),
        causal_only=True,
        promises=Promises(relative=True, sweep_free=False, needs_training=True),
    ),
)
class PegCausal(RecurrentMixer):
    """A depthwise convolution over the last k tokens, in the place of attention: the form of `peg`
    for language models, `pattern=('peg_causal(kernel=3)', 'nope()')`.

    `y_t = b + sum_{j < k} w_j x_(t-j)` for each channel, over the tokens of the document, which the
    layer adds to its input. The state is the last k - 1 rows. Before the first token are zeros,
    which tell the first k - 1 positions.

    Differs from the paper, which has the form for images alone: this one-dimensional causal form is
    ours. It is a layer of its own with a norm before it, and so has a feed-forward network behind
    it. Weights are normal with the variance 1 / k, since the residual is outside; b is 0. Weight
    decay leaves both alone, as for `peg`.

    Args:
      kernel: k, at least 1; it may be even, since it has no middle.

    Reference: Chu et al., arXiv 2102.10882.

    Example:
      >>> from posenc_jax.protocol.tokens import Tokens
      >>> layer = PegCausal(kernel=3, model_dim=4, rngs=nnx.Rngs(0))
      >>> y, state = layer.fill(jnp.ones((2, 5, 4)), Tokens.of(length=5), capacity=5)
      >>> y.shape, state.inner.shape
      ((2, 5, 4), (2, 2, 4))
    """

    def __init__(
        self,
        kernel: Annotated[int, Ge(1), Le(1024)] = 3,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        drawn = jax.random.normal(rngs.params(), (kernel, model_dim), jnp.float32)
        axes = (None, 'width')
        self.kernel = nnx.Param(drawn * kernel**-0.5, axes=axes, decays=False)
        self.bias = nnx.Param(jnp.zeros(model_dim, jnp.float32), axes=('width',))

    def initial(self, batch: int) -> Float[Array, 'B _ D']:
        lags, width = self.kernel.shape
        return jnp.zeros((batch, lags - 1, width), jnp.float32)

    def scan(self, x, tok, starts, state):
        valid, _, starts = known_rows(x, tok, starts)
        rows = x.astype(jnp.float32)
        y, state = peg_causal_depthwise(rows, self.kernel[...], state, valid, starts)
        return (y + self.bias[...]).astype(x.dtype), state
