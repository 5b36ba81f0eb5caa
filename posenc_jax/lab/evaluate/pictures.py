"""Pictures of an evaluation: metric by length, perplexity by position, exact match by length and
depth. The trained length is marked.
"""

import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np

from posenc_jax.lab.evaluate import depth_pictures
from posenc_jax.lab.evaluate.measurement import BY_PLANE, is_of_points, is_share
from posenc_jax.lab.evaluate.picture_style import MOST_BANDS, annotate, beside, set_title, styles
from posenc_jax.lab.evaluate.series import Series, depths_of, of_tables, scored, unit
from posenc_jax.lab.files import disk
from posenc_jax.protocol.errors import shortened

_LINE_POINTS = 11.0
_LETTERS = 48  # of a line of a name beside a curve


def write(
    series: Sequence[Series], protocols: Sequence[str], directory: pathlib.Path
) -> list[pathlib.Path]:
    """Writes by_length.png, by_position.png if positions were measured, and by_depth.png for series
    with depths.

    Args:
      series: what is drawn, a line or heat map for each.
      protocols: the protocols that were measured.
      directory: the folder of the pictures.

    Returns:
      The paths of the pictures.
    """
    deep = [s for s in series if depths_of([s])]
    if deep:
        written = [depth_pictures.write(deep, directory / 'by_depth.png')]
        rest = [s for s in series if s not in deep]
        return written + (write(rest, protocols, directory) if rest else [])
    panels = [p for p in protocols if p not in ('per_position', BY_PLANE, 'lossless')]
    positions = [p for p in protocols if p == 'per_position']
    written = []
    for name, names, draw in (
        ('by_length.png', panels, _draw_length),
        ('by_position.png', positions, _draw_position),
    ):
        if names:
            written.append(directory / name)
            disk.save_figure(_lines(series, names, draw), written[-1], dpi=160)
    return written


def _lines(series, protocols, draw):
    """The figure of a panel for each protocol, with the names of the lines beside the last one."""
    from matplotlib.figure import Figure

    wide = (4.0 if len(protocols) > 1 else 6.0) * len(protocols)
    names = [line for s in series for line in _name(s.label).split('\n')]
    beside = 0.075 * max(map(len, names)) + 0.3
    # Tall enough for the names beside the lines; otherwise they would overlap.
    high = max(4.2, len(names) * _LINE_POINTS / 72 + 1.2)
    figure = Figure(figsize=(wide + beside, high), layout='constrained')
    axes = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, protocols):
        draw(axis, name, series)
    if draw is _draw_length:
        _draw_tables(axes[0], of_tables(series))
    for axis, name in zip(axes, protocols):  # after all are drawn, since panels share a y axis
        _finish(axis, name, series)
    axes[0].set_ylabel(_metric(protocols))
    _label_lines(figure, axes[-1])
    set_title(figure, series)
    return figure


def _metric(protocols) -> str:
    """What the shared y axis shows."""
    if protocols[0].startswith('psnr'):
        return 'PSNR, decibels'
    if not is_share(protocols[0]):
        return 'perplexity'
    return protocols[0].replace('_', ' ') if len(protocols) == 1 else 'share that is correct'


def _draw_length(axis, protocol, series):
    for number, (style, s) in enumerate(zip(styles(), series)):
        estimates = s.estimates(protocol)
        lengths = sorted(length for length, _ in estimates)
        if not lengths:
            continue
        found = [estimates[length, None] for length in lengths]
        _line(axis, lengths, found, s.label, style, (number, len(series)))
    runs = [run for s in series for run in s.runs]
    counted = {run.counted for run in runs} - {''}
    usual = 'resolution' if is_of_points(protocol) else 'length'
    axis.set_xlabel(counted.pop() if len(counted) == 1 else usual)
    axis.set_xscale('log', base=2)
    shown = sorted({length for s in series for length, _ in s.estimates(protocol)})
    for chance in {run.chance for run in runs} - {None} if protocol == 'exact_match' else ():
        # Curves may run along this line, so its name stands between their last two points.
        _level(axis, chance, f'chance {chance:.3g}', (shown[-2:][0] * shown[-1]) ** 0.5)
    axis.set_xticks(shown, [str(length) for length in shown], rotation=0 if len(shown) < 7 else 45)
    axis.minorticks_off()


def _draw_tables(axis, of_ngrams):
    """Lines at the perplexity of tables of n-grams, which were measured on the same tokens."""
    for order, value in of_ngrams.items():
        _level(axis, value, f'table of {order}-grams')


def _level(axis, value, name, x=None):
    """A dotted line at a value that every curve can be compared with. Its name stands at `x` on a
    white ground, or, for None, at the right end above the line.
    """
    axis.axhline(value, color='0.55', linestyle=(0, (1, 2)), linewidth=1.2, label='_table')
    how = dict(fontsize=7.5, color='0.4')
    if x is None:
        annotate(axis, name, (1, value), ('axes fraction', 'data'), (-2, 2), ha='right', **how)
    else:
        ground = dict(facecolor='w', edgecolor='none', pad=1.5)
        annotate(
            axis, name, (x, value), 'data', (0, 0), ha='center', va='center', bbox=ground, **how
        )


