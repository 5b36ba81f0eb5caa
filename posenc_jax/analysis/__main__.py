"""Analyses of a trained rotary model, each with its numbers and its picture.

    python -m posenc_jax.analysis rope_usage|token_distance --run=RUN [--length=N] [--batches=4] [--out=DIR]
    python -m posenc_jax.analysis pi_bound [--out=DIR]

RUN is a training run or a public checkpoint, with ' | EXTENSION' behind it for an extended one, as for eval.py. The text is
that of the test split; --config.data.dataset=... and other --config.NAME=VALUE as there. Writes NAME.npz and NAME.png to
DIR (default: analysis/ in the run).
"""

import argparse
import functools
import pathlib
import sys


def main(argv: list[str]) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser('posenc_jax.analysis', description=__doc__, formatter_class=raw)
    parser.add_argument('analysis', choices=('rope_usage', 'token_distance', 'pi_bound'))
    parser.add_argument('--run', metavar='RUN')
    parser.add_argument('--length', type=int, default=0, metavar='N', help='tokens of a window; default: as trained')
    parser.add_argument('--batches', type=int, default=4, help='windows, one after the other')
    parser.add_argument('--out', type=pathlib.Path, metavar='DIR')
    known, rest = parser.parse_known_args(argv)
    try:
        for path in run(known, rest):
            print(path)
    except (ValueError, OSError, ImportError) as error:
        print(f'posenc_jax.analysis: {error}', file=sys.stderr)
        return 2
    return 0


def run(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    import numpy as np

    from posenc_jax.analysis.pi_bound import bound_plot
    from posenc_jax.analysis.rope_usage import rope_usage, usage_heatmap
    from posenc_jax.analysis.token_distance import distance_heatmap, positional_heads, spearman, token_distance
    from posenc_jax.evaluation.overrides import read_overrides
    from posenc_jax.evaluation.run import UNASKED, home_of, prepare

    if known.analysis == 'pi_bound':
        out = known.out or pathlib.Path('runs', 'analysis')
        out.mkdir(parents=True, exist_ok=True)
        return [bound_plot(out / 'pi_bound.png')]
    if not known.run:
        raise ValueError(f'{known.analysis} looks at a model: give --run=RUN')
    if known.batches < 1 or known.length < 0:
        raise ValueError(f'--batches must be at least 1 and --length positive, got {known.batches} and {known.length}')
    job = prepare(known.run, {**read_overrides(rest), **UNASKED})
    if not job.task.is_language:
        raise ValueError(f'{known.run} was trained on {job.config.task}; the analyses read text')
    length = known.length or job.cfg.train_len
    stream = job.task.tokens(job.config.eval.split)
    if len(stream) < length * known.batches:
        needed = f'{known.batches} windows of {length} need {length * known.batches}'
        raise ValueError(f'the text has {len(stream)} tokens, {needed}')
    out = known.out or home_of(known.run) / 'analysis'
    out.mkdir(parents=True, exist_ok=True)
    model = job.extended(job.load()[0])
    windows = np.asarray(stream[: length * known.batches]).reshape(known.batches, 1, length)
    measure = rope_usage if known.analysis == 'rope_usage' else token_distance
    found = functools.reduce(lambda a, b: a.merge(b), (measure(model, window) for window in windows))
    numbers, picture = out / f'{known.analysis}.npz', out / f'{known.analysis}.png'
    if known.analysis == 'rope_usage':
        np.savez(numbers, q=found.q, k=found.k, product=found.product)
        return [numbers, usage_heatmap(found, picture)]
    np.savez(numbers, corr=found.corr, score=found.score, alloc=found.alloc, dist=found.dist)
    heads = ', '.join(f'{layer}.{head}' for layer, head in positional_heads(found.score))
    print(f'positional heads (layer.head): {heads}; rank correlation of score and attended distance: '
          f'{spearman(found.score, found.dist):.2f}')  # fmt: skip
    return [numbers, distance_heatmap(found, picture)]


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
