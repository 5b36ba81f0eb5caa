"""The picture of the effects of a family of claims, which stands on docs/claims.md."""

import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from evidence.claims import ledger
from evidence.claims.claim import VERDICTS, Claim
from posenc_jax.lab.files import disk


def draw(
    path: pathlib.Path,
    claims: Mapping[str, Claim],
    records: Mapping[str, Mapping[str, Any]],
    verdicts: Mapping[str, str],
) -> None:
    """Draws the effects of the claims in `verdicts` as multiples of their margins, by verdict and
    size: a dot for the mean, and a line over the seeds with a mark for each.
    """
    from matplotlib.figure import Figure

    spread = {
        name: sorted(effect / how.margin for effect in ledger.effects(records[name]).values())
        for name in verdicts
        if (how := claims[name].how)
    }
    mean = {name: statistics.fmean(values) for name, values in spread.items()}
    order = sorted(mean, key=lambda name: (-VERDICTS.index(verdicts[name]), mean[name]))
    figure = Figure((8, 1.2 + 0.26 * len(order)), layout='constrained')
    axes = figure.subplots()
    colours = ('C2', 'C0', 'C9', 'C4', 'C1', 'C3', 'C7', 'C8', 'C5')
    for verdict, colour in zip(VERDICTS, colours, strict=True):
        rows = [row for row, name in enumerate(order) if verdicts[name] == verdict]
        if rows:
            values = [spread[order[row]] for row in rows]
            axes.hlines(rows, [v[0] for v in values], [v[-1] for v in values], colour)
            for row, own in zip(rows, values):
                axes.plot(own, [row] * len(own), '|', color=colour, markersize=7)
            axes.plot([mean[order[row]] for row in rows], rows, 'o', color=colour, label=verdict)
    axes.set_xscale('symlog', linthresh=1)
    axes.xaxis.set_major_formatter('{x:g}')
    for margin in (-1, 1):
        axes.axvline(margin, color='black', linewidth=0.8, linestyle='--')
    axes.set_yticks(range(len(order)), [f'{name}  {claims[name].key}' for name in order])
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.set_xlabel('effect / margin (dashed: the margins; marks: the seeds; dot: their mean)')
    figure.legend(loc='outside upper center', ncols=5)  # all verdicts in one row are too wide
    disk.save_figure(figure, path, dpi=110)
