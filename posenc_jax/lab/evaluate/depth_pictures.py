"""The picture of answers by length and depth."""

import bisect
import textwrap

import numpy as np

from posenc_jax.lab.evaluate.picture_style import COLOURS, annotate, set_title
from posenc_jax.lab.evaluate.series import depths_of
from posenc_jax.lab.files import disk
from posenc_jax.protocol.errors import shortened


def write(series, path):
    """Draws a heat map of exact match for each series: length to the right, depth downwards as in
    the text.
    """
    from matplotlib.figure import Figure

    lengths = sorted({m.length for s in series for m in s.runs[0].measurements})
    depths, columns = depths_of(series), min(len(series), 3)
    rows = -(-len(series) // columns)
    wide, high = max(3.0, 0.62 * len(lengths) + 0.8), max(2.2, 0.36 * len(depths) + 1.4)
    figure = Figure(figsize=(wide * columns + 1.2, high * rows + 0.5), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(series) :]:
        axis.set_visible(False)
    for axis, s in zip(axes.flat, series):
        image = _draw_depth(axis, s, lengths, depths)
        name = textwrap.wrap(shortened(s.label, 200), int(wide * 72 / 5.5))
        axis.set_title('\n'.join(name), fontsize=10, pad=14)
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel('depth of the answer')
    figure.supxlabel('length', fontsize=10)
    figure.colorbar(image, ax=axes, label='exact match', pad=0.02)
    set_title(figure, series)
    disk.save_figure(figure, path, dpi=160)
    return path


def _draw_depth(axis, series, lengths, depths):
    estimates = series.estimates('exact_match')
    of = lambda cell: estimates[cell].value if cell in estimates else np.nan
    values = np.array([[of((n, d)) for n in lengths] for d in depths])
    image = axis.imshow(values, cmap='cividis', vmin=0, vmax=1, aspect='auto')
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            how = dict(ha='center', va='center', fontsize=8, color='w' if value < 0.55 else 'k')
            axis.text(column, row, f'{value:.2f}', **how)
    rotation = 0 if len(lengths) < 7 else 45
    axis.set_xticks(range(len(lengths)), [str(n) for n in lengths], rotation=rotation)
    axis.set_yticks(range(len(depths)), [f'{d:g}' for d in depths])
    axis.set_xticks(np.arange(1, len(lengths)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(depths)) - 0.5, minor=True)
    axis.tick_params(which='minor', length=0)
    axis.grid(which='minor', color='w', linewidth=1)
    # The columns to the right of this line are longer than the trained length.
    trained = bisect.bisect_right(lengths, series.train_length) - 0.5
    label, side = f'trained: {series.train_length}', 'center'
    if series.train_length < lengths[0]:
        label, side = f'\N{LEFTWARDS ARROW} {label}', 'left'
    elif series.train_length > lengths[-1]:
        label, side = f'{label} \N{RIGHTWARDS ARROW}', 'right'
    elif trained > len(lengths) - 1:
        side = 'right'
    axis.axvline(trained, color=COLOURS[1], linestyle='--', linewidth=1.8)
    how = dict(ha=side, va='bottom', fontsize=8, color=COLOURS[1])
    annotate(axis, label, (trained, 1), ('data', 'axes fraction'), (0, 3), **how)
    return image
