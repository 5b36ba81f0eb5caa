"""The first layer of models that read vectors or images and not token ids."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.derivatives import at_own_precision
from posenc_jax.base.products import linear
from posenc_jax.features.graphs.encoder import make_graph_features
from posenc_jax.layer.layers import normal, zeros
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens


class VectorInput(nnx.Module):
    """Vectors [B, T, C], a linear map of each: nodes of a graph, points, or other features.

    Features of graphs may have a part that is trained inside the model (`GraphEncoder.network`);
    it reads the first columns, those of the data, and the edges, and replaces the other columns.

    Args:
      channels: C.
      width: D, of the model.
      features: spec string of the encoders of graphs that gave the last columns; '' for none.
      rngs: initial parameters come from `rngs.params()`.

    Raises:
      SpecError: features of more columns than there are.
    """

    precision: str = ''  # of products, see `TransformerConfig`

    def __init__(self, channels: int, width: int, *, features: str = '', rngs: nnx.Rngs):
        encoder = make_graph_features(features) if features else None
        of_encoder = 0 if encoder is None else encoder.width
        self.channels, self.of_data = channels, channels - of_encoder
        if self.of_data < 1:
            raise SpecError(f'{features} has {of_encoder} features, but vectors have {channels}')
        self.network: Any = None if encoder is None else encoder.network(self.of_data, rngs=rngs)
        read = self.of_data + (of_encoder if self.network is None else self.network.width)
        self.kernel = normal(rngs, (read, width), read, (None, 'width'))
        self.bias = zeros((width,), ('width',))

    def tokens(self, vectors: Float[Array, 'B T C']) -> Tokens:
        """What is known about vectors of which nothing else is given.

        Raises:
          ValueError: an array of another shape.
        """
        if vectors.ndim != 3 or vectors.shape[-1] != self.channels:
            raise ValueError(
                f'the model reads vectors [B, T, {self.channels}], got {vectors.shape}'
            )
        return Tokens.of(length=vectors.shape[1])

    @at_own_precision
    def __call__(self, vectors: Float[Array, 'B T C'], tok: Tokens) -> Float[Array, 'B T D']:
        if self.network is not None:
            nodes, features = jnp.split(vectors, [self.of_data], axis=-1)
            edges = tok.feats['adjacency'][:, :, 0].astype(bool)
            valid = jnp.ones(edges.shape[:2], bool) if tok.valid is None else tok.valid
            features = self.network(features, nodes, edges, valid).astype(vectors.dtype)
            vectors = jnp.concatenate([nodes, features], axis=-1)
        return linear(vectors, self.kernel[...]) + self.bias[...].astype(vectors.dtype)


class PatchInput(nnx.Module):
    """Images [B, rows, columns, C], cut into patches of p x p pixels, each with a linear map.

    With `overlap` a patch reaches p - 1 pixels further up and to the left, as in SegFormer: a
    convolution with kernel 2 p - 1, stride p and padding p - 1. Outside the image are zeros, or its
    other side where it is a torus.

    Args:
      channels: C.
      width: D, of the model.
      patch: p.
      overlap: whether patches overlap.
      class_token: whether a trained vector stands in front of the patches.
      rngs: initial parameters come from `rngs.params()`.
    """

    precision: str = ''  # of products, see `TransformerConfig`

    def __init__(
        self,
        channels: int,
        width: int,
        patch: int,
        *,
        overlap: bool = False,
        class_token: bool = False,
        rngs: nnx.Rngs,
    ):
        self.channels, self.patch, self.overlap = channels, patch, overlap
        side = 2 * patch - 1 if overlap else patch
        fan_in = side * side * channels
        self.kernel = normal(rngs, (side, side, channels, width), fan_in, (*[None] * 3, 'width'))
        self.bias = zeros((width,), ('width',))
        self.class_token = normal(rngs, (width,), 1, ('width',)) if class_token else None

    def tokens(self, image: Float[Array, 'B rows columns C']) -> Tokens:
        """The tokens of an image: the patches, row by row, behind the class token.

        Raises:
          ValueError: an array of another shape, or an image that the patch does not divide.
        """
        if image.ndim != 4 or image.shape[-1] != self.channels:
            raise ValueError(
                f'the model reads images [B, rows, columns, {self.channels}], got {image.shape}'
            )
        rows, columns = image.shape[1:3]
        check_sides(rows, columns, [self.patch])
        extra = 0 if self.class_token is None else 1
        return Tokens.on_grid(rows // self.patch, columns // self.patch, extra=extra)

    @at_own_precision
    def __call__(
        self, image: Float[Array, 'B rows columns C'], circular: bool = False
    ) -> Float[Array, 'B T D']:
        before = self.patch - 1 if self.overlap else 0
        if before:
            # Where the patch divides the image, no window reaches the padding below and right.
            sides = ((0, 0), (before, 0), (before, 0), (0, 0))
            image = jnp.pad(image, sides, mode='wrap' if circular else 'constant')
        x = jax.lax.conv_general_dilated(
            image,
            self.kernel[...].astype(image.dtype),
            (self.patch, self.patch),
            'VALID',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
        x = x.reshape(len(x), -1, x.shape[-1]) + self.bias[...].astype(image.dtype)
        if self.class_token is None:
            return x
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        return jnp.concatenate([first, x], axis=1)


def check_sides(rows: int, columns: int, patches: Sequence[int]) -> None:
    """Refuses an image that a pyramid cannot cut: the patches of its first stage are cut from the
    pixels, and those of every further stage from the grid of the stage before.

    Raises:
      ValueError: the patch of a stage does not divide its grid; the message has the nearest size of
        the image.
    """
    whole, grid, stage = math.prod(patches), (rows, columns), 0
    if rows % whole == columns % whole == 0:
        return
    while not any(side % patches[stage] for side in grid):
        grid = (grid[0] // patches[stage], grid[1] // patches[stage])
        stage += 1
    cut = ', then '.join(f'{patch} x {patch}' for patch in patches)
    reads = f': stage {stage} of the pyramid gets a grid of {grid[0]} x {grid[1]}' if stage else ''
    nearest = ' x '.join(str(max(1, round(side / whole)) * whole) for side in (rows, columns))
    raise ValueError(
        f'an image of {rows} x {columns} pixels cannot be cut into patches of {cut}{reads}; '
        f'nearest size: {nearest}'
    )


def make_input_layer(cfg, rngs: nnx.Rngs) -> VectorInput | PatchInput | None:
    """The first layer of a `TransformerConfig`; None where the model reads token ids."""
    if not cfg.channels:
        return None
    if not cfg.patch:
        found = VectorInput(cfg.channels, cfg.width, features=cfg.features, rngs=rngs)
    else:
        token = cfg.pool == 'token'
        found = PatchInput(
            cfg.channels, cfg.width, cfg.patch, overlap=cfg.overlap, class_token=token, rngs=rngs
        )
    found.precision = cfg.precision
    return found
