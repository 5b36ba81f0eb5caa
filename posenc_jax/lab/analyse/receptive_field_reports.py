"""Reports of receptive fields: theoretical ones of encodings, both kinds of a run, and the rank
correlation of the two over runs.
"""

import argparse
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from posenc_jax.lab.analyse.correlation import spearman
from posenc_jax.lab.analyse.decay_kernel import (
    decay_kernel,
    relative_weights,
    theoretical_field,
    trained_field,
)
from posenc_jax.lab.analyse.protocol import Analysis
from posenc_jax.lab.analyse.receptive_field import ReceptiveField, receptive_field
from posenc_jax.lab.analyse.report import LINES, Report, doublings, some, tick_counts
from posenc_jax.lab.analyse.subjects import Subject, folder_of, matching, subject
from posenc_jax.lab.config.fields import encoding_label
from posenc_jax.lab.files import disk
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.runs.problem import SEED
from posenc_jax.language.make import make
from posenc_jax.protocol.tokens import Tokens


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


def _without_frame(figure: Any) -> Any:
    """The axis of a picture, without lines above and on the right."""
    axis = figure.subplots()
    axis.spines[['top', 'right']].set_visible(False)
    return axis


def draw_decay(
    figure: Any,
    kernels: Mapping[str, Float[np.ndarray, 'N D']],
    fields: Mapping[str, Float[np.ndarray, 'N']],
) -> None:
    """Draws `exp(r(d) - max r)` against d + 1, with a dot at each finite TRF.

    A single encoding has a line for each of at most eight heads; of several encodings, each has one
    line, the mean over its heads.

    Args:
      figure: of matplotlib.
      kernels, fields: decay kernel and TRF of each head, by the label of the encoding.
    """
    axis, several = _without_frame(figure), len(kernels) > 1
    for label, r in kernels.items():
        lines, trf = relative_weights(r), np.asarray(fields[label])
        if several:
            lines, trf = lines.mean(0, keepdims=True), trf.mean(keepdims=True)
        at = np.unique(np.geomspace(1, r.shape[-1], 400).astype(int)) - 1
        for head in some(len(lines), LINES):
            line, field = np.maximum(lines[head], 1e-30), trf[head]
            name = f'{label if several else f"head {head}"}: TRF {field:.0f}'
            (drawn,) = axis.plot(at + 1, line[at], label=name, linewidth=1.2)
            if np.isfinite(field) and field <= len(line):
                dot = dict(color=drawn.get_color(), markersize=4)
                axis.plot(field, line[int(field) - 1], 'o', **dot)
    axis.set(xscale='log', yscale='log', ylim=(1e-8, 2.0))
    axis.set(xlabel='distance d + 1, tokens', ylabel='exp(r(d) - max r)')
    axis.legend(frameon=False, fontsize=7, title='dot: TRF in tokens', title_fontsize=7)


def draw_profile(figure: Any, found: ReceptiveField) -> None:
    """Draws the mean attention at each distance: a line for each of at most eight layers, with a
    dot at the ERF.
    """
    axis, at = _without_frame(figure), 1 + np.arange(found.profile.shape[-1])
    profiles, fields = found.profile.mean(1), found.erf.mean(1)
    for layer in some(len(profiles), LINES):
        line, erf = profiles[layer], fields[layer]
        label = f'layer {layer}: ERF {erf:.1f}'
        (drawn,) = axis.plot(at, np.maximum(line, 1e-12), label=label, linewidth=1.2)
        dot = dict(color=drawn.get_color(), markersize=4)
        axis.plot(erf, max(np.interp(erf, at, line), 1e-12), 'o', **dot)
    axis.set(xscale='log', yscale='log', xlabel='distance d + 1, tokens', ylabel='mean attention')
    tick_counts(axis, doublings(len(at)))
    axis.legend(frameon=False, fontsize=8, title='dot: ERF in tokens', title_fontsize=8)


def draw_ranks(figure: Any, rows: Sequence[Compared]) -> None:
    """Draws ERF against TRF, with a point for each method. Methods with an infinite TRF stand at
    the right end; methods without a TRF are left out.
    """
    axis, rows = _without_frame(figure), [row for row in rows if not np.isnan(row.trf)]
    finite = [row.trf for row in rows if np.isfinite(row.trf)]
    end = 4 * max(finite, default=1.0)
    for row in rows:
        at, marker = (row.trf, 'o') if np.isfinite(row.trf) else (end, '>')
        axis.plot(at, row.erf, marker, alpha=0.8, label=row.label)
    infinite = f' (triangles: infinite, drawn at {end:.0f})' if len(finite) < len(rows) else ''
    axis.set(xlabel=f'TRF, tokens{infinite}', ylabel='ERF, tokens')
    axis.set_xscale('log', base=2)
    axis.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
    figure.legend(loc='outside lower center', ncols=2, frameon=False, fontsize=7)


def _report(suffix: str, draw, title: str, **parts: Any) -> Report:
    return Report(key=f'receptive_field{suffix}', draw=draw, title=title, size=(6.0, 3.8), **parts)


def _decay_report(suffix: str, kernels, fields, **parts: Any) -> Report:
    whose = 'mean over the heads' if len(kernels) > 1 else next(iter(kernels))
    title = f'Decay of attention with the distance: {whose}'
    return _report(suffix, lambda figure: draw_decay(figure, kernels, fields), title, **parts)


