"""Analyses of a trained model or of an encoding; each writes its numbers and a picture.

    python -m posenc_jax.analysis rope_usage|token_distance --run=RUN
        [--length=N] [--batches=4] [--out=DIR]
    python -m posenc_jax.analysis attention_entropy --run=RUN
        [--pieces=1,4,16] [--sink=4] [--keep=2] [--query=N]
    python -m posenc_jax.analysis pi_bound [--out=DIR]
    python -m posenc_jax.analysis receptive_field --encoding='alibi()' [--encoding=...]
        [--heads=8] [--reach=200000] [--epsilon=0.05]
    python -m posenc_jax.analysis receptive_field --run=RUN [--length=N] [--batches=4]
    python -m posenc_jax.analysis receptive_field --runs='DIR/*' [--length=N] [--batches=4]

RUN is a training run or a public checkpoint; 'RUN | EXTENSION' applies a context extension to it.
The analyses read the test split of its text. receptive_field also reads the examples of a task; the
others refuse a run that was not trained on text. `--config.NAME=VALUE` changes a field of the
config, as in eval.py. The results are NAME*.npz and NAME*.png in DIR (default: analysis/ in the
directory of the run; runs/analysis without a run).

receptive_field: for encodings, the theoretical receptive field (TRF), which needs no training; for
a run, also the empirical receptive field (ERF) and the mean attention at each distance; for several
runs, TRF and ERF of each method and the rank correlation of the two.

attention_entropy: the attention entropy and the loss of the last --query tokens of each window. The
tokens before them are read as parallel pieces. Every number of --pieces is measured without a sink,
with the first --sink tokens as a sink that all pieces see, and with the sink and the best --keep
pieces.
"""

import argparse
import functools
import glob
import pathlib
import re
import sys

from posenc_jax.core import disk
from posenc_jax.core.command import Parser
from posenc_jax.core.registry import quoted

ANALYSES = ('rope_usage', 'token_distance', 'attention_entropy', 'pi_bound', 'receptive_field')


def main(argv: list[str]) -> int:
    parser = Parser('posenc_jax.analysis', description=__doc__)
    parser.add_argument('analysis', choices=ANALYSES)
    parser.add_argument('--run', metavar='RUN')
    parser.add_argument(
        '--length',
        type=int,
        default=0,
        metavar='N',
        help='tokens of a window; default: the trained length',
    )
    parser.add_argument('--batches', type=int, default=4, help='how many windows are read')
    parser.add_argument('--out', type=pathlib.Path, metavar='DIR')
    fields = parser.add_argument_group('receptive_field')
    fields.add_argument(
        '--encoding', action='append', metavar='SPEC', help='may be repeated, to compare'
    )
    fields.add_argument('--heads', type=int, default=8, help='heads of each encoding')
    fields.add_argument(
        '--runs', metavar='PATTERN', help='runs to compare; runs of one encoding are averaged'
    )
    fields.add_argument(
        '--reach', type=int, default=200_000, metavar='N', help='distances that a series sums'
    )
    fields.add_argument(
        '--epsilon', type=float, default=0.05, help='share of the weight beyond a receptive field'
    )
    cut = parser.add_argument_group('attention_entropy')
    cut.add_argument(
        '--pieces', default='1,4,16', metavar='N,N', help='numbers of pieces to compare'
    )
    cut.add_argument(
        '--sink', type=int, default=4, metavar='N', help='first tokens that all pieces see'
    )
    cut.add_argument(
        '--keep', type=int, default=2, metavar='N', help='pieces that a query keeps; 0 for all'
    )
    cut.add_argument(
        '--query',
        type=int,
        default=0,
        metavar='N',
        help='tokens that are measured, at the end; default: a quarter of a window',
    )
    known, rest = parser.parse_known_args(argv)
    try:
        for path in run(known, rest):
            print(path)
    except (ValueError, OSError, ImportError) as error:
        print(f'posenc_jax.analysis: {error}', file=sys.stderr)
        return 2
    return 0


