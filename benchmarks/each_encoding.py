"""Time of a train step, and of decoding, with each encoding, relative to those with another one.

The step is that of train.py, with one device for each core of a CPU. Decoding is that of
`generate`: new tokens behind a prompt, with a cache, on one device.

    python benchmarks/each_encoding.py  # every registered encoding, twenty minutes on two cores
    python benchmarks/each_encoding.py --base 'rope()' --encodings 'fox()' 'fire(width=32)'
    python benchmarks/each_encoding.py --new 0  # train steps alone
    python benchmarks/each_encoding.py --processor  # processor times, for a busy machine
"""

import functools
import time

import jax
from measure import longer, milliseconds, options, show, small_model, take_turns, temporary_mib
from train_step import (
    STANDARD,
    VOCAB,
    MeshStep,
    batch_of,
    described,
    model_config,
    run_of,
    sizes_of,
)

import posenc_jax as pj
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.layer.sharding import split_cpu


def decoding(spec: str, batch: int, prompt: int, new: int, sizes: dict[str, int]):
    """A call that continues a prompt by `new` tokens."""
    prompts = jax.random.randint(jax.random.key(1), (batch, prompt), 0, VOCAB)
    model = small_model(spec, **sizes)
    return functools.partial(generate, model, prompts, max_new_tokens=new, temperature=0.0)


def main():
    examples = [card.example for card in pj.catalog('encoding')]
    more = dict(base='nope()', prompt=256, new=64, encodings=examples)
    more |= dict(processor=(False, 'take processor times, for a machine that others use too'))
    args = options(__doc__, **more, **STANDARD | {'rounds': 5})
    clock = time.process_time if args.processor else time.perf_counter
    split_cpu(args.batch)
    sizes, batch = sizes_of(args), batch_of(args.batch, args.length)
    make = lambda spec: MeshStep(run_of(model_config(spec, **sizes), batch), batch)
    decode = functools.partial(decoding, batch=args.batch, prompt=args.prompt, new=args.new)
    base = make(args.base)
    base_decoding = decode(args.base, sizes=sizes) if args.new else None
    rows = []
    for spec in args.encodings:
        decoded = ''
        try:
            step = make(spec)
            seconds = take_turns({'base': base, 'this': step}, args.rounds, clock)
        except ValueError as error:  # e.g. an example whose table is shorter than this length
            rows.append((spec, 'not run', '', '', '', str(error)[:40]))
            continue
        if args.new:
            try:
                calls = {'base': base_decoding, 'this': decode(spec, sizes=sizes)}
                decoded = longer(take_turns(calls, args.rounds, clock), 'this', 'base')[1]
            except ValueError:  # no cache is possible
                decoded = 'no cache'
        own, times = longer(seconds, 'this', 'base')
        rows.append((spec, own, milliseconds(seconds['base']), times, temporary_mib(step), decoded))
    columns = ('encoding', 'ms', f'{args.base} ms', 'time', 'temporary MiB', 'decoding')
    show(f'Train step: {described(args)}', columns, rows)


if __name__ == '__main__':
    main()
