"""Kernelized attention, by pairs and by FFT, against softmax attention: a causal forward pass.

    # lengths 1024, 2048, .. 65536, one head, m = H = 16: ten minutes on two cores
    python benchmarks/kernelized.py
    python benchmarks/kernelized.py --max_length 8192

The three take turns in one process. Two results are printed besides the times: the slope of the FFT
form on logarithmic axes, and the length from which on it is faster than each of the others. The
slope is a least-squares fit to processor time, which does not grow on a busy machine.
"""

import functools

import jax
import numpy as np
from measure import drawn, milliseconds, options, processor_seconds, ratio, show, take_turns

import posenc_jax as pj


def contenders(length: int, heads: int, width: int, features: int):
    """The three calls, compiled and with their inputs, by name."""
    qkv = drawn((1, length, heads, width))
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
            own = dict(implementation=implementation, applied=pj.TOKEN_STAGE)
            return pj.attend(encoding, *projected, **own)

        calls[name] = functools.partial(jax.jit(run), *qkv)
    return calls


def main():
    args = options(__doc__, max_length=65536, heads=1, width=16, features=16, rounds=5)
    lengths = [2**n for n in range(10, 31) if 2**n <= args.max_length]
    rows, times, faster = [], [], {'softmax': None, 'pairs': None}
    for length in lengths:
        rounds = args.rounds if length < 32768 else min(args.rounds, 2)
        calls = contenders(length, args.heads, args.width, args.features)
        seconds = take_turns(calls, rounds)
        times.append(processor_seconds(calls['FFT'], 3))
        for name in faster:
            won = ratio(seconds, name, 'FFT') > 1
            faster[name] = (faster[name] or length) if won else None
        share = (f'{ratio(seconds, name, "FFT"):.2f}x' for name in faster)
        rows.append((length, *map(milliseconds, seconds.values()), *share))
        print(*rows[-1], flush=True)
    sizes = f'{args.heads} heads, H {args.width}, m {args.features}'
    columns = ('L', 'softmax ms', 'pairs ms', 'FFT ms', 'softmax / FFT', 'pairs / FFT')
    show(f'Causal forward pass, {sizes}: median (minimum) of the rounds', columns, rows)
    if len(lengths) > 1:
        slope = np.polyfit(np.log(lengths), np.log(times), 1)[0]
        print(f'slope of the FFT form, processor time: {slope:.2f}')
    for name, length in faster.items():
        print(f'FFT faster than {name} from {length or "none of these lengths"} on')


if __name__ == '__main__':
    main()
