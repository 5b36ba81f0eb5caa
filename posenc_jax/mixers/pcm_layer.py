"""A recurrent layer that reads the points of a cloud along a curve, between learned prompts."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.base.products import linear
from posenc_jax.features.coordinates.point_orders import CELL
from posenc_jax.features.coordinates.traced_orders import traced_order
from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.layers import normal
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.layer.whole_mixer import WholeMixer
from posenc_jax.protocol.bounds import Count, Positive, Size
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens

Order = Literal[
    'xyz', 'xzy', 'yxz', 'yzx', 'zxy', 'zyx', 'hilbert', 'z', 'z-trans', 'given'
]  # fmt: skip


def reordered(x: Float[Array, 'B N D'], order: Int[Array, 'B N']) -> Float[Array, 'B N D']:
    """Row i of the result is row `order[i]` of x."""
    return jnp.take_along_axis(x, order[..., None], axis=1)


def inverse_order(order: Int[Array, 'B N']) -> Int[Array, 'B N']:
    """The order that undoes another one."""
    places = jnp.broadcast_to(jnp.arange(order.shape[1], dtype=order.dtype), order.shape)
    return jnp.put_along_axis(jnp.zeros_like(order), order, places, axis=1, inplace=False)


def between(
    x: Float[Array, 'B N D'], valid: Bool[Array, '#B N'] | None, prompts: Float[Array, 'P D']
) -> tuple[Float[Array, 'B M D'], Bool[Array, '#B M'] | None]:
    """The rows of x with all prompts in front of them and again behind them, M = N + 2 P, and which
    of them are real.
    """
    rows = jnp.broadcast_to(prompts.astype(x.dtype), (len(x), *prompts.shape))
    x = jnp.concatenate([rows, x, rows], axis=1)
    if valid is None:
        return x, None
    count = len(prompts)
    return x, jnp.pad(valid, ((0, 0), (count, count)), constant_values=True)


@register(
    'pcm_layer',
    kind='mixer',
    card=Card(
        name='Point Cloud Mamba: ordered layer',
        example='pcm_layer(gru())',
        use_when='You have clouds of points and a scan, which needs them in an order.',
        promises=Promises(sweep_free=False, needs_training=True),
    ),
)
class PcmLayer(WholeMixer):
    """Sorts the points of a cloud along a curve, runs another mixer over them, and puts its results
    back in place.

    `y = unsort(inner([u; sort(x); u]))`, where the points are sorted by their cells `q = floor(p /
    size)`, counted from the smallest of their cloud. `order` is a snake through the grid of cells,
    named by its axes from the fastest to the slowest, a Hilbert curve or a z-order
    (`features/coordinates/point_orders.py` has the formulas). The inner mixer reads P learned
    vectors u, the points in order and the same P vectors again; its results for the vectors are
    dropped. So it knows which order it reads. Its tokens have their places in the order as
    positions, as the rotation of `cheems` needs. A pattern cycles over orders: `pattern=('pcm() |
    pcm_layer(cheems(), order="xyz")', 'pcm_layer(cheems(), order="xzy")', ...)`.

    The layer reads whole clouds, one a row, so it needs a model of kind 'encoder' and has no state
    to continue. A cloud with a coordinate that is not finite, or of more than 2**20 cells along an
    axis, gives NaN.

    Differs from the paper: its traverse code sorts by one axis alone; here the formula of the paper
    holds. Every layer has its own vectors and map, where the paper shares both between the layers
    of a stage that have one order. The vectors stand at the input of the mixer, behind the norm.

    Args:
      inner: a recurrent mixer, which reads from left to right.
      order: one of the curves, or 'given' for the order of the tokens.
      prompts: P; 0 for none.
      prompt_width: width of the learned vectors, of which a map makes vectors of model width.
      size: side of a cell, in the unit of the coordinates.

    Raises:
      ValueError: a mixer within the layer that carries a stream or sorts points itself; at call,
        positions that are not [B, L, 3], and packed documents.

    Reference: Zhang, Yuan, Qi, Zhang, Zhou, Ji, Yan, Li, arXiv 2403.00762.

    Example:
      >>> from posenc_jax.mixers.recurrent_baselines import GRULayer
      >>> sizes = dict(model_dim=4, layers=1, rngs=nnx.Rngs(0))
      >>> layer = PcmLayer(GRULayer(**sizes), order='hilbert', **sizes)
      >>> points = jnp.array([[[0.0, 0.5, 1.0], [0.25, 0.5, 0.75]]])
      >>> layer.whole(jnp.ones((1, 2, 4)), Tokens.of(positions=points)).shape
      (1, 2, 4)
    """

    def __init__(
        self,
        inner: RecurrentMixer,
        order: Order = 'xyz',
        prompts: Count = 6,
        prompt_width: Size = 384,
        size: Positive = CELL,
        model_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if not isinstance(inner, RecurrentMixer):
            name: Any = getattr(inner, 'card', None)
            raise ValueError(
                'pcm_layer takes a recurrent mixer such as gru() or cheems(), got '
                f'{name.key if name else type(inner).__name__}'
            )
        self.inner, self.order, self.size = inner, order, size
        # At first the vectors have about the size of a normed row.
        self.prompts: Any = (
            normal(rngs, (prompts, prompt_width), 1, (None, None)) if prompts else None
        )
        self.w_prompt: Any = (
            normal(rngs, (prompt_width, model_dim), prompt_width, (None, 'width'))
            if prompts
            else None
        )

    def whole(self, x: Float[Array, 'B L D'], tok: Tokens) -> Float[Array, 'B L D']:
        """The result for whole clouds."""
        if tok.segment is not None:
            raise ValueError('pcm_layer reads one cloud a row, got packed documents')
        order, fits = None, None
        valid = tok.valid
        if self.order != 'given':
            if tok.pos.shape[2:] != (3,):
                raise ValueError(
                    f'pcm_layer needs coordinates as positions [B, L, 3], got {tok.pos.shape}'
                )
            order, fits = traced_order(tok.pos, self.order, valid, self.size)
            order = jnp.broadcast_to(order, x.shape[:2])
            x = reordered(x, order)
            if valid is not None:  # padding comes last
                count = valid.sum(axis=1, keepdims=True)
                valid = jnp.arange(valid.shape[1]) < count
        first = 0
        if self.prompts is not None:
            prompts = linear(self.prompts[...], self.w_prompt[...])
            x, valid = between(x, valid, prompts)
            first = len(prompts)
        inner = Tokens.of(length=x.shape[1], valid=valid)
        y = self.inner.whole(x, inner)[:, first : first + tok.length]
        if order is None:
            return y
        y = reordered(y, inverse_order(order))
        return jnp.where(fits[:, None, None], y, jnp.nan)