def _draw_position(axis, protocol, series):
    windows = sorted({length for s in series for length, _ in s.estimates(protocol)})
    for number, (style, s) in enumerate(zip(styles(), series)):
        buckets = {m.position_low: m for m in s.runs[0].measurements if m.protocol == protocol}
        estimates = {low: e for (_, low), e in s.estimates(protocol).items()}
        if not (lows := sorted(estimates)):
            continue
        # The geometric mean of the edges of a bucket. Positions count from 1, because the axis is
        # logarithmic.
        middle = [((low + 1) * buckets[low].position_high) ** 0.5 for low in lows]
        found = [estimates[low] for low in lows]
        _line(axis, middle, found, s.label, style, (number, len(series)))
    axis.set_xlabel(f'position in windows of {" and ".join(map(str, windows))}')
    axis.set_xscale('log', base=2)
    axis.xaxis.set_major_formatter(lambda x, _: f'{x:g}')


def _line(axis, x, found, label, style, place):
    number, count = place
    x = beside(x, number, count) if count > MOST_BANDS else x
    y, low, high = np.array([[e.value, e.low, e.high] for e in found], float).T  # None becomes nan
    y[~np.isfinite(y)] = np.nan  # a perplexity that overflows is not drawn
    high[~np.isfinite(high)] = np.nan
    axis.plot(x, y, label=_name(label), markersize=4, linewidth=1.6, **style)
    if count <= MOST_BANDS:
        axis.fill_between(x, low, high, color=style['color'], alpha=0.15, linewidth=0)
    else:
        axis.vlines(x, low, high, color=style['color'], linewidth=1.1)


def _finish(axis, protocol, series):
    if is_share(protocol):
        axis.set_ylim(-0.03, 1.03)
    elif is_of_points(protocol):
        pass  # decibels are a logarithm already
    elif any(np.isfinite(line.get_ydata()).any() for line in axis.get_lines()):
        _log_scale(axis)
    _mark_trained(axis, sorted({s.train_length for s in series}))
    counted = scored([run for s in series for run in s.runs], protocol)
    axis.set_title(f'{protocol.replace("_", " ")}\n{counted} {unit(protocol)}', fontsize=10)
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(axis='y', color='0.92', linewidth=0.8)
    axis.set_axisbelow(True)


def _mark_trained(axis, lengths):
    """A dashed line at each trained length, with its number above the panel, where no curve is.
    Lengths that are less than twice the one before share a label.
    """
    for length in lengths:
        axis.axvline(length, color='0.4', linestyle='--', linewidth=1, zorder=0)
    groups = []
    for length in lengths:
        if groups and length < 2 * groups[-1][-1]:
            groups[-1].append(length)
        else:
            groups.append([length])
    above = axis.secondary_xaxis('top')
    names = [f'trained: {", ".join(map(str, own))}' for own in groups]
    middle = [(own[0] * own[-1]) ** 0.5 for own in groups]
    turned = 30 if len(groups) > 2 else 0
    above.set_xticks(middle, names, fontsize=8, color='0.4', rotation=turned)
    above.minorticks_off()
    above.tick_params(length=0, pad=1)
    above.spines['top'].set_visible(False)


def _log_scale(axis):
    """Makes the y axis logarithmic, with ticks at round numbers even where it spans little."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axis.set_yscale('log')
    low, high = axis.get_ylim()
    if high / low < 4:
        axis.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    else:
        subs = (1, 2, 3, 5, 7) if high / low < 40 else (1, 2, 5)
        axis.yaxis.set_major_locator(LogLocator(10, subs=subs, numticks=20))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f'{value:g}')


def _name(label: str) -> str:
    """A name in lines that fit beside the curves; a very long one loses its middle."""
    return '\n'.join(textwrap.wrap(shortened(label, 2 * _LETTERS), _LETTERS))


def _label_lines(figure, axis):
    """Writes the name of each line beside its end; names that would overlap are moved apart."""
    named = [line for line in axis.get_lines() if not line.get_label().startswith('_')]
    lines = [line for line in named if np.isfinite(line.get_ydata()).any()]
    points = [line.get_xydata()[np.isfinite(line.get_ydata())][-1] for line in lines]
    disk.show_letters(figure)
    figure.canvas.draw()
    scale = figure.dpi / 72
    heights = [_LINE_POINTS * scale * (line.get_label().count('\n') + 1) for line in lines]
    ends = [axis.transData.transform(point) for point in points]
    order = sorted(range(len(lines)), key=lambda i: ends[i][1])
    places = _spread([ends[i][1] for i in order], [heights[i] for i in order])
    right = axis.transAxes.transform((1, 0))[0]
    for i, place in zip(order, places):
        away = (right - ends[i][0]) / scale + 8, (place - ends[i][1]) / scale
        colour, name = dict(color=lines[i].get_color()), lines[i].get_label()
        arrow = dict(arrowstyle='-', relpos=(0, 0.5), linewidth=0.6, shrinkA=0, shrinkB=2)
        how = dict(va='center', fontsize=9, annotation_clip=False, arrowprops=arrow | colour)
        annotate(axis, name, points[i], 'data', away, **how, **colour)


def _spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """The middles of labels of these heights that do not overlap, in ascending order and close to
    the wanted ones. Labels that would overlap form a cluster, which is laid out around its mean.
    """

    def ends(cluster):
        middle = sum(wanted[i] for i in cluster) / len(cluster)
        half = sum(heights[i] for i in cluster) / 2
        return middle - half, middle + half

    clusters: list[list[int]] = []
    for label in range(len(wanted)):
        clusters.append([label])
        while len(clusters) > 1 and ends(clusters[-1])[0] < ends(clusters[-2])[1]:
            last = clusters.pop()
            clusters[-1] += last
    places = []
    for cluster in clusters:
        low = ends(cluster)[0]
        for label in cluster:
            places.append(low + heights[label] / 2)
            low += heights[label]
    return places