def _reports(known: argparse.Namespace, rest: list[str]) -> Iterator[Report]:
    given = [name for name in ('encoding', 'run', 'runs') if getattr(known, name)]
    if len(given) != 1:
        raise ValueError(
            'receptive_field takes one of --encoding=SPEC, --run=RUN, --runs=PATTERN, got '
            f'{given or "none"}'
        )
    if known.encoding and rest:
        raise ValueError(
            f'cannot read {rest[0]!r}; with --encoding the other options are --heads, --reach, '
            '--epsilon and --out'
        )
    if known.encoding:
        return _of_encodings(known)
    return _of_run(known, rest) if known.run else _of_runs(known, rest)


def _of_encodings(known: argparse.Namespace) -> Iterator[Report]:
    kernels, fields, heads, reach = {}, {}, known.heads, known.reach
    # A spec string takes these sizes from a model. The widths do not change a bias of the
    # positions, and all distances lie within the trained length.
    sizes = dict(heads=heads, head_dim=8, model_dim=8 * heads, train_len=reach)
    for spec in dict.fromkeys(known.encoding):
        encoding = make(spec, causal=True, **sizes)
        kernels[spec] = decay_kernel(encoding, heads, reach)
        fields[spec] = theoretical_field(encoding, heads, reach=reach, epsilon=known.epsilon)
        shown = ' '.join(f'{field:.0f}' for field in fields[spec])
        print(f'{spec}: TRF {fields[spec].mean():.1f} (by head: {shown})')
    arrays = dict(encodings=list(fields), trf=np.stack(list(fields.values())))
    yield _decay_report('', kernels, fields, arrays=arrays)


def _measured(
    known: argparse.Namespace, read: Subject
) -> tuple[Transformer, ReceptiveField, np.ndarray | None, str]:
    """The model, its `ReceptiveField` on its text or on examples of its task, and its TRF, or None
    and the reason why it has none.
    """
    job = read.job
    if job.task.is_language:
        inputs = [(tokens[None], None) for tokens in read.sequences(known)]
    else:
        length = known.length or job.config.train.length
        sizes = dict(length=length, batch_size=known.batches)
        batch = job.task.dataset(**sizes, seed=SEED, split=job.config.eval.split)[0]
        about = dict(positions=batch.get('positions'), segment=batch.get('segment'))
        inputs = [(batch['tokens'], Tokens.of(length=batch['tokens'].shape[1], **about))]
    model = read.load()
    found = functools.reduce(
        lambda a, b: a.merge(b),
        (receptive_field(model, *one, epsilon=known.epsilon) for one in inputs),
    )
    try:
        return model, found, trained_field(model, reach=known.reach, epsilon=known.epsilon), ''
    except ValueError as error:
        return model, found, None, str(error)


def _of_run(known: argparse.Namespace, rest: list[str]) -> Iterator[Report]:
    model, found, trf, why = _measured(known, subject(known, rest, known.run))
    theory = f'no TRF: {why}' if trf is None else f'TRF {trf.mean():.1f}'
    yield _report(
        '',
        lambda figure: draw_profile(figure, found),
        'Mean attention by the distance',
        arrays=dict(erf=found.erf, profile=found.profile, trf=np.nan if trf is None else trf),
        remarks=[f'ERF {found.erf.mean():.2f}; {theory}'],
    )
    if trf is not None:
        kernel = decay_kernel(model.encoding(*model.layers()[0]), model.cfg.heads, known.reach)
        label = f'{model.cfg.specs[0]}, layer 0'
        yield _decay_report('_decay', {label: kernel}, {label: trf[0]})


def _of_runs(known: argparse.Namespace, rest: list[str]) -> Iterator[Report]:
    rows = []
    for run in matching(known.runs):
        read = subject(known, rest, run)
        _, found, trf, _ = _measured(known, read)
        label = encoding_label(read.job.config)
        rows.append(
            Compared(label, np.nan if trf is None else float(trf.mean()), float(found.erf.mean()))
        )
        print(f'{run}: {label}: TRF {rows[-1].trf:.1f}, ERF {rows[-1].erf:.2f}', flush=True)
    methods = by_method(rows)
    arrays = dict(zip(('labels', 'trf', 'erf'), zip(*methods)))
    # Written before the rank correlation, which two methods with a TRF are needed for.
    disk.save_arrays(folder_of(known) / 'receptive_field_ranks.npz', **arrays)
    agreement = rank_correlation(methods)
    ranked = sum(not np.isnan(row.trf) for row in methods)
    yield _report(
        '_ranks',
        lambda figure: draw_ranks(figure, methods),
        'Theoretical and empirical receptive fields',
        arrays={**arrays, 'rank_correlation': agreement},
        remarks=[
            f'rank correlation of TRF and ERF over {ranked} methods: {agreement:.2f} (a TRF of '
            'nan: the encoding is not a bias of the positions, and is left out)'
        ],
    )


ANALYSIS = Analysis(
    key='receptive_field',
    says='the theoretical receptive field (TRF) of each --encoding, without training; the '
    'empirical one (ERF) and the mean attention by the distance, of --run; both of --runs, and '
    'their rank correlation',
    reports=_reports,
    options={
        'encoding': dict(action='append', metavar='SPEC', help='may be repeated, to compare'),
        'heads': dict(type=int, default=8, help='heads of each encoding'),
        'reach': dict(type=int, default=200_000, metavar='N', help='distances that a series sums'),
        'epsilon': dict(
            type=float, default=0.05, help='share of the weight beyond a receptive field'
        ),
    },
)
