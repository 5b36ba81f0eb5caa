"""Analyses of a trained model or of an encoding; each writes its numbers and a picture.

    python -m posenc_jax.lab.analyse ANALYSIS --run=RUN|--runs='DIR/*'
        [--length=N] [--batches=N] [--inputs=text|random] [--out=DIR]
    python -m posenc_jax.lab.analyse token_distance --run=RUN
        [--length=N] [--batches=4] [--out=DIR]
    python -m posenc_jax.lab.analyse attention_entropy --run=RUN
        [--pieces=1,4,16] [--sink=4] [--keep=2] [--query=N]
    python -m posenc_jax.lab.analyse pi_bound [--out=DIR]
    python -m posenc_jax.lab.analyse receptive_field --encoding='alibi()' [--encoding=...]
        [--heads=8] [--reach=200000] [--epsilon=0.05]
    python -m posenc_jax.lab.analyse receptive_field --run=RUN [--length=N] [--batches=4]
    python -m posenc_jax.lab.analyse receptive_field --runs='DIR/*' [--length=N] [--batches=4]

RUN is a training run or a public checkpoint; 'RUN | EXTENSION' applies a context extension to it.
The analyses read the test split of its text. receptive_field also reads the examples of a task; the
others refuse a run that was not trained on text. `--config.NAME=VALUE` changes a field of the
config, as in eval.py. The results are NAME*.npz and NAME*.png in DIR (default: analysis/ in the
directory of the run; runs/analysis without a run).

ANALYSIS prints a table and writes NAME.json and NAME.png; with --inputs=random it reads random ids
in the place of text, of any run over ids:
  probe_position: how well a token's position is read from its vector in every layer
  variance_shrinkage: how the variance of what attention adds falls with the tokens seen
  nearby_similarity: whether vectors are the more alike the nearer their tokens are
  permutation_symmetry: how much the last logits change with the order of the tokens before
  causal_mask_pattern: mean logits by query and key, and their part that is no distance
  rope_frequency_usage: shares of the rotary frequencies in norms and in logits
  rope_usage: the most that each rotary frequency adds to a logit, by the norms of queries and keys
  positional_neurons: neurons that are active at some places of a text, and dead ones
  collapse_and_oversquashing: distances of the last vectors of (A, ..., A, B), and influences
  martingale_gap: predictions of coin flips A, B against those of Bayes, and their order
  embedding_position_bias: which part of a text its vector resembles

pi_bound: both bounds of the paper of position interpolation, in the same form, without a run.

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
import pathlib
import re
import sys

from posenc_jax.base import interrupts
from posenc_jax.base.programs import program
from posenc_jax.lab.analyse import of_models
from posenc_jax.lab.analyse.of_models import COMMANDS
from posenc_jax.lab.analyse.reading import folder_of, matching, prepared, task_length, windows
from posenc_jax.lab.files import disk, paths
from posenc_jax.lab.files.command import Parser, in_line
from posenc_jax.protocol.errors import quoted

ANALYSES = ('token_distance', 'attention_entropy', 'pi_bound', 'receptive_field', *COMMANDS)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(program('posenc_jax.lab.analyse'), description=__doc__)
    parser.add_argument('analysis', choices=ANALYSES)
    parser.add_argument('--run', metavar='RUN')
    parser.add_argument(
        '--length',
        type=int,
        default=0,
        metavar='N',
        help='tokens of a window; default: the trained length',
    )
    parser.add_argument(
        '--batches', type=int, help='how many windows are read; the default depends on the analysis'
    )
    parser.add_argument(
        '--inputs',
        default='text',
        help="'text' of the run or 'random' ids, for the analyses with a table",
    )
    parser.add_argument('--probe', default='ridge', help="of probe_position: 'ridge' or 'mlp'")
    parser.add_argument(
        '--pool', default='mean', help="of embedding_position_bias: 'mean' or 'last'"
    )
    parser.add_argument(
        '--symbols',
        default='0,1',
        metavar='A,B',
        help='of martingale_gap and collapse_and_oversquashing: two texts of one token',
    )
    parser.add_argument('--out', type=paths.path, metavar='DIR')
    parser.add_argument(
        '--separator',
        default='',
        metavar='C',
        help='of martingale_gap: a text of one token that follows every flip',
    )
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
    parser.add_imports(of_runs=True)
    known, rest = parser.parse_known_args(argv)
    try:
        for path in run(known, rest):
            print(path)
    except (ValueError, OSError, ImportError) as error:
        print(f'{program("posenc_jax.lab.analyse")}: {in_line(error)}', file=sys.stderr)
        return 2
    return 0


def run(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    if known.analysis in COMMANDS:
        return of_models.run(known, rest)
    known.batches = 4 if known.batches is None else known.batches
    if known.analysis == 'pi_bound':
        from posenc_jax.lab.analyse.pi_bound import bound_report

        report = bound_report()
        print(report.text(), flush=True)
        return report.write(folder_of(known))
    if known.analysis == 'receptive_field':
        return _receptive_field(known, rest)
    if not known.run:
        raise ValueError(f'{known.analysis} analyses a model; give --run=RUN')
    return (
        _entropy(known, rest) if known.analysis == 'attention_entropy' else _distance(known, rest)
    )


def _distance(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    from posenc_jax.lab.analyse.token_distance import (
        distance_heatmap,
        positional_heads,
        spearman,
        token_distance,
    )

    job = prepared(known, rest, known.run)
    texts, out = windows(known, job), folder_of(known, known.run)
    model = job.extended(job.load()[0])
    found = functools.reduce(
        lambda a, b: a.merge(b), (token_distance(model, window) for window in texts)
    )
    numbers, picture = out / 'token_distance.npz', out / 'token_distance.png'
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

    from posenc_jax.lab.analyse.attention_entropy import entropy_of_pieces, entropy_plot, labels

    if not re.fullmatch(r'\s*\d{1,9}\s*(,\s*\d{1,9}\s*)*', known.pieces, re.ASCII):
        raise ValueError(
            '--pieces are numbers of at most nine digits with commas between them, got '
            f'{quoted(known.pieces)}'
        )
    for name in ('sink', 'keep', 'query'):
        if getattr(known, name) < 0:
            raise ValueError(f'--{name} must be at least 0, got {getattr(known, name)}')
    counts = [int(count) for count in known.pieces.split(',')]
    job = prepared(known, rest, known.run)
    texts, out = windows(known, job), folder_of(known, known.run)
    model, query = job.extended(job.load()[0]), known.query or texts.shape[-1] // 4
    entropies, losses = {}, {}
    for label, options in labels(counts, known.sink, known.keep):
        found = [entropy_of_pieces(model, window, query=query, **options) for window in texts]
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

    from posenc_jax.lab.analyse.decay_kernel import decay_kernel, theoretical_field
    from posenc_jax.lab.analyse.field_plots import decay_plot
    from posenc_jax.language.make import make

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
    out = folder_of(known)
    numbers = out / 'receptive_field.npz'
    disk.save_arrays(numbers, encodings=list(fields), trf=np.stack(list(fields.values())))
    return [numbers, decay_plot(kernels, fields, out / 'receptive_field.png')]


def _measured(known: argparse.Namespace, rest: list[str], run: str):
    """The plan of a run, its model, and its `ReceptiveField` on its text or on examples of its
    task.
    """
    from posenc_jax.lab.analyse.receptive_field import receptive_field
    from posenc_jax.lab.evaluate.tasks import SEED
    from posenc_jax.protocol.tokens import Tokens

    job = prepared(known, rest, run, task_length(known, run))
    if job.task.is_language:
        parts = [(window, None) for window in windows(known, job)]
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
    from posenc_jax.lab.analyse.decay_kernel import trained_field

    try:
        return trained_field(model, reach=known.reach, epsilon=known.epsilon), ''
    except ValueError as error:
        return None, str(error)


def _fields_of_run(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    import numpy as np

    from posenc_jax.lab.analyse.decay_kernel import decay_kernel
    from posenc_jax.lab.analyse.field_plots import decay_plot, profile_plot

    _, model, found = _measured(known, rest, known.run)
    trf, why = _trained_field(known, model)
    out = folder_of(known, known.run)
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

    from posenc_jax.lab.analyse.field_plots import Compared, by_method, rank_correlation, rank_plot

    rows = []
    for run in matching(known.runs):
        job, model, found = _measured(known, rest, run)
        trf, _ = _trained_field(known, model)
        label = ' / '.join(job.config.pattern) or job.config.encoding
        rows.append(
            Compared(label, np.nan if trf is None else float(trf.mean()), float(found.erf.mean()))
        )
        print(f'{run}: {label}: TRF {rows[-1].trf:.1f}, ERF {rows[-1].erf:.2f}', flush=True)
    methods, out = by_method(rows), folder_of(known)
    numbers = out / 'receptive_field_ranks.npz'
    labels, trf, erf = zip(*methods)
    # Written before the rank correlation, which two methods with a TRF are needed for.
    disk.save_arrays(numbers, labels=labels, trf=trf, erf=erf)
    agreement = rank_correlation(methods)
    ranked = sum(not np.isnan(row.trf) for row in methods)
    print(
        f'rank correlation of TRF and ERF over {ranked} methods: {agreement:.2f} (a TRF of nan: '
        'the encoding is not a bias of the positions, and is left out)'
    )
    disk.save_arrays(numbers, labels=labels, trf=trf, erf=erf, rank_correlation=agreement)
    return [numbers, rank_plot(methods, out / 'receptive_field_ranks.png')]


if __name__ == '__main__':
    sys.exit(interrupts.run('posenc_jax.lab.analyse', main))
