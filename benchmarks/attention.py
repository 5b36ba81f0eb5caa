"""Blocked attention with ALiBi against attention with a dense bias, forward and backward.

The dense side is `jax.nn.dot_product_attention` with the bias as an array.

    python benchmarks/attention.py         # three minutes on two cores
    python benchmarks/attention.py --long  # also L = 16384, where the dense side needs 13 GiB
"""

import argparse
import functools

import jax
import jax.numpy as jnp
from measure import MIB, milliseconds, ratio, show, take_turns, temporary

import posenc_jax as pj

SHAPES = ((8, 512, 8, 32), (1, 1024, 4, 64), (1, 4096, 4, 64))  # B, L, N, H
LONG = (1, 16384, 4, 64)


def compile_gradient(attention, q, k, v):
    total = lambda q, k, v: attention(q, k, v).astype(jnp.float32).sum()
    return jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, v).compile()


def contenders(batch: int, length: int, heads: int, width: int, dtype: str):
    """The two compiled gradients, and their arguments."""
    arguments = [
        jax.random.normal(key, (batch, length, heads, width), dtype)
        for key in jax.random.split(jax.random.key(0), 3)
    ]
    tok, encoding = pj.Tokens.of(length=length), pj.make('alibi()', heads=heads, causal=True)
    bias = pj.make('alibi()', heads=heads).bias(tok.pos, tok.pos)
    compiled = {
        'dense': compile_gradient(
            functools.partial(
                jax.nn.dot_product_attention, bias=bias.astype(dtype), is_causal=True
            ),
            *arguments,
        ),
        'blocked': compile_gradient(
            lambda q, k, v: pj.attend(encoding, q, k, v, tok, tok), *arguments
        ),
    }
    return compiled, arguments


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--long', action='store_true')
    args = parser.parse_args()
    rows = []
    for shape in SHAPES + (LONG,) * args.long:
        compiled, arguments = contenders(*shape, args.dtype)
        calls = {name: functools.partial(run, *arguments) for name, run in compiled.items()}
        seconds = take_turns(calls, args.rounds if shape != LONG else 2)
        dense, blocked = (temporary(run) for run in compiled.values())
        rows.append(
            (
                'B{} L{} N{} H{}'.format(*shape),
                milliseconds(seconds['dense']),
                milliseconds(seconds['blocked']),
                f'{ratio(seconds, "dense", "blocked"):.2f}x',
                f'{dense / MIB:.1f}',
                f'{blocked / MIB:.1f}',
                f'{dense / blocked:.0f}x',
            )
        )
    show(
        f'ALiBi, causal, forward + backward, {args.dtype}: median (minimum) of the rounds',
        ('shape', 'dense ms', 'blocked ms', 'faster', 'dense MiB', 'blocked MiB', 'less memory'),
        rows,
    )


if __name__ == '__main__':
    main()
