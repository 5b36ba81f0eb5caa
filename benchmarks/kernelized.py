"""Kernelized attention, by pairs and by FFT, against softmax attention: a causal forward pass.

    # lengths 1024, 2048, .. 65536, one head, m = H = 16: ten minutes on two cores
    python benchmarks/kernelized.py
    python benchmarks/kernelized.py --max_length 8192

The three take turns in one process. Two results are printed besides the times: the slope of the FFT
form on logarithmic axes, and the length from which on it is faster than each of the others. The
slope is a least-squares fit to processor time, which does not grow on a busy machine.
"""

import argparse
import functools
import time

import jax
import numpy as np
from measure import milliseconds, ratio, show, take_turns

import posenc_jax as pj


def contenders(length: int, heads: int, width: int, features: int):
    """The three calls, compiled and with their inputs, by name."""
    q, k, v = (
        jax.random.normal(key, (1, length, heads, width))
        for key in jax.random.split(jax.random.key(0), 3)
    )
    tok = pj.Tokens.of(length=length)
    kernelized = f'kernelized_rpe(features={features}, max_distance=128, fft_from=1)'
    specs = {
        'softmax': ('nope()', None),
        'pairs': (kernelized, 'blocked'),
        'FFT': (kernelized, None),
    }
    calls = {}
    for name, (spec, implementation) in specs.items():
        encoding = pj.make(spec, heads=heads, head_dim=width, causal=True)

        def run(q, k, v, encoding=encoding, implementation=implementation):
            projected = encoding.project(q, k, v, tok, tok)
            return pj.attend(
                encoding, *projected, implementation=implementation, applied=pj.TOKEN_STAGE
            )

        calls[name] = functools.partial(jax.jit(run), q, k, v)
    return calls


def computed(call, times: int = 3) -> float:
    """Processor time of a call in seconds, the smallest of a few."""
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        jax.block_until_ready(call())
        seconds.append(time.process_time() - begin)
    return min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--max_length', type=int, default=65536)
    parser.add_argument('--heads', type=int, default=1)
    parser.add_argument('--width', type=int, default=16)
    parser.add_argument('--features', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()
    lengths = [2**n for n in range(10, 31) if 2**n <= args.max_length]
    rows, times, faster = [], [], {'softmax': None, 'pairs': None}
    for length in lengths:
        rounds = args.rounds if length < 32768 else min(args.rounds, 2)
        calls = contenders(length, args.heads, args.width, args.features)
        seconds = take_turns(calls, rounds)
        times.append(computed(calls['FFT']))
        for name in faster:
            won = ratio(seconds, name, 'FFT') > 1
            faster[name] = (faster[name] or length) if won else None
        share = (f'{ratio(seconds, name, "FFT"):.2f}x' for name in ('softmax', 'pairs'))
        rows.append(
            (length, *(milliseconds(seconds[name]) for name in ('softmax', 'pairs', 'FFT')), *share)
        )
        print(*rows[-1], flush=True)
    sizes = f'{args.heads} heads, H {args.width}, m {args.features}'
    columns = ('L', 'softmax ms', 'pairs ms', 'FFT ms', 'softmax / FFT', 'pairs / FFT')
    show(f'Causal forward pass, {sizes}: median (minimum) of the rounds', columns, rows)
    if len(lengths) > 1:
        print(
            'slope of the FFT form, processor time: '
            f'{np.polyfit(np.log(lengths), np.log(times), 1)[0]:.2f}'
        )
    for name, length in faster.items():
        print(
            f'FFT faster than {name} from '
            f'{"none of these lengths" if length is None else length} on'
        )


if __name__ == '__main__':
    main()
