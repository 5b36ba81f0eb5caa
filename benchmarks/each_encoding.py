"""Time of a train step with each encoding, relative to a train step with `nope`.

The step is that of train.py, with one device for each core of a CPU.

    python benchmarks/each_encoding.py  # every registered encoding, ten minutes on two cores
    python benchmarks/each_encoding.py --encodings 'rope()' 'fire(width=32)'
"""

from measure import longer, milliseconds, options, show, take_turns, temporary_mib
from train_step import STANDARD, MeshStep, batch_of, described, model_config, sizes_of

import posenc_jax as pj
from posenc_jax.layer.sharding import split_cpu


def main():
    examples = [card.example for card in pj.catalog('encoding')]
    args = options(__doc__, encodings=examples, **STANDARD | {'rounds': 5})
    split_cpu(args.batch)
    sizes, batch = sizes_of(args), batch_of(args.batch, args.length)
    nope = MeshStep(model_config('nope()', **sizes), batch)
    rows = []
    for spec in args.encodings:
        try:
            step = MeshStep(model_config(spec, **sizes), batch)
        except ValueError as error:  # e.g. an example whose table is shorter than this length
            rows.append((spec, 'not run', '', '', str(error)[:40]))
            continue
        seconds = take_turns({'nope': nope, 'this': step}, args.rounds)
        time, times = longer(seconds, 'this', 'nope')
        rows.append((spec, time, milliseconds(seconds['nope']), times, temporary_mib(step)))
    columns = ('encoding', 'ms', 'nope ms', 'time', 'temporary MiB')
    show(f'Train step: {described(args)}', columns, rows)


if __name__ == '__main__':
    main()
