"""The result of an analysis as it is shown: a table, a file of its numbers, a picture."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from posenc_jax.lab.files import disk

LINES = 8  # the most lines, or models, of a picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """A table, numbers and a picture of one analysis; it may have only some of them.

    Attributes:
      key: name of the analysis, and of its files.
      columns: heads of the table.
      rows: its rows; floats are shown with four significant digits, None as '-'.
      numbers: what KEY.json holds; arrays become lists.
      arrays: what KEY.npz holds.
      draw: draws on a figure of matplotlib.
      title: above the picture.
      size: of the figure, inches.
      remarks: lines below the table.
    """

    key: str
    draw: Callable[[Any], None]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    title: str = ''
    size: tuple[float, float] = (5.4, 3.4)
    remarks: Sequence[str] = ()

    def text(self) -> str:
        """The table and the remarks.

        Example:
          >>> rows = [(0, 16.0), (1, None)]
          >>> print(Report(key='a', draw=print, columns=('layer', 'mae'), rows=rows).text())
          layer  mae
              0   16
              1    -
        """
        if not self.columns:
            return '\n'.join(self.remarks)
        cells = [tuple(self.columns), *(tuple(map(_shown, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        numeric = [
            all(not isinstance(row[i], str) for row in self.rows) for i in range(len(widths))
        ]
        place = lambda cell, width, right: cell.rjust(width) if right else cell.ljust(width)
        lines = ['  '.join(map(place, row, widths, numeric)).rstrip() for row in cells]
        return '\n'.join([*lines, *self.remarks])

    def write(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Writes KEY.json or KEY.npz, if there are such numbers, and KEY.png; needs matplotlib."""
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        written, file = [], lambda ending: folder / f'{self.key}.{ending}'
        if self.numbers:
            written.append(file('json'))
            content = {'analysis': self.key, **{k: plain(v) for k, v in self.numbers.items()}}
            disk.write(written[-1], json.dumps(content, indent=1) + '\n')
        if self.arrays:
            written.append(file('npz'))
            disk.save_arrays(written[-1], **self.arrays)
        figure = Figure(figsize=self.size, layout=ConstrainedLayoutEngine(w_pad=0.08))
        self.draw(figure)
        figure.suptitle(self.title, fontsize=10)
        disk.save_figure(figure, file('png'), dpi=150)
        return [*written, file('png')]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, float | np.floating) and math.isnan(value):
        return '-'
    return f'{value:.4g}' if isinstance(value, float | np.floating) else str(value)


def plain(value: Any) -> Any:
    """A value as JSON has it: lists for arrays, six significant digits, None for what is not
    finite.

    Example:
      >>> plain({'a': np.array([1 / 3, np.nan]), 'b': (1, 'x')})
      {'a': [0.333333, None], 'b': [1, 'x']}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(one) for one in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, float | np.floating):
        return float(f'{value:.6g}') if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def by_layer(axis: Any, found: Mapping[str, np.ndarray], *, first: int, label: str) -> None:
    """A line for each entry of `few(found)`, its values over the layers from `first` on; layer 0 is
    the embedding.
    """
    for name, values in few(found).items():
        axis.plot(
            np.arange(first, first + len(values)), values, marker='o', markersize=3, label=name
        )
    axis.set(xlabel='layer' if first else 'layer (0: the embedding)', ylabel=label)
    whole_numbers(axis.xaxis)
    small_legend(axis)


def few(found: Mapping[str, Any]) -> dict[str, Any]:
    """At most eight entries, evenly spread, with both ends: as many as a picture can show.

    Example:
      >>> list(few(dict.fromkeys('abcdefghij')))
      ['a', 'b', 'd', 'e', 'f', 'g', 'i', 'j']
    """
    names = list(found)
    return {names[at]: found[names[at]] for at in some(len(names), LINES)}


def whole_numbers(*axes: Any) -> None:
    """Labels the x or y axes of matplotlib with whole numbers alone."""
    for axis in axes:
        axis.get_major_locator().set_params(integer=True)


def small_legend(axis: Any, **options: Any) -> None:
    """A legend without a frame, in small letters."""
    axis.legend(frameon=False, fontsize=7, **options)


def tick_counts(axis: Any, counts: np.ndarray) -> None:
    """Labels a logarithmic axis of counts with the counts themselves, at most seven of them; see
    also `doublings`.
    """
    shown = [int(counts[at]) for at in some(len(counts), 7)]
    axis.set_xticks(shown, [str(count) for count in shown])
    axis.set_xticks([], minor=True)


def doublings(most: int) -> np.ndarray:
    """1, 2, 4, ... up to `most`, the counts that label a logarithmic axis.

    Example:
      >>> doublings(9).tolist()
      [1, 2, 4, 8]
    """
    return 2 ** np.arange(most.bit_length())


def some(count: int, most: int) -> list[int]:
    """At most `most` numbers from 0 to count - 1, evenly spread, with both ends.

    Example:
      >>> some(31, 4)
      [0, 10, 20, 30]
    """
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def draw_planes(
    axis: Any,
    values: Float[np.ndarray, 'layers N F'],
    *,
    label: str,
    low: float | None = 0.0,
    first: int = 0,
) -> None:
    """Draws a heat map with a row for each head of each layer and a column for each plane.

    Args:
      axis: of matplotlib.
      values: one number for each layer, head and plane.
      label: of the colour bar.
      low: value at the lower end of the colours; None for the smallest of `values`.
      first: number of the first layer.
    """
    layers, heads, count = values.shape
    image = axis.imshow(
        values.reshape(-1, count), aspect='auto', interpolation='nearest', cmap='viridis', vmin=low
    )
    shown = some(layers, 16)
    places = [(layer + 0.5) * heads - 0.5 for layer in shown]
    axis.set_yticks(places, [str(first + layer) for layer in shown], fontsize=7)
    axis.hlines(
        np.arange(1, layers) * heads - 0.5, -0.5, count - 0.5, colors='white', linewidth=0.6
    )
    whole_numbers(axis.xaxis)
    axis.set_xlabel('plane (high to low frequency)')
    axis.set_ylabel(f'layer, {heads} heads each')
    axis.figure.colorbar(image, ax=axis, label=label)


def planes_size(shape: tuple[int, ...]) -> tuple[float, float]:
    """Inches of the picture that `draw_planes` makes of [layers, N, F] values."""
    layers, heads, count = shape
    return 2.0 + 0.12 * max(count, 20), min(1.6 + 0.12 * max(layers * heads, 10), 12.0)
