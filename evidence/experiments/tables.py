"""A table of means over seeds for small experiments, as text, a csv file and a picture."""

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from evidence.experiments.runs import full_disk_in_one_line
from posenc_jax.lab.files import disk

COLUMNS = 4  # most panels side by side in a picture


@full_disk_in_one_line()
def report(
    rows: Iterable[tuple[str, str, float, int, float]],
    out: pathlib.Path,
    *,
    title: str,
    x: str,
    value: str,
    log: bool = False,
    trained: float | None = None,
    repeats: str = 'seeds',
) -> None:
    """Prints the mean over seeds of every variant at every x, with the lowest and highest seed
    where there are several. Also writes results.csv and results.png to `out`.

    Args:
      rows: (panel, variant, x, seed, value).
      out: the folder of the files.
      title, x, value: words for the table, the axis and the column.
      log: whether the picture shows values on a logarithmic axis.
      trained: largest x of the training data, marked in the picture; None marks none.
      repeats: what the numbers in the place of seeds count.
    """
    from rich.console import Console
    from rich.table import Table

    rows, out = list(rows), pathlib.Path(out)
    table = io.StringIO(newline='')
    csv.writer(table).writerows([('task', 'variant', x, 'seed', value), *rows])
    disk.write(out / 'results.csv', table.getvalue())
    panels = list(dict.fromkeys(row[0] for row in rows))
    several = len({row[3] for row in rows}) > 1
    spread = f', mean (lowest - highest of the {repeats})' if several else ''
    cell = lambda found: (
        f'{np.mean(found):.3g}' + f' ({min(found):.3g} - {max(found):.3g})' * several
    )
    for panel in panels:
        here = [row for row in rows if row[0] == panel]
        places = sorted({row[2] for row in here})
        table = Table(title=f'{title}, {panel}: {value} by {x}{spread}', title_justify='left')
        for name in ('variant', *(f'{place:g}' for place in places)):
            table.add_column(name, justify='left' if name == 'variant' else 'right')
        for variant in dict.fromkeys(row[1] for row in here):
            cells = [
                [row[4] for row in here if row[1] == variant and row[2] == place]
                for place in places
            ]
            table.add_row(variant, *(cell(found) if found else '' for found in cells))
        Console(width=60 + (24 if several else 10) * len(places)).print(table)
    _draw(rows, panels, out / 'results.png', title, x, value, log, trained)


def _draw(rows, panels: Sequence[str], path, title, x, value, log, trained):
    from matplotlib.figure import Figure

    columns = min(len(panels), COLUMNS)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 1.4, 4.0 * lines), layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    variants, shown = list(dict.fromkeys(row[1] for row in rows)), {}
    for axis, panel in zip(axes, panels):
        here = [row for row in rows if row[0] == panel]
        for variant in dict.fromkeys(row[1] for row in here):
            # The same look in all panels, some of which may lack a variant.
            number = variants.index(variant)
            places = sorted({row[2] for row in here if row[1] == variant})
            cells = [
                [row[4] for row in here if row[1] == variant and row[2] == place]
                for place in places
            ]
            marker, colour = 'os^DvPX*<>'[number % 10], f'C{number % 10}'
            (shown[variant],) = axis.plot(
                places, [np.mean(c) for c in cells], marker=marker, color=colour
            )
            axis.fill_between(
                places,
                [min(c) for c in cells],
                [max(c) for c in cells],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        if trained is not None:
            axis.axvline(trained, color='0.4', linestyle='--', linewidth=1)
        axis.set(title=panel, xlabel=x, ylabel=value, yscale='log' if log else 'linear')
        axis.spines[['top', 'right']].set_visible(False)
    axis.legend(
        shown.values(),
        shown.keys(),
        frameon=False,
        fontsize=8,
        loc='center left',
        bbox_to_anchor=(1.0, 0.5),
    )
    figure.suptitle(title, fontsize=10)
    disk.save_figure(figure, path, dpi=160)
