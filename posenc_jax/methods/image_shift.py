"""Ids that keep several images apart: rows and columns shifted past earlier images, and a trained
vector for each image.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.protocol.bounds import CONTEXT, Size
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import NOWHERE, check_integers, known_range, lookup_rows


def image_ids(sizes: Sequence[tuple[int, int]]) -> Int[np.ndarray, 'L 3']:
    """(image, row, column) of all tokens of images, row by row.

    Args:
      sizes: height and width of each image, in tokens.
    """
    one = lambda k, h, w: np.stack([np.full(h * w, k), *np.divmod(np.arange(h * w), w)], axis=-1)
    return np.concatenate([one(k, *size) for k, size in enumerate(sizes)])


def image_shift_ids(
    ids: Int[Array, '... 3'], sizes: Sequence[tuple[int, int]]
) -> Int[Array, '... 2']:
    """`(r + sum of H_j, c + sum of W_j)` over the images j before: images lie along a diagonal.

    Args:
      ids: (image, row, column); an image that does not exist gives ids far from all others.
      sizes: H_k and W_k of every image.
    """
    before = jnp.asarray(np.cumsum([(0, 0), *sizes[:-1]], axis=0), jnp.int32)
    image = ids[..., 0]
    known = (image >= 0) & (image < len(sizes))
    shifted = ids[..., 1:] + before[jnp.clip(image, 0, len(sizes) - 1)]
    return jnp.where(known[..., None], shifted, NOWHERE).astype(jnp.int32)


@register(
    'image_shift',
    kind='encoding',
    card=Card(
        name='image index and shift',
        example='image_shift(sizes=((2, 5), (2, 5))) | sinusoidal()',
        use_when='One input has several images, and a token should know in which it is.',
        share='model',
        needs_training=True,
    ),
)
class ImageShift(Encoding):
    """Shifts the row and the column of a token past all earlier images, and adds a trained vector
    of the image to the token vector.

    `p = (r + sum_(j<k) H_j, c + sum_(j<k) W_j)` and `x + e_k` for a token at row r and column c of
    image k, e_k = 0 at first. The task hands over positions with three components, [#B, L, 3]:
    image, row and column, see `image_ids`. The next part of the chain encodes the two components of
    p: `image_shift(...) | learnable_fourier(components=2)`. Text can be an image of one row.
    Positions with one component are not of images and stay. Differs from the paper: the equations
    are our interpretation.

    Args:
      sizes: height H_k and width W_k of every image, in tokens.
      shift: False leaves p = (r, c).
      index: False adds no vector.
      model_dim: from the model.

    Raises:
      ValueError: no sizes; at call, positions of another shape or fractional ones, and, where
        they are known, an image, row or column that does not exist.

    Reference: Xia et al., arXiv 2510.06679.

    Example:
      >>> import posenc_jax as pj
      >>> sizes = ((1, 2), (1, 1))
      >>> encoding = pj.make(f'image_shift(sizes={sizes})', model_dim=4)
      >>> encoding.place(pj.Tokens.of(positions=image_ids(sizes)[None])).pos.tolist()
      [[[0, 0], [0, 1], [1, 2]]]
    """

    def __init__(
        self,
        sizes: tuple[tuple[Size, Size], ...],
        shift: bool = True,
        index: bool = True,
        model_dim: int = CONTEXT,
    ):
        if not sizes:
            raise ValueError(
                'image_shift sizes are the heights and widths of one or more images, got ()'
            )
        self.sizes, self.shift = sizes, shift
        rows = jnp.zeros((len(sizes), model_dim), jnp.float32)
        self.vectors = nnx.Param(rows, axes=(None, 'width')) if index else None

    def place(self, tok, *, key=None):
        if tok.pos.ndim == 2:
            return tok
        wanted = '[B, L], without images, or integers [B, L, 3], image, row and column'
        check_integers(f'image_shift needs positions {wanted}', tok.pos, (3,))
        self._check(tok)
        pos = image_shift_ids(tok.pos, self.sizes) if self.shift else tok.pos[..., 1:]
        return dataclasses.replace(tok, pos=pos).with_feats(image_shift=tok.pos[..., :1])

    def _check(self, tok):
        """Refuses images, rows and columns that do not exist, as far as they are known."""
        image = tok.pos[..., 0]
        low, high = known_range(image, tok.valid) or (0, 0)
        if low < 0 or high >= len(self.sizes):
            raise ValueError(
                f'image_shift: image {low if low < 0 else high} does not exist; sizes are given '
                f'for 0 .. {len(self.sizes) - 1}'
            )
        sizes = jnp.asarray(self.sizes)[jnp.clip(image, 0, len(self.sizes) - 1)]
        for axis, name in enumerate(('row', 'column'), 1):
            at = tok.pos[..., axis]
            beyond = at - sizes[..., axis - 1] + 1  # 0 for the last row or column
            if tok.valid is not None:
                beyond = jnp.where(tok.valid, beyond, 0)
            low, _ = known_range(at, tok.valid) or (0, 0)
            _, high = known_range(beyond, tok.valid) or (0, 0)
            if low < 0 or high > 0:
                wrong = f'is {low}' if low < 0 else f'lies {high} beyond its image'
                raise ValueError(f'image_shift: a {name} {wrong}; the sizes are {self.sizes}')

    def embed(self, x: Float[Array, 'B L D'], tok) -> Float[Array, 'B L D']:
        image = tok.feats.get('image_shift')
        if image is None:
            return x
        added = lookup_rows(self.vectors[...], image[..., 0]).astype(x.dtype)
        return x + (added if tok.valid is None else jnp.where(tok.valid[..., None], added, 0))


class UnmarkedImageShift(ImageShift, where=lambda given: not given['index']):
    """The shift alone."""

    embed = Encoding.embed
