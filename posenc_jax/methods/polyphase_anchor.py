"""Polyphase anchoring: the origin of an image follows its content, so that no shift is seen."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.methods.peg import Peg
from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.capabilities import GridAnchor
from posenc_jax.protocol.registry import Card, register


def polyphase_anchor_place(
    x: Float[Array, 'B rows columns C'], stride: int, *, invariant: bool = False
) -> Int[Array, 'B 2']:
    """The row and the column of the anchor of each grid.

    Of the `stride**2` phases `x[a::stride, b::stride]` the one with the largest norm is chosen. The
    anchor is its (a, b); with `invariant` it is the cell of this phase with the largest norm. Of
    norms that are equal up to rounding (1e-4 of their squares in float32, else 1e-2) the one with
    the largest sum of fourth powers is taken, and then the first in the order of a and b. Sums are
    in float32, and the choice has no gradient.

    Raises:
      ValueError: a grid that the stride does not divide; the message has the nearest size.
    """
    batch, rows, columns, _ = x.shape
    if rows % stride or columns % stride:
        nearest = [max(1, round(size / stride)) * stride for size in (rows, columns)]
        raise ValueError(
            f'a grid of {rows} x {columns} cells cannot be anchored in steps of {stride}; nearest '
            f'size: {nearest[0]} x {nearest[1]}'
        )
    x = jax.lax.stop_gradient(x)
    square = jnp.square(x.astype(jnp.float32))

    def of_phases(a):
        """Sums over the channels, [batch, phase, cell of the phase]."""
        a = a.sum(-1).reshape(batch, rows // stride, stride, columns // stride, stride)
        return jnp.moveaxis(a, (2, 4), (1, 2)).reshape(batch, stride**2, -1)

    sums = of_phases(square), of_phases(jnp.square(square))
    phase = _largest(*(a.sum(-1) for a in sums), x.dtype)
    place = jnp.stack(jnp.divmod(phase, stride), axis=-1)
    if not invariant:
        return place
    own = (jnp.take_along_axis(a, phase[:, None, None], axis=1)[:, 0] for a in sums)
    cell = jnp.divmod(_largest(*own, x.dtype), columns // stride)
    return place + stride * jnp.stack(cell, axis=-1)


def _largest(second: Float[Array, 'B n'], fourth: Float[Array, 'B n'], dtype) -> Int[Array, ' B']:
    """The first entry with the largest sum of squares; of those that equal it up to rounding, the
    one with the largest sum of fourth powers.
    """
    rounding = 1e-4 if dtype == jnp.float32 else 1e-2
    alike = second >= (1 - rounding) * second.max(-1, keepdims=True)
    return jnp.argmax(jnp.where(alike, fourth, -1), axis=-1)


def polyphase_anchor_image(
    x: Float[Array, 'B rows columns C'], stride: int, *, invariant: bool = False
) -> Float[Array, 'B rows columns C']:
    """Each grid, as a torus, rolled such that its `polyphase_anchor_place` is its origin."""
    place = polyphase_anchor_place(x, stride, invariant=invariant)
    return jax.vmap(lambda a, by: jnp.roll(a, (-by[0], -by[1]), axis=(0, 1)))(x, place)


@register(
    'polyphase_anchor',
    kind='encoding',
    card=Card(
        name='Polyphase Anchoring',
        example='polyphase_anchor() | full()',
        share='model',
        relative=True,
        needs_training=True,
    ),
)
class PolyphaseAnchor(Peg, GridAnchor):
    """Chooses the origin of an image by its content before it is cut into patches, and adds a PEG
    with circular padding, so that a model gives shifted images the same class.

    `roll(x, -argmax_ab ||x[a::p, b::p]||)`, `x + DWConv_kxk(x) + b on a torus`. With patches of p
    pixels, an image is rolled, as a torus, by the phase (a, b) whose subimage `x[a::p, b::p]` has
    the largest norm. Then the tokens of an image that was shifted by any number of pixels are those
    of the image, in the order of a rolled grid. Attention without other positions does not see the
    order, and the circular convolution rolls with it. With a mean over the tokens, or a class
    token, the logits are the same up to rounding. With `invariant`, the grid is rolled further, by
    whole patches, to the token with the largest norm, and the tokens are equal. Convolutions of the
    model (patches that overlap, mix_ffn) see a torus too. In a pyramid every stage names it, with
    depth=1, and the reduced attention is `spatial_reduction(anchor=True)`.

    Differs from the paper: norms that are equal up to rounding, such as those of normed tokens
    after a stage, are told apart by the sum of fourth powers, where the paper takes the first.
    Where that is equal too, the first one wins, which a shift may change: in a constant image, and
    in one that was enlarged by repeating its pixels, where several phases hold the same pixels.
    The roll by a resampler is a roll by whole pixels here. Attention within windows, before which
    the paper anchors the grid of tokens by the side of a window, is not here.

    Args:
      kernel: side of the convolution, odd.
      depth: the layer that the convolution acts before: 0 in a plain model, 1 in a pyramid.
      invariant: whether the token with the largest norm becomes the first one.
      model_dim: C.
      rngs: draws the weights.

    Raises:
      ValueError: an even kernel, a negative depth; at call, tokens on no grid, or a grid that the
        patch does not divide.

    Reference: Ding et al., arXiv 2306.07470.

    Example:
      >>> import posenc_jax as pj
      >>> encoding = pj.make('polyphase_anchor()', model_dim=4)
      >>> image = jnp.zeros((1, 4, 4, 1)).at[0, 3, 2].set(1.0)
      >>> encoding.anchor(image, 2)[0, 2, 2].tolist()
      [1.0]
    """

    def __init__(
        self,
        kernel: int = 3,
        depth: int = 0,
        invariant: bool = False,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        super().__init__(kernel, 'circular', depth, model_dim, rngs)
        self.invariant = invariant

    def anchor(self, x, stride):
        return polyphase_anchor_image(x, stride, invariant=self.invariant)
