"""FlexiViT: the patches of an image model become larger or smaller, and its weights follow by the
pseudo-inverse of the resize of a patch.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.protocol.calls import Chain, Node
from posenc_jax.protocol.checks import is_size
from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.registry import Card, Promises, register

SIDES = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)  # patches along a side, of images of 240 pixels


@functools.cache
def resize_matrix(old: int, new: int, antialias: bool = False) -> np.ndarray:
    """The matrix of a bilinear resize along one axis, float64 [new, old].

    Centres of cells are aligned by half pixels, and cells beyond an edge are that at the edge. With
    `antialias` the kernel is as wide as a new cell where the new size is smaller.

    Raises:
      ValueError: sizes that are not integers of at least 1.
    """
    if not (is_size(old) and is_size(new)):
        raise ValueError(f'pi_resize: sizes must be integers of at least 1, got {old} and {new}')
    place = (np.arange(new) + 0.5) * (old / new) - 0.5
    width = max(old / new, 1.0) if antialias else 1.0
    weights = np.maximum(1 - np.abs(place[:, None] - np.arange(old)) / width, 0)
    return weights / weights.sum(1, keepdims=True)


@functools.cache
def _inverse(old: int, new: int) -> np.ndarray:
    """`(B^T)^+` of one axis, float64 [new, old]."""
    return np.linalg.pinv(resize_matrix(old, new).T)


def _along_both(a: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Applies a matrix to the first axis of an array and one to the second, in float32."""
    matrices = (jnp.asarray(matrix, jnp.float32) for matrix in (rows, columns))
    a = a.astype(jnp.float32)
    return jnp.einsum('ir,jc,rc...->ij...', *matrices, a, precision=jax.lax.Precision.HIGHEST)


def pi_resized(
    kernel: Float[Array, 'rows columns C D'], size: tuple[int, int]
) -> Float[Array, '_ _ C D']:
    """The weights of patches of another size, `w' = (B^T)^+ w` for every channel and output.

    B is the bilinear resize of a patch from the old size to the new one (`resize_matrix`, without
    antialiasing). Of all weights w' these make the mean of `(<x, w> - <B x, w'>)^2` over white
    patches x smallest. It is 0 if no side becomes smaller: a resized patch then has the same
    product. Gradients flow through.

    Args:
      kernel: the weights of a convolution that reads patches.
      size: rows and columns of the new patches in pixels.

    Raises:
      ValueError: sizes that are not integers of at least 1.
    """
    return _along_both(kernel, *map(_inverse, kernel.shape[:2], size))


def resized_table(
    table: Float[Array, 'rows columns D'], size: tuple[int, int]
) -> Float[Array, '_ _ D']:
    """A table of positions for a grid of another size: a bilinear resize, with a filter against
    aliasing along a side that becomes smaller.

    Args:
      table: a vector for each cell of a grid, 7 x 7 in the paper.
      size: rows and columns of the new grid.

    Raises:
      ValueError: sizes that are not integers of at least 1.
    """
    matrices = (resize_matrix(old, new, True) for old, new in zip(table.shape, size))
    return _along_both(table, *matrices)


def drawn_patch(rng: np.random.Generator, pixels: int = 240, sides: Sequence[int] = SIDES) -> int:
    """The side of the patches of one training batch, in pixels: the number of patches along a side
    of the image is drawn from `sides` with equal chances.

    Raises:
      ValueError: a number of patches that does not divide the pixels.
    """
    if wrong := [n for n in sides if not is_size(n) or pixels % n]:
        raise ValueError(
            f'pi_resize: {wrong[0]} patches along a side do not divide {pixels} pixels'
        )
    return pixels // int(rng.choice(sides))


