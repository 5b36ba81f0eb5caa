"""Plots of receptive fields, and the comparison of theoretical and empirical ones over methods."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from posenc_jax.lab.analyse.decay_kernel import relative_weights
from posenc_jax.lab.analyse.receptive_field import ReceptiveField
from posenc_jax.lab.analyse.report import LINES, doublings, some, tick_counts
from posenc_jax.lab.analyse.token_distance import spearman
from posenc_jax.lab.files import disk


class Compared(NamedTuple):
    """TRF and ERF of a method or of one run of it, in keys, averaged over heads and layers. `trf`
    is NaN if there is none.
    """

    label: str
    trf: float
    erf: float


def rank_correlation(rows: Sequence[Compared]) -> float:
    """Spearman's rank correlation of TRF and ERF over methods. Methods without a TRF are left out,
    and all infinite TRFs have the same rank.

    Raises:
      ValueError: fewer than two methods have a TRF.
    """
    both = [row for row in rows if not np.isnan(row.trf)]
    if len(both) < 2:
        raise ValueError(
            'a rank correlation of TRF and ERF needs two methods that have a TRF, got '
            f'{len(both)} of {len(rows)}'
        )
    return spearman(np.array([row.trf for row in both]), np.array([row.erf for row in both]))


def by_method(rows: Sequence[Compared]) -> list[Compared]:
    """One row per label, with the means over its runs."""
    mean = lambda label, name: float(
        np.mean([getattr(row, name) for row in rows if row.label == label])
    )
    return [
        Compared(label, mean(label, 'trf'), mean(label, 'erf'))
        for label in dict.fromkeys(row.label for row in rows)
    ]


def _axis(path: str | pathlib.Path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.8), layout='constrained')
    axis = figure.subplots()
    axis.spines[['top', 'right']].set_visible(False)
    return pathlib.Path(path), figure, axis


def decay_plot(
    kernels: Mapping[str, Float[np.ndarray, 'N D']],
    fields: Mapping[str, Float[np.ndarray, 'N']],
    path: str | pathlib.Path,
) -> pathlib.Path:
    """Writes `exp(r(d) - max r)` against d + 1 as a PNG, with a dot at each finite TRF.

    A single encoding has a line for each of at most eight heads; of several encodings, each has one
    line, the mean over its heads. Needs matplotlib.

    Args:
      kernels, fields: decay kernel and TRF of each head, by the label of the encoding.
      path: of the PNG.
    """
    path, figure, axis = _axis(path)
    several = len(kernels) > 1
    for number, (label, r) in enumerate(kernels.items()):
        lines, trf = relative_weights(r), np.asarray(fields[label])
        if several:
            lines, trf = lines.mean(0, keepdims=True), trf.mean(keepdims=True)
        at = np.unique(np.geomspace(1, r.shape[-1], 400).astype(int)) - 1
        for head in some(len(lines), LINES):
            line, field = lines[head], trf[head]
            name = label if several else f'head {head}'
            (drawn,) = axis.plot(
                at + 1, np.maximum(line[at], 1e-30), label=f'{name}: TRF {field:.0f}', linewidth=1.2
            )
            if np.isfinite(field) and field <= len(line):
                axis.plot(
                    field,
                    max(line[int(field) - 1], 1e-30),
                    'o',
                    color=drawn.get_color(),
                    markersize=4,
                )
    axis.set(
        xscale='log',
        yscale='log',
        ylim=(1e-8, 2.0),
        xlabel='distance d + 1, tokens',
        ylabel='exp(r(d) - max r)',
    )
    whose = 'mean over the heads' if several else next(iter(kernels))
    axis.set_title(f'Decay of attention with the distance: {whose}', fontsize=10)
    axis.legend(frameon=False, fontsize=7, title='dot: TRF in tokens', title_fontsize=7)
    disk.save_figure(figure, path, dpi=160)
    return path


def profile_plot(found: ReceptiveField, path: str | pathlib.Path) -> pathlib.Path:
    """Writes the mean attention at each distance as a PNG: a line for each of at most eight layers,
    with a dot at the ERF. Needs matplotlib.
    """
    path, figure, axis = _axis(path)
    at = 1 + np.arange(found.profile.shape[-1])
    profiles, fields = found.profile.mean(1), found.erf.mean(1)
    for layer in some(len(profiles), LINES):
        line, erf = profiles[layer], fields[layer]
        (drawn,) = axis.plot(
            at, np.maximum(line, 1e-12), label=f'layer {layer}: ERF {erf:.1f}', linewidth=1.2
        )
        axis.plot(
            erf, max(np.interp(erf, at, line), 1e-12), 'o', color=drawn.get_color(), markersize=4
        )
    axis.set(xscale='log', yscale='log', xlabel='distance d + 1, tokens', ylabel='mean attention')
    tick_counts(axis, doublings(len(at)))
    axis.set_title('Mean attention by the distance', fontsize=10)
    axis.legend(frameon=False, fontsize=8, title='dot: ERF in tokens', title_fontsize=8)
    disk.save_figure(figure, path, dpi=160)
    return path


def rank_plot(rows: Sequence[Compared], path: str | pathlib.Path) -> pathlib.Path:
    """Writes ERF against TRF as a PNG, with a point for each method. Methods with an infinite TRF
    stand at the right end; methods without a TRF are left out. Needs matplotlib.
    """
    path, figure, axis = _axis(path)
    rows = [row for row in rows if not np.isnan(row.trf)]
    finite = [row.trf for row in rows if np.isfinite(row.trf)]
    end = 4 * max(finite, default=1.0)
    for row in rows:
        at = row.trf if np.isfinite(row.trf) else end
        axis.plot(at, row.erf, 'o' if np.isfinite(row.trf) else '>', alpha=0.8, label=row.label)
    infinite = f' (triangles: infinite, drawn at {end:.0f})' if len(finite) < len(rows) else ''
    axis.set(xlabel=f'TRF, tokens{infinite}', ylabel='ERF, tokens')
    axis.set_xscale('log', base=2)
    axis.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
    axis.set_title('Theoretical and empirical receptive fields', fontsize=10)
    figure.legend(loc='outside lower center', ncols=2, frameon=False, fontsize=7)
    disk.save_figure(figure, path, dpi=160)
    return path
