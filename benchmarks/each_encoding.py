"""Time of a train step with each encoding, relative to a train step with `nope`.

The step is that of train.py, with one device for each core of a CPU.

    python benchmarks/each_encoding.py  # every registered encoding, ten minutes on two cores
    python benchmarks/each_encoding.py --encodings 'rope()' 'fire(width=32)'
"""

import argparse

from measure import MIB, milliseconds, ratio, show, take_turns, temporary
from train_step import MeshStep, batch_of, model_config

import posenc_jax as pj
from posenc_jax.layer.sharding import split_cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--encodings', nargs='*', default=[card.example for card in pj.catalog('encoding')]
    )
    for name, default in (
        ('layers', 6),
        ('width', 256),
        ('heads', 8),
        ('length', 512),
        ('batch', 8),
        ('rounds', 5),
    ):
        parser.add_argument(f'--{name}', type=int, default=default)
    args = parser.parse_args()
    split_cpu(args.batch)
    sizes = dict(train_len=args.length, layers=args.layers, width=args.width, heads=args.heads)
    batch = batch_of(args.batch, args.length)
    nope = MeshStep(model_config('nope()', **sizes), batch)
    rows = []
    for spec in args.encodings:
        try:
            step = MeshStep(model_config(spec, **sizes), batch)
        except ValueError as error:  # e.g. an example whose table is shorter than this length
            rows.append((spec, 'not run', '', '', str(error)[:40]))
            continue
        seconds = take_turns({'nope': nope, 'this': step}, args.rounds)
        rows.append(
            (
                spec,
                milliseconds(seconds['this']),
                milliseconds(seconds['nope']),
                f'{ratio(seconds, "this", "nope"):.2f}x',
                f'{temporary(step.compiled) / MIB:.0f}',
            )
        )
    title = (
        f'Train step: {args.layers} layers, D {args.width}, {args.heads} heads, L '
        f'{args.length}, B {args.batch}, float32'
    )
    show(title, ('encoding', 'ms', 'nope ms', 'time', 'temporary MiB'), rows)


if __name__ == '__main__':
    main()
