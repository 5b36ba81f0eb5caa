"""Attention with iRPE against attention without positions on a grid, forward and backward pass.

    # 32 x 32 tokens, B 4, 8 heads, H 32: two minutes on two cores
    python benchmarks/irpe.py
    python benchmarks/irpe.py --batch 1 --heads 4 --width 64

All take turns in one process. The first ratio is that of the times of the rounds; the second is
that of the smallest processor times, which depend less on what else runs on the machine. The
gradients are those of queries, keys, values and tables, and the projection of the terms is part of
the time.
"""

import jax
import numpy as np
from flax import nnx
from measure import (
    Compiled,
    drawn,
    longer,
    options,
    processor_seconds,
    show,
    take_turns,
    temporary_mib,
)

import posenc_jax as pj

SPECS = (
    'nope()', 'irpe()', 'irpe(method="cross")', 'irpe(mode="bias")', 'irpe(on="v")',
    'irpe(on="qkv")',
)  # fmt: skip


def compiled(spec: str, side: int, batch: int, heads: int, width: int) -> Compiled:
    """The gradients of attention over a grid."""
    positions = np.stack(np.divmod(np.arange(side * side), side), axis=-1)[None]
    tok, qkv = pj.Tokens.of(positions=positions), drawn((batch, side * side, heads, width))
    graphdef, state = nnx.split(pj.make(spec, heads=heads, kv_heads=heads, head_dim=width))

    def loss(state, q, k, v, tok):
        encoding = nnx.merge(graphdef, state)
        projected = encoding.project(q, k, v, tok, tok)
        return pj.attend(encoding, *projected, applied=pj.TOKEN_STAGE).sum()

    return Compiled(jax.grad(loss, (0, 1, 2, 3)), state, *qkv, tok)


def main():
    args = options(
        __doc__, encodings=list(SPECS[1:]), side=32, batch=4, heads=8, width=32, rounds=5
    )
    sizes = args.side, args.batch, args.heads, args.width
    base, *others = (SPECS[0], *args.encodings)
    calls = {spec: compiled(spec, *sizes) for spec in (base, *others)}
    seconds = take_turns(calls, args.rounds)
    least = {spec: processor_seconds(call, args.rounds) for spec, call in calls.items()}
    rows = [
        (
            *(spec, *longer(seconds, spec, base), f'{least[spec] / least[base]:.2f}x'),
            temporary_mib(call),
        )
        for spec, call in calls.items()
    ]
    title = (
        f'Attention over {args.side} x {args.side} tokens, B {args.batch}, {args.heads} heads, H '
        f'{args.width}, float32: median (minimum) of the rounds'
    )
    show(title, ('encoding', 'ms', 'time', 'processor time', 'temporary MiB'), rows)


if __name__ == '__main__':
    main()
