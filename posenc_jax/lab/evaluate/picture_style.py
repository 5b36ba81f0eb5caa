"""The style that the pictures of an evaluation share: colours, places, texts and the title."""

import itertools
import textwrap

import numpy as np

from posenc_jax.lab.evaluate.series import depths_of
from posenc_jax.protocol.errors import shortened

# Colours of Okabe and Ito without yellow, which is too light for lines. Where the colours repeat,
# dashes distinguish the lines.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
_DASHES = ('-', '--', ':')
_TITLE_POINTS = 9.0
MOST_BANDS = 3  # more of them cover each other


def annotate(axis, text, point, where, away, **how):
    """Writes a text some points away from a point, given in the coordinates `where`."""
    axis.annotate(text, point, away, where, 'offset points', **how)


def beside(x, number: int, count: int):
    """Places on a logarithmic axis for the bars of one of several lines, so that they do not hide
    each other.
    """
    return np.asarray(x, float) * 2.0 ** (0.12 * ((number + 0.5) / count - 0.5))


def styles():
    styles = itertools.product(_DASHES, zip(COLOURS, _MARKERS))
    for dash, (colour, marker) in itertools.cycle(styles):
        yield {'color': colour, 'marker': marker, 'linestyle': dash}


def set_title(figure, series):
    """Writes what was evaluated above the figure, wrapped to its width."""
    letters = int(figure.get_figwidth() * 72 / (0.65 * _TITLE_POINTS))
    text = '\n'.join(textwrap.wrap(shortened(_title(series), 600), letters))
    figure.suptitle(text, fontsize=_TITLE_POINTS, x=0.01, ha='left', color='0.3')


def _title(series):
    first = series[0].runs[0]
    what = ', '.join(filter(None, (first.task, first.dataset, first.split)))
    several = max(len(s.runs) for s in series)
    if depths_of(series):
        samples = sorted({m.samples for s in series for run in s.runs for m in run.measurements})
        seeds = f', mean of up to {several} runs' if several > 1 else ''
        return f'{what}; answers per cell: {" or ".join(map(str, samples))}{seeds}'
    alone = [s.runs[0] for s in series if len(s.runs) == 1]
    found = (m.spread for run in alone for m in run.measurements)
    around = [*dict.fromkeys(filter(None, found))]
    around += ['smallest to largest of several runs'] if several > 1 else []
    drawn = 'band' if len(series) <= MOST_BANDS else 'bars'
    return f'{what}; {drawn}: {", or ".join(around)}' if around else what