def change_table(model: Transformer, size: tuple[int, int]) -> Transformer:
    """The same model with the table of `learned_grid` resized to another grid, see `resized_table`.
    Its argument `size` is then that of the new grid, if it was given.

    Args:
      model: it stays as it is.
      size: rows and columns of the new table.

    Raises:
      ValueError: a model without `learned_grid`; sizes that are not integers of at least 1.
    """
    kept = nnx.clone(model)
    tables: list[Any] = [part for part in kept.encodings if name_of(part) == 'learned_grid']
    if not tables:
        found = ', '.join(model.cfg.specs)
        raise ValueError(f'pi_resize resizes the table of learned_grid, but the model has {found}')
    for part in tables:
        resized = resized_table(part.vectors[...], size)
        part.vectors = nnx.Param(resized, **part.vectors.get_metadata())

    def renamed(node: Node) -> Node:
        if node.entry.key != 'learned_grid':
            return node
        sides = dict(zip(('rows', 'columns'), size))
        given = node.arguments.get('size') is not None
        return Node(node.entry, {**node.arguments, **sides, **({'size': size} if given else {})})

    chains = (tuple(map(renamed, parse_layer(spec).nodes)) for spec in model.cfg.specs)
    specs = tuple(str(Chain(nodes)) for nodes in chains)
    named = {'pattern': specs} if model.cfg.pattern else {'encoding': specs[0]}
    changed = Transformer(dataclasses.replace(model.cfg, **named), rngs=nnx.Rngs(0))
    nnx.update(changed, nnx.state(kept))
    return changed


@register(
    'pi_resize',
    kind='conversion',
    card=Card(
        name='FlexiViT pseudo-inverse resize',
        example='pi_resize.change_patch(model, 8)',
        use_when='You have a trained vision transformer and images at another resolution.',
        promises=Promises(sweep_free=False, blockwise=False),
    ),
)
def change_patch(model: Transformer, patch: int) -> Transformer:
    """The same model of images with patches of another size, for images that are enlarged or
    reduced with them.

    `w' = (B^T)^+ w`, with the matrix B of the bilinear resize of one patch, see `pi_resized`. If
    the patches grow, and each patch of an image is enlarged by itself, the logits stay as they are.
    A whole image that is enlarged differs a little at the borders of its patches, where the resize
    mixes neighbours. Smaller patches of the same image are more tokens; the encoding of the model
    must know their positions.

    For the training of the paper the model holds weights of large patches (32 x 32) and no gradient
    is cut: `loss(change_patch(model, drawn_patch(rng)), batch)` trains them with every size.

    Differs from the paper: the position table is another step, `change_table`. Without it
    `learned_grid` resizes its table when it is read, by bicubic interpolation.

    Args:
      model: it stays as it is.
      patch: the new side in pixels.

    Raises:
      ValueError: a model that reads no images, one of patches that overlap, a pyramid, or a side
        that is no integer of at least 1.

    Reference: Beyer et al., arXiv 2212.08013.

    Example:
      >>> from posenc_jax.lab.model import TransformerConfig
      >>> sizes = dict(layers=1, width=8, heads=2, train_len=4, encoding='sincos2d()')
      >>> of_images = dict(vocab_size=0, channels=1, patch=2, kind='encoder', output_size=3)
      >>> model = Transformer(TransformerConfig(**sizes, **of_images), rngs=nnx.Rngs(0))
      >>> change_patch(model, 4)(jnp.ones((1, 8, 8, 1))).shape == model(
      ...     jnp.ones((1, 4, 4, 1))
      ... ).shape
      True
    """
    cfg = model.cfg
    if not cfg.patch or cfg.overlap or cfg.lower:
        found = 'no images' if not cfg.patch else 'patches that overlap' if cfg.overlap else ''
        raise ValueError(
            'pi_resize changes the size of patches that stand side by side in one stage; this '
            f'model {f"reads {found}" if found else "is a pyramid"}'
        )
    if not is_size(patch):
        raise ValueError(f'pi_resize: patch must be an integer of at least 1, got {patch!r}')
    changed = nnx.clone(model)
    layer = changed.input_layer
    weights = pi_resized(layer.kernel[...], (patch, patch))
    layer.kernel = nnx.Param(weights, **layer.kernel.get_metadata())
    layer.patch = patch
    changed.cfg = dataclasses.replace(cfg, patch=patch)
    return changed