def run(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    if known.analysis == 'pi_bound':
        from posenc_jax.analysis.pi_bound import bound_plot

        return [bound_plot(_folder(known) / 'pi_bound.png')]
    if known.analysis == 'receptive_field':
        return _receptive_field(known, rest)
    if not known.run:
        raise ValueError(f'{known.analysis} analyses a model; give --run=RUN')
    return _entropy(known, rest) if known.analysis == 'attention_entropy' else _rotary(known, rest)


def _folder(known: argparse.Namespace, run: str = '') -> pathlib.Path:
    """Where the results go."""
    from posenc_jax.run.job import home_of

    return known.out or (home_of(run) / 'analysis' if run else pathlib.Path('runs', 'analysis'))


def _prepare(known: argparse.Namespace, rest: list[str], run: str, more: dict | None = None):
    from posenc_jax.run.job import UNASKED, prepare
    from posenc_jax.run.overrides import read_overrides

    if known.batches < 1 or known.length < 0:
        raise ValueError(
            '--batches must be at least 1 and --length at least 0 (0: the trained length), got '
            f'{known.batches} and {known.length}'
        )
    return prepare(run, {**read_overrides(rest), **UNASKED, **(more or {})})


def _task_length(known: argparse.Namespace, run: str) -> dict[str, tuple[int]]:
    """`eval.lengths` for a run that was trained on a task: the length that is analysed.

    Without it `_prepare` checks length 1, which every text has, but not every task.
    """
    from posenc_jax.run import stored
    from posenc_jax.run.plan import make_task

    path = pathlib.Path(run.partition('|')[0].strip(), stored.FILE)
    config = stored.from_json(path) if path.is_file() else None
    if config is None or make_task(config).is_language:
        return {}
    return {'eval.lengths': (known.length or config.train.length,)}


def _windows(known: argparse.Namespace, job):
    """The first windows of the text of a run, [batches, 1, length]."""
    import numpy as np

    length = known.length or job.cfg.train_len
    stream = job.task.tokens(job.config.eval.split)
    if len(stream) < length * known.batches:
        needed = f'{known.batches} windows of {length} need {length * known.batches} tokens'
        raise ValueError(
            f'{needed}, but the text has {len(stream)}; give a smaller --length or --batches'
        )
    return np.asarray(stream[: length * known.batches]).reshape(known.batches, 1, length)


def _rotary(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    from posenc_jax.analysis.rope_usage import rope_usage, usage_heatmap
    from posenc_jax.analysis.token_distance import (
        distance_heatmap,
        positional_heads,
        spearman,
        token_distance,
    )

    job = _prepare(known, rest, known.run)
    if not job.task.is_language:
        raise ValueError(
            f'{known.run} was trained on {job.config.task}, which is not text; expected a run of '
            'language()'
        )
    windows, out = _windows(known, job), _folder(known, known.run)
    model = job.extended(job.load()[0])
    measure = rope_usage if known.analysis == 'rope_usage' else token_distance
    found = functools.reduce(
        lambda a, b: a.merge(b), (measure(model, window) for window in windows)
    )
    numbers, picture = out / f'{known.analysis}.npz', out / f'{known.analysis}.png'
    if known.analysis == 'rope_usage':
        disk.save_arrays(numbers, q=found.q, k=found.k, product=found.product)
        return [numbers, usage_heatmap(found, picture)]
    disk.save_arrays(
        numbers, corr=found.corr, score=found.score, alloc=found.alloc, dist=found.dist
    )
    heads = ', '.join(f'{layer}.{head}' for layer, head in positional_heads(found.score))
    print(f'positional heads (layer.head): {heads}; rank correlation of score and attended '
          'distance: '
          f'{spearman(found.score, found.dist):.2f}')  # fmt: skip
    return [numbers, distance_heatmap(found, picture)]


def _entropy(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    import numpy as np

    from posenc_jax.analysis.attention_entropy import entropy_of_pieces, entropy_plot, labels

    if not re.fullmatch(r'\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*', known.pieces, re.ASCII):
        raise ValueError(
            '--pieces are numbers of at most nine digits with commas between them, got '
            f'{quoted(known.pieces)}'
        )
    for name in ('sink', 'keep', 'query'):
        if getattr(known, name) < 0:
            raise ValueError(f'--{name} must be at least 0, got {getattr(known, name)}')
    counts = [int(count) for count in known.pieces.split(',')]
    job = _prepare(known, rest, known.run)
    if not job.task.is_language:
        raise ValueError(
            f'{known.run} was trained on {job.config.task}, which is not text; expected a run of '
            'language()'
        )
    windows, out = _windows(known, job), _folder(known, known.run)
    model, query = job.extended(job.load()[0]), known.query or windows.shape[-1] // 4
    entropies, losses = {}, {}
    for label, options in labels(counts, known.sink, known.keep):
        found = [entropy_of_pieces(model, window, query=query, **options) for window in windows]
        entropies[label] = functools.reduce(lambda a, b: a.merge(b), (one.entropy for one in found))
        losses[label] = float(np.mean([one.loss for one in found]))
        print(f'{label}: entropy {entropies[label].mean:.3f}, loss {losses[label]:.3f}', flush=True)
    numbers = out / 'attention_entropy.npz'
    heads = np.stack([entropy.heads for entropy in entropies.values()])
    disk.save_arrays(numbers, labels=list(entropies), entropy=heads, loss=list(losses.values()))
    return [numbers, entropy_plot(entropies, out / 'attention_entropy.png')]


def _receptive_field(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    given = [name for name in ('encoding', 'run', 'runs') if getattr(known, name)]
    if len(given) != 1:
        raise ValueError(
            'receptive_field takes one of --encoding=SPEC, --run=RUN, --runs=PATTERN, got '
            f'{given or "none"}'
        )
    if known.encoding:
        if rest:
            raise ValueError(
                f'cannot read {rest[0]!r}; with --encoding the other options are --heads, --reach, '
                '--epsilon and --out'
            )
        return _fields_of_encodings(known)
    return _fields_of_run(known, rest) if known.run else _fields_of_runs(known, rest)


def _fields_of_encodings(known: argparse.Namespace) -> list[pathlib.Path]:
    import numpy as np

    from posenc_jax.analysis.decay_kernel import decay_kernel, theoretical_field
    from posenc_jax.analysis.field_plots import decay_plot
    from posenc_jax.core.compose import make

    kernels, fields = {}, {}
    for spec in dict.fromkeys(known.encoding):
        # A spec string takes these sizes from a model. The widths do not change a bias of the
        # positions, and all distances lie within the trained length.
        sizes = dict(
            heads=known.heads, head_dim=8, model_dim=8 * known.heads, train_len=known.reach
        )
        encoding = make(spec, causal=True, **sizes)
        kernels[spec] = decay_kernel(encoding, known.heads, known.reach)
        fields[spec] = theoretical_field(
            encoding, known.heads, reach=known.reach, epsilon=known.epsilon
        )
        shown = ' '.join(f'{field:.0f}' for field in fields[spec])
        print(f'{spec}: TRF {fields[spec].mean():.1f} (by head: {shown})')
    out = _folder(known)
    numbers = out / 'receptive_field.npz'
    disk.save_arrays(numbers, encodings=list(fields), trf=np.stack(list(fields.values())))
    return [numbers, decay_plot(kernels, fields, out / 'receptive_field.png')]


def _measured(known: argparse.Namespace, rest: list[str], run: str):
    """The plan of a run, its model, and its `ReceptiveField` on its text or on examples of its
    task.
    """
    from posenc_jax.analysis.receptive_field import receptive_field
    from posenc_jax.core.tokens import Tokens
    from posenc_jax.evaluation.tasks import SEED

    job = _prepare(known, rest, run, _task_length(known, run))
    if job.task.is_language:
        parts = [(window, None) for window in _windows(known, job)]
    else:
        length = known.length or job.config.train.length
        batch = job.task.dataset(
            length=length, batch_size=known.batches, seed=SEED, split=job.config.eval.split
        )[0]
        about = dict(positions=batch.get('positions'), segment=batch.get('segment'))
        parts = [(batch['tokens'], Tokens.of(length=batch['tokens'].shape[1], **about))]
    model = job.extended(job.load()[0])
    measure = lambda tokens, tok: receptive_field(model, tokens, tok, epsilon=known.epsilon)
    return job, model, functools.reduce(lambda a, b: a.merge(b), (measure(*part) for part in parts))


def _trained_field(known: argparse.Namespace, model):
    """The TRF of a trained model and '', or None and the reason why it has none."""
    from posenc_jax.analysis.decay_kernel import trained_field

    try:
        return trained_field(model, reach=known.reach, epsilon=known.epsilon), ''
    except ValueError as error:
        return None, str(error)


def _fields_of_run(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    import numpy as np

    from posenc_jax.analysis.decay_kernel import decay_kernel
    from posenc_jax.analysis.field_plots import decay_plot, profile_plot

    _, model, found = _measured(known, rest, known.run)
    trf, why = _trained_field(known, model)
    out = _folder(known, known.run)
    numbers = out / 'receptive_field.npz'
    disk.save_arrays(
        numbers, erf=found.erf, profile=found.profile, trf=np.nan if trf is None else trf
    )
    written = [numbers, profile_plot(found, out / 'receptive_field.png')]
    if trf is None:
        print(f'ERF {found.erf.mean():.2f}; no TRF: {why}')
        return written
    print(f'ERF {found.erf.mean():.2f}; TRF {trf.mean():.1f}')
    layer_type, block = model.layers()[0]
    kernel = decay_kernel(model.encoding(layer_type, block), model.cfg.heads, known.reach)
    label = f'{model.cfg.specs[0]}, layer 0'
    return [
        *written,
        decay_plot({label: kernel}, {label: trf[0]}, out / 'receptive_field_decay.png'),
    ]


def _fields_of_runs(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    import numpy as np

    from posenc_jax.analysis.field_plots import Compared, by_method, rank_correlation, rank_plot
    from posenc_jax.run import stored

    runs = sorted(
        path for path in glob.glob(known.runs) if pathlib.Path(path, stored.FILE).is_file()
    )
    if not runs:
        raise ValueError(
            f'no training run matches --runs={known.runs!r} (a run is a directory with a '
            f'{stored.FILE})'
        )
    rows = []
    for run in runs:
        job, model, found = _measured(known, rest, run)
        trf, _ = _trained_field(known, model)
        label = ' / '.join(job.config.pattern) or job.config.encoding
        rows.append(
            Compared(label, np.nan if trf is None else float(trf.mean()), float(found.erf.mean()))
        )
        print(f'{run}: {label}: TRF {rows[-1].trf:.1f}, ERF {rows[-1].erf:.2f}', flush=True)
    methods = by_method(rows)
    agreement = rank_correlation(methods)
    ranked = sum(not np.isnan(row.trf) for row in methods)
    print(
        f'rank correlation of TRF and ERF over {ranked} methods: {agreement:.2f} (a TRF of nan: '
        'the encoding is not a bias of the positions, and is left out)'
    )
    out = _folder(known)
    numbers = out / 'receptive_field_ranks.npz'
    labels, trf, erf = zip(*methods)
    disk.save_arrays(numbers, labels=labels, trf=trf, erf=erf, rank_correlation=agreement)
    return [numbers, rank_plot(methods, out / 'receptive_field_ranks.png')]


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
