"""Attention with iRPE against attention without positions on a grid, forward and backward pass.

    # 32 x 32 tokens, B 4, 8 heads, H 32: two minutes on two cores
    python benchmarks/irpe.py
    python benchmarks/irpe.py --batch 1 --heads 4 --width 64

All take turns in one process. The first ratio is that of the times of the rounds; the second is
that of the smallest processor times, which depend less on what else runs on the machine. The
gradients are those of queries, keys, values and tables, and the projection of the terms is part of
the time.
"""

import argparse
import functools
import time

import jax
import numpy as np
from flax import nnx
from measure import MIB, milliseconds, ratio, show, take_turns, temporary

import posenc_jax as pj

SPECS = (
    'nope()',
    'irpe()',
    'irpe(method="cross")',
    'irpe(mode="bias")',
    'irpe(on="v")',
    'irpe(on="qkv")',
)


def compiled(spec: str, side: int, batch: int, heads: int, width: int):
    """The gradients of attention over a grid, compiled, and its arguments."""
    length = side * side
    q, k, v = (
        jax.random.normal(key, (batch, length, heads, width))
        for key in jax.random.split(jax.random.key(0), 3)
    )
    tok = pj.Tokens.of(positions=np.stack(np.divmod(np.arange(length), side), axis=-1)[None])
    graphdef, state = nnx.split(pj.make(spec, heads=heads, kv_heads=heads, head_dim=width))

    def loss(state, q, k, v, tok):
        encoding = nnx.merge(graphdef, state)
        projected = encoding.project(q, k, v, tok, tok)
        return pj.attend(encoding, *projected, applied=pj.TOKEN_STAGE).sum()

    arguments = state, q, k, v, tok
    return jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*arguments).compile(), arguments


def computed(call, times: int) -> float:
    """Processor time of a call in seconds, the smallest of a few."""
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        jax.block_until_ready(call())
        seconds.append(time.process_time() - begin)
    return min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--encodings', nargs='*', default=SPECS[1:])
    for name, default in (('side', 32), ('batch', 4), ('heads', 8), ('width', 32), ('rounds', 5)):
        parser.add_argument(f'--{name}', type=int, default=default)
    args = parser.parse_args()
    sizes = args.side, args.batch, args.heads, args.width
    programs = {spec: compiled(spec, *sizes) for spec in (SPECS[0], *args.encodings)}
    calls = {spec: functools.partial(run, *given) for spec, (run, given) in programs.items()}
    seconds = take_turns(calls, args.rounds)
    least = {spec: computed(call, args.rounds) for spec, call in calls.items()}
    rows = [
        (
            spec,
            milliseconds(seconds[spec]),
            f'{ratio(seconds, spec, SPECS[0]):.2f}x',
            f'{least[spec] / least[SPECS[0]]:.2f}x',
            f'{temporary(programs[spec][0]) / MIB:.0f}',
        )
        for spec in programs
    ]
    title = (
        f'Attention over {args.side} x {args.side} tokens, B {args.batch}, {args.heads} heads, H '
        f'{args.width}, float32: median (minimum) of the rounds'
    )
    show(title, ('encoding', 'ms', 'time', 'processor time', 'temporary MiB'), rows)


if __name__ == '__main__':
    main()
