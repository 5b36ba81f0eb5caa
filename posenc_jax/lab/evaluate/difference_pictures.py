"""The picture of paired differences: what every series loses more than the first one on the same
tokens, by length.
"""

import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np

from posenc_jax.lab.evaluate.differences import Difference
from posenc_jax.lab.evaluate.measurement import spread_name
from posenc_jax.lab.evaluate.picture_style import beside, styles
from posenc_jax.lab.files import disk
from posenc_jax.protocol.errors import shortened


def write(found: Sequence[Difference], directory: pathlib.Path) -> list[pathlib.Path]:
    """Writes differences.png, with a panel for each protocol; returns its path, or nothing where
    there are no differences.
    """
    if not found:
        return []
    path = directory / 'differences.png'
    disk.save_figure(_figure(found), path, dpi=160)
    return [path]


def _figure(found: Sequence[Difference]):
    from matplotlib.figure import Figure

    protocols = list(dict.fromkeys(d.protocol for d in found))
    labels = list(dict.fromkeys(d.label for d in found))
    figure = Figure((3.6 * len(protocols) + 1.2, 3.8 + 0.06 * len(labels)), layout='constrained')
    axes = figure.subplots(1, len(protocols), sharey=True, squeeze=False)[0]
    for axis, protocol in zip(axes, protocols):
        own = [d for d in found if d.protocol == protocol]
        _draw(axis, own, labels)
        axis.set_title(protocol.replace('_', ' '), fontsize=10)
    above = '\n'.join(textwrap.wrap(shortened(found[0].against, 80), 34))
    axes[0].set_ylabel(f'nats a token above\n{above}')
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc='outside lower left', fontsize=9, ncols=3
    )
    spreads = ', or '.join(dict.fromkeys(spread_name(d.groups, d.drawn) for d in found))
    text = f'bars: {spreads}, of both sides at once'
    wrapped = '\n'.join(textwrap.wrap(text, int(figure.get_figwidth() * 12)))
    figure.suptitle(wrapped, fontsize=9, x=0.01, ha='left', color='0.3')
    return figure


def _draw(axis, found: Sequence[Difference], labels: Sequence[str]) -> None:
    for number, (style, label) in enumerate(zip(styles(), labels)):
        own = sorted((d for d in found if d.label == label), key=lambda d: d.length)
        x = beside([d.length for d in own], number, len(labels))
        value, low, high = np.array([[d.value, d.low, d.high] for d in own]).reshape(-1, 3).T
        around = np.abs([value - low, high - value])
        how = dict(markersize=4, linewidth=1.4, capsize=2)
        axis.errorbar(x, value, around, label=shortened(label, 80), **how, **style)
    axis.axhline(0, color='0.4', linewidth=1, zorder=0)
    axis.set_xscale('log', base=2)
    shown = sorted({d.length for d in found})
    axis.set_xticks(shown, [str(n) for n in shown], rotation=0 if len(shown) < 7 else 45)
    axis.minorticks_off()
    axis.set_xlabel('length')
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(axis='y', color='0.92', linewidth=0.8)
    axis.set_axisbelow(True)
