"""Positions of boxes in an image: sine features, centerness, and what a dynamic convolution and an
attention over proposals make of them. All functions are pure.

A box is (cx, cy, w, h), its centre, width and height in parts of the image. It may reach out of the
image: proposals of a detector are four numbers in (0, 1), each on its own.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from posenc_jax.attention.attend import attend
from posenc_jax.protocol.masks import Full
from posenc_jax.protocol.tokens import Tokens


def check_boxes(boxes: Any) -> None:
    """Refuses boxes that are none. Traced boxes are not checked beyond their shape.

    Args:
      boxes: [..., 4].

    Raises:
      ValueError: another shape; numbers that are not finite or lie outside [0, 1]; a box without
        width or height. The message has the first such box.
    """
    if np.ndim(boxes) < 1 or np.shape(boxes)[-1] != 4:
        raise ValueError(f'boxes are (cx, cy, w, h), [..., 4], got {np.shape(boxes)}')
    if isinstance(boxes, Tracer):
        return
    rows = np.asarray(boxes, np.float64).reshape(-1, 4)
    for wrong, what in (
        (~np.isfinite(rows), 'is not finite'),
        ((rows < 0) | (rows > 1), 'has numbers outside [0, 1], the parts of the image'),
        (rows[:, 2:] <= 0, 'has no width or no height'),
    ):
        if (found := wrong.any(axis=1)).any():
            first = int(np.argmax(found))
            raise ValueError(f'box {first} {what}: {np.float32(rows[first]).tolist()}')


def sine_features(values: Float[Array, '...'], features: int = 128) -> Float[Array, '... F']:
    """`[sin a_0, cos a_0, sin a_1, ...]` with `a_i = 2 pi v / 10000^(2 i / F)`, float32."""
    rates = 2 * np.pi / 10000.0 ** (np.arange(0, features, 2) / features)
    angles = values.astype(jnp.float32)[..., None] * rates.astype(np.float32)
    both = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return both.reshape(*values.shape, features)


def box_features(boxes: Float[Array, '... 4'], features: int = 128) -> Float[Array, '... F']:
    """The sine features of y, x, w and h of boxes, one after the other: 4 times `features`.

    Raises:
      ValueError: an odd number of features; as for `check_boxes`.
    """
    if features < 2 or features % 2:
        raise ValueError(f'features must be even and at least 2, got {features}')
    check_boxes(boxes)
    found = sine_features(boxes[..., jnp.array([1, 0, 2, 3])], features)
    return found.reshape(*boxes.shape[:-1], 4 * features)


def sine_map(rows: int, columns: int, features: int = 128) -> Float[Array, 'rows columns F']:
    """The sine features of y and x at the centres of the cells of an image, 2 times `features`."""
    y = sine_features((jnp.arange(rows) + 0.5) / rows, features)[:, None]
    x = sine_features((jnp.arange(columns) + 0.5) / columns, features)[None]
    size = (rows, columns, features)
    return jnp.concatenate([jnp.broadcast_to(y, size), jnp.broadcast_to(x, size)], axis=-1)


def centerness(size: int) -> Float[Array, '{size} {size}']:
    """`sqrt(min(t, b) / max(t, b) min(l, r) / max(l, r))` of the cells of a grid, with the
    distances of the centre of a cell to the four sides: 1 in the middle of an odd grid.

    Raises:
      ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f'the grid of a box has at least one cell, got {size}')
    near = np.arange(size) + 0.5
    share = np.minimum(near, size - near) / np.maximum(near, size - near)
    return jnp.asarray(np.sqrt(share[:, None] * share), jnp.float32)


def roi_samples(
    image: Float[Array, 'rows columns C'], boxes: Float[Array, 'N 4'], size: int
) -> Float[Array, 'N {size*size} C']:
    """The image at the centres of the size x size cells of each box, row by row, by bilinear
    interpolation between the centres of pixels. Outside of these the nearest one counts.
    """
    cells = (jnp.arange(size) + 0.5) / size - 0.5
    weigh = lambda centre, side, count: _bilinear(centre[:, None] + side[:, None] * cells, count)
    down = weigh(boxes[:, 1], boxes[:, 3], image.shape[0])
    across = weigh(boxes[:, 0], boxes[:, 2], image.shape[1])
    found = jnp.einsum('nyr,nxc,rcd->nyxd', down, across, image.astype(jnp.float32))
    return found.reshape(len(boxes), size * size, -1).astype(image.dtype)


def _bilinear(place: Float[Array, 'N P'], count: int) -> Float[Array, 'N P {count}']:
    """Weights of `count` pixels at places in parts of the side."""
    at = jnp.clip(place * count - 0.5, 0, count - 1)
    return jnp.maximum(0, 1 - jnp.abs(at[..., None] - jnp.arange(count)))


def proposal_attention(
    f: Float[Array, 'B N D'],
    e: Float[Array, 'B N E'] | None,
    content: dict[str, Float[Array, 'D H K']],
    position: dict[str, Float[Array, 'E H K']],
) -> Float[Array, 'B N H K']:
    """The softmax attention of `BoxLayer` over all proposals of an image.

    Args:
      f: proposal features.
      e: encodings of their boxes; None for none.
      content: the maps 'q', 'k' and 'v' of f.
      position: the maps 'q' and 'k' of e.
    """
    project = lambda a, w: jnp.einsum('bnd,dhk->bnhk', a, w)
    q, k, v = (project(f, content[name]) for name in 'qkv')
    if e is not None:
        q, k = q + project(e, position['q']), k + project(e, position['k'])
    proposals = Tokens.of(length=f.shape[1])
    return attend(Full(), q, k, v, proposals, proposals)


def kernel_positions(
    pe: Float[Array, '... F'],
    boxes: Float[Array, '... 4'],
    gate: Float[Array, '... G'],
    ref: Float[Array, '... 2'],
    cen: Float[Array, 'P P'],
) -> Float[Array, '... cells G']:
    """The position of a dynamic kernel at every cell of its box.

    The y and x parts of `pe`, times the gate g(f); the x half is multiplied by `ref_0 / w`, the y
    half by `ref_1 / h`, and all of it by the centerness of the cell.

    Args:
      pe: of `box_features`; its first half, G = F / 2 numbers, is read.
      boxes: (cx, cy, w, h).
      gate: g(f), of the proposal.
      ref: reference width and height of the proposal, in (0, 1).
      cen: of `centerness`.
    """
    y, x = jnp.split(pe[..., : pe.shape[-1] // 2] * gate, 2, axis=-1)
    y = y * ref[..., 1:] / boxes[..., 3:]
    x = x * ref[..., :1] / boxes[..., 2:3]
    return cen.reshape(-1, 1) * jnp.concatenate([y, x], axis=-1)[..., None, :]


def position_term(
    feature: Float[Array, '... cells G'],
    kernel: Float[Array, '... cells G'],
    w_q: Float[Array, 'G A'],
    w_k: Float[Array, 'G A'],
) -> Float[Array, '... cells']:
    """`<Wq fp, Wk kp>` of the positions of features and kernels, a number a cell."""
    return ((feature @ w_q) * (kernel @ w_k)).sum(-1)


def dynamic_convolution(
    roi: Float[Array, '... cells D'],
    kernel: Float[Array, '... D M'],
    term: Float[Array, '... cells'] | None = None,
) -> Float[Array, '... cells M']:
    """`F K + s`: the features of a box times the kernel of its proposal, plus one number a cell in
    all channels. This is one convolution of features and positions joined along the channels, with
    a kernel whose rows of positions are the same for all outputs.
    """
    out = roi @ kernel
    return out if term is None else out + term[..., None]
