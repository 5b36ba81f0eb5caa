"""Positions (t, h, w) of text, pictures and videos in one sequence: the designs, and where the text
goes on behind a picture.

Text tokens have three equal components. `o` is the position that a token would get if it were text;
f, r and c are the frame, the row and the column of a token of a picture or a video, which has R
rows and C columns.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.methods.visual_layout import COMPONENTS
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.length import document_max

TOLD = len(COMPONENTS)


class Cell(NamedTuple):
    """What a design reads of the tokens, each [#B, L].

    Attributes:
      time: the distance in time from the first frame, `s f`.
      row, column: r and c.
      rows, columns: R and C; 0 for text.
    """

    time: Num[Array, '#B L']
    row: Int[Array, '#B L']
    column: Int[Array, '#B L']
    rows: Int[Array, '#B L']
    columns: Int[Array, '#B L']


class Placed(NamedTuple):
    """What a design gives the tokens of pictures and videos.

    Attributes:
      offset: (t, h, w), less o in the components that are `anchored`.
      reach: text goes on at o + 1 + the largest of these of a picture or a video.
      anchored: the components to which o is added.
    """

    offset: Num[Array, '#B L 3']
    reach: Num[Array, '#B L']
    anchored: tuple[int, int, int] = (1, 1, 1)


Design = Callable[[Cell], Placed]


def _three(*parts: Any) -> Array:
    return jnp.stack(jnp.broadcast_arrays(*parts), axis=-1)


def aligned(cell: Cell) -> Placed:
    """`(o + s f, o + r, o + c)`; text goes on behind the largest of all components."""
    offset = _three(cell.time, cell.row, cell.column)
    return Placed(offset, offset.max(-1))


def spatial_reset(cell: Cell) -> Placed:
    """`(o + s f, r, c)`; text goes on where it would without the reset."""
    return aligned(cell)._replace(anchored=(1, 0, 0))


def diagonal(cell: Cell) -> Placed:
    """`t = o + s f`, `h = t + r - floor((R-1)/2)`, `w = t + c - floor((C-1)/2)`; text goes on
    behind the largest t.
    """
    centred = lambda place, count: cell.time + place - (count - 1) // 2
    rows, columns = centred(cell.row, cell.rows), centred(cell.column, cell.columns)
    return Placed(_three(cell.time, rows, columns), cell.time)


def circlerope_offset(
    row: Int[Array, '#B L'],
    column: Int[Array, '#B L'],
    rows: Int[Array, '#B L'],
    columns: Int[Array, '#B L'],
    *,
    alpha: float = 0.5,
    radius: float = 10.0,
    auto: bool = False,
    move_to_origin: bool = True,
    dff_rate: float = 0.0,
) -> Float[Array, '#B L 3']:
    """Where the cells of a picture lie on a circle around the line of text, in the plane in which
    t + h + w is 0: (t, h, w), float32.

    `(w, h, t) = radius (cos(theta) (-1, 1, 0) / sqrt 2 + sin(theta) (-1, -1, 2) / sqrt 6)`.

    Args:
      row, column: r and c of a cell.
      rows, columns: R and C of its picture; 0 counts as 1.
      alpha, radius, auto, move_to_origin, dff_rate: `CircleRoPE` explains them.

    Reference: Wang, Guo, Li, Tian, Nie, Xu, Han, arXiv 2505.16416.

    Example:
      >>> cells = jnp.array([[0, 0, 1, 1]]), jnp.array([[0, 1, 0, 1]])
      >>> size = jnp.full((2, 1, 4), 2)
      >>> offset = circlerope_offset(*cells, *size)
      >>> jnp.linalg.norm(offset, axis=-1).round(3).tolist()
      [[10.0, 10.0, 10.0, 10.0]]
    """
    rows, columns = (jnp.maximum(n, 1) for n in (rows, columns))
    at = lambda n: n.astype(jnp.float32)
    right, down = at(columns - 1), at(rows - 1)
    if move_to_origin:
        x, y = at(column) - right / 2, at(row) - down / 2
        left = jnp.where(columns > 1, -right / 2, 0.0)  # not -0, whose angle is pi
        # Where the angles of the cells are largest and smallest: on the left, in the rows that are
        # nearest to the middle one; in one column at its ends.
        near = jnp.where(rows % 2 == 0, 0.5, 0.0)
        above = jnp.where(rows % 2 == 0, -0.5, -1.0)
        high = jnp.maximum(jnp.arctan2(near, left), jnp.arctan2(down / 2, left))
        low = jnp.where(rows > 1, jnp.arctan2(above, left), 0.0)
        largest = jnp.maximum(right, down) / 2
    else:
        x, y = at(column), at(row)
        high, low = jnp.where(rows > 1, math.pi / 2, 0.0), jnp.zeros(())
        largest = jnp.maximum(right, down)
    angle, span = jnp.arctan2(y, x), high - low
    own = jnp.where(span > 0, 2 * math.pi * (angle - low) / jnp.where(span > 0, span, 1.0), angle)
    order = 2 * math.pi * at(row * columns + column) / at(rows * columns)
    theta = alpha * own + (1 - alpha) * order
    size = radius * largest if auto else radius
    on = lambda turned, straight: (1 - dff_rate) * size * turned + dff_rate * straight
    p, q = on(jnp.cos(theta), x), on(jnp.sin(theta), y)
    # The axes of the plane in the order (w, h, t): (-1, 1, 0) / sqrt 2 and (-1, -1, 2) / sqrt 6.
    across, along = p / math.sqrt(2), q / math.sqrt(6)
    return _three(2 * along, across - along, -across - along)


def circle(cell: Cell, **options: Any) -> Placed:
    """(o, o, o) + `circlerope_offset`. A frame f has the circle of a picture, moved by s f in all
    components. Text goes on behind the largest of all components.
    """
    offset = cell.time[..., None] + circlerope_offset(*cell[1:], **options)
    return Placed(offset, offset.max(-1))


DESIGNS: dict[str, Design] = {
    'mrope': aligned,
    'spatial_reset': spatial_reset,
    'diagonal': diagonal,
    'circle': circle,
}


def visual_ids(
    layout: Num[Array, '#B L P'],
    design: Design | str = 'mrope',
    stride: float | Float[Array, '#B #L'] = 1.0,
    tokens_per_second: float | None = None,
    first: Bool[Array, '#B L'] | None = None,
    valid: Bool[Array, '#B L'] | None = None,
) -> Num[Array, '#B L 3']:
    """Positions (t, h, w) of tokens of which `visual_layout` says what they are.

    No position depends on later tokens. They are integers if the layout and the design have
    integers and the stride is a whole number, else float32.

    Args:
      layout: see `visual_layout`; the count may start anywhere.
      design: 'mrope' `(o + s f, o + r, o + c)`; 'spatial_reset' `(o + s f, r, c)`; 'diagonal', that
        of `videorope`; 'circle', that of `circlerope`; or a function like those in `DESIGNS`.
      stride: s, the distance of two frames in time; where it differs between tokens, a picture or a
        video takes that of its first token.
      tokens_per_second: where it is given and a video has seconds, the distance of frame f is
        `floor(f seconds tokens_per_second)` instead.
      first: the first tokens of documents; None for the first of the row.
      valid: False for padding, which takes part in no picture.

    Raises:
      SpecError: an unknown design.

    Example:
      >>> from posenc_jax.methods.visual_layout import visual_layout
      >>> visual_ids(jnp.asarray(visual_layout(1, (1, 2), 1))[None], 'mrope')[0].tolist()
      [[0, 0, 0], [1, 1, 1], [1, 1, 2], [3, 3, 3]]
    """
    if isinstance(design, str):
        design = DESIGNS[check_choice('visual_ids design', design, DESIGNS)]
    whole = [layout[..., n].astype(jnp.int32) for n in range(TOLD)]
    count, frame, row, column, rows, columns = whole
    index = jnp.arange(count.shape[1], dtype=jnp.int32)[None]
    visual, first = jnp.broadcast_arrays(rows > 0, index == 0 if first is None else first)
    if valid is not None:
        visual, first, valid = jnp.broadcast_arrays(visual, first, valid)
        visual = visual & valid
    latest = lambda flags: jax.lax.cummax(jnp.where(flags, index, 0), axis=1)
    before = lambda a: jnp.pad(a[:, :-1], ((0, 0), (1, 0)))

    def at(a, places):
        return jnp.take_along_axis(*_same_rows(a, places), axis=1)

    corner = (frame == 0) & (row == 0) & (column == 0)
    begins = visual & (first | corner | ~before(visual))
    # Numbers of what cannot be cut: a picture, a video, or a token of text.
    number, entry = jnp.cumsum(begins | ~visual, axis=1), latest(begins)
    if not isinstance(stride, int | float):
        stride = at(jnp.broadcast_to(stride, (len(stride), index.shape[1])), entry)
    time = _times(layout, frame, stride, tokens_per_second)
    placed = design(Cell(time, row, column, rows, columns))

    largest = document_max(jnp.where(visual, placed.reach, 0), number)
    last = jnp.floor(largest).astype(jnp.int32)
    ended = before(visual) & (begins | ~visual)
    saved = lambda a: jnp.cumsum(jnp.where(ended, before(a), 0), axis=1)
    since = lambda a: a - at(a, latest(first))  # in the document
    o = count - since(saved(count - at(count, entry) - last))
    if jnp.issubdtype(largest.dtype, jnp.floating):
        # Whole numbers and fractions are summed apart, so that the sums stay exact for longer.
        o = o + since(saved(largest - last))
    start = jnp.where(visual, at(o, entry), o)[..., None]
    anchored = jnp.asarray(placed.anchored)
    return jnp.where(visual[..., None], anchored * start + placed.offset, start)


def _same_rows(*arrays: Array) -> list[Array]:
    """Arrays [#B, L] with the same number of rows."""
    rows = max(map(len, arrays))
    return [jnp.broadcast_to(a, (rows, *a.shape[1:])) for a in arrays]


def _times(layout, frame, stride, tokens_per_second):
    if isinstance(stride, int | float) and float(stride).is_integer():
        time = frame * int(stride)
    else:
        time = frame.astype(jnp.float32) * stride
    if tokens_per_second is None or layout.shape[-1] == TOLD:
        return time
    seconds = layout[..., TOLD]
    timed = jnp.floor(frame * seconds * np.float32(tokens_per_second))
    return jnp.where(seconds > 0, timed, time)


def check_layout(user: str, layout: Any) -> None:
    """Refuses positions that are no `visual_layout`, as far as they are known.

    Raises:
      ValueError: another number of components, fractions other than seconds, negative numbers,
        seconds that are not finite, or a cell beyond its picture.

    Example:
      >>> check_layout('this', np.array([[[0, 0, 2, 0, 2, 1]]]))
      Traceback (most recent call last):
      ValueError: this: row 2 of a token whose picture has 2 rows; the first is 0
    """
    shape = layout.shape
    if len(shape) != 3 or shape[2] not in (TOLD, TOLD + 1):
        raise ValueError(
            f'{user} needs positions [B, L], all text, [B, L, 3], (t, h, w), or those of '
            f'visual_layout, {TOLD} or {TOLD + 1} components, got {shape}'
        )
    if isinstance(layout, Tracer):
        return
    known = np.asarray(layout)
    if (fractions := known[..., :TOLD] % 1).any():
        name = COMPONENTS[int(np.argmax(fractions.reshape(-1, TOLD).any(0)))]
        raise ValueError(f'{user}: the {name} of a token must be a whole number')
    if not np.isfinite(known[..., TOLD:]).all():
        raise ValueError(f'{user}: the seconds of a frame must be finite; 0 is for none')
    parts = dict(zip((*COMPONENTS, 'seconds'), np.moveaxis(known, -1, 0)))
    for name, part in parts.items():
        if name != 'count' and (part < 0).any():
            raise ValueError(f'{user}: the {name} of a token is {part.min():g}; 0 is the least')
    for name, size in (('row', 'rows'), ('column', 'columns')):
        beyond = (parts[name] >= parts[size]) & ((parts['rows'] > 0) | (parts[name] > 0))
        if beyond.any():
            place, count = int(parts[name][beyond][0]), int(parts[size][beyond][0])
            raise ValueError(
                f'{user}: {name} {place} of a token whose picture has {count} {size}; the first '
                'is 0'
            )
