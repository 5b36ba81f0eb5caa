"""Blocked attention with ALiBi against attention with a dense bias, forward and backward.

The dense side is `jax.nn.dot_product_attention` with the bias as an array.

    python benchmarks/attention.py         # three minutes on two cores
    python benchmarks/attention.py --long  # also L = 16384, where the dense side needs 13 GiB
"""

import functools

import jax
from measure import (
    MIB,
    Compiled,
    drawn,
    gradient,
    milliseconds,
    options,
    shorter,
    show,
    take_turns,
    temporary,
)

import posenc_jax as pj

SHAPES = ((8, 512, 8, 32), (1, 1024, 4, 64), (1, 4096, 4, 64))  # B, L, N, H
LONG = (1, 16384, 4, 64)
COLUMNS = ('shape', 'dense ms', 'blocked ms', 'faster', 'dense MiB', 'blocked MiB', 'less memory')


def contenders(shape: tuple[int, ...], dtype: str) -> dict[str, Compiled]:
    """The two compiled gradients."""
    heads, qkv = shape[2], drawn(shape, dtype)
    tok, encoding = pj.Tokens.of(length=shape[1]), pj.make('alibi()', heads=heads, causal=True)
    bias = pj.make('alibi()', heads=heads).bias(tok.pos, tok.pos).astype(dtype)
    dense = functools.partial(jax.nn.dot_product_attention, bias=bias, is_causal=True)
    blocked = lambda q, k, v: pj.attend(encoding, q, k, v, tok, tok)
    return {'dense': gradient(dense, *qkv), 'blocked': gradient(blocked, *qkv)}


def main():
    args = options(__doc__, rounds=7, dtype='float32', long=False)
    rows = []
    for shape in SHAPES + (LONG,) * args.long:
        calls = contenders(shape, args.dtype)
        seconds = take_turns(calls, args.rounds if shape != LONG else 2)
        dense, blocked = (temporary(call.compiled) for call in calls.values())
        times = milliseconds(seconds['dense']), *shorter(seconds, 'blocked', 'dense')
        memory = f'{dense / MIB:.1f}', f'{blocked / MIB:.1f}', f'{dense / blocked:.0f}x'
        rows.append(('B{} L{} N{} H{}'.format(*shape), *times, *memory))
    title = f'ALiBi, causal, forward + backward, {args.dtype}: median (minimum) of the rounds'
    show(title, COLUMNS, rows)


if __name__ == '__main__':
    main()
