"""Mixer layers against causal attention with `rope()`: time by length, and decoding.

The first table has the time of a forward and a backward pass of one layer, without its norms and
feed-forward network. The slope is that of log time over log length, by least squares over the last
octaves: 1 is linear, 2 quadratic. The crossing is the length from which on the mixer is faster,
interpolated between the lengths that were measured. The second table decodes tokens behind a text
with a whole model. All contenders take turns in one process, with the same sizes.

    python benchmarks/mixers.py                   # 512 .. 32768 tokens; half an hour on two cores
    python benchmarks/mixers.py --longest=2048 --new=8 --rounds=2 --mixers 'cheems()' 'gru()'
"""

import statistics

import jax
import numpy as np
from flax import nnx
from long_decode import contender, times_and_sizes
from measure import MIB, Compiled, options, shorter, show, small_model, take_turns, temporary

from posenc_jax.protocol.tokens import Tokens

ATTENTION = 'rope()'
LONG = 8192  # from here on there are at most two rounds


def layer_gradient(spec: str, length: int, sizes: dict) -> Compiled:
    """The gradient of one layer by its variables and its input."""
    made = small_model(spec, vocab_size=8, train_len=length, layers=1, **sizes)
    graphdef, params, rest = nnx.split(made, nnx.Param, ...)
    tok = Tokens.of(length=length)

    def loss(params, rest, x, weights):
        model = nnx.merge(graphdef, params, rest)
        ((layer_type, block),) = model.layers()
        out = model.mixer(layer_type, block).whole(x, model.place(tok)[layer_type])
        return (out * weights).sum()

    x, weights = jax.random.normal(
        jax.random.key(1), (2, 1, length, made.cfg.width), made.cfg.dtype
    )
    return Compiled(jax.grad(loss, (0, 2)), params, rest, x, weights)


def named(sizes: dict) -> str:
    return 'D {width}, {heads} heads, {dtype}'.format(**sizes)


def slope(seconds: dict[int, float], octaves: int) -> float:
    """The exponent of the time in the length, over the last octaves."""
    last = sorted(seconds)[-octaves - 1 :]
    return float(np.polyfit(np.log(last), np.log([seconds[length] for length in last]), 1)[0])


def crossing(mixer: dict[int, float], attention: dict[int, float]) -> str:
    """The length from which on the mixer is faster."""
    lengths = sorted(mixer)
    gaps = [np.log(mixer[length] / attention[length]) for length in lengths]
    slower = [number for number, gap in enumerate(gaps) if gap >= 0]
    if not slower:
        return f'below {lengths[0]}'
    at = slower[-1]
    if at == len(lengths) - 1:
        return f'above {lengths[-1]}'
    share = gaps[at] / (gaps[at] - gaps[at + 1])
    return f'{lengths[at] * (lengths[at + 1] / lengths[at]) ** share:.0f}'


def by_length(specs: list[str], args, sizes: dict) -> None:
    lengths = [2**n for n in range(args.shortest.bit_length() - 1, args.longest.bit_length())]
    median: dict[str, dict[int, float]] = {spec: {} for spec in specs}
    rows = []
    for length in lengths:
        calls = {spec: layer_gradient(spec, length, sizes) for spec in specs}
        seconds = take_turns(calls, args.rounds if length < LONG else min(args.rounds, 2))
        for spec, times in seconds.items():
            median[spec][length] = statistics.median(times)
            time, faster = shorter(seconds, spec, ATTENTION)
            room = f'{temporary(calls[spec].compiled) / MIB:.1f}'
            rows.append((f'{length} {spec}', time, '' if spec == ATTENTION else faster, room))
    title = f'One layer, forward + backward, B 1, {named(sizes)}'
    show(title, ('length, layer', 'ms', 'faster', 'temporary MiB'), rows)
    rows = [
        (
            spec,
            f'{slope(median[spec], args.octaves):.2f}',
            '' if spec == ATTENTION else crossing(median[spec], median[ATTENTION]),
        )
        for spec in specs
    ]
    title = (
        f'Growth over the last {min(args.octaves, len(lengths) - 1)} octaves up to {lengths[-1]}'
    )
    show(title, ('layer', 'slope', 'faster than attention from'), rows)


def decoding(specs: list[str], args, sizes: dict) -> None:
    of = lambda spec: small_model(spec, train_len=args.behind, layers=args.layers, **sizes)
    runs = {spec: contender(of(spec), args.behind, args.new) for spec in specs}
    rows = [
        (*times, f'{size:,}', f'{less:.1f}x')
        for *times, size, less in times_and_sizes(runs, args.new, args.rounds)
    ]
    title = f'{args.new} tokens behind {args.behind}, B 1, {args.layers} layers, {named(sizes)}'
    show(title, ('layers', 'ms per token', 'faster', 'bytes of state', 'less memory'), rows)


def main():
    args = options(
        __doc__, mixers=(['cheems()'], 'spec strings'), shortest=512, longest=32768, octaves=4,
        rounds=5, width=256, heads=8, behind=32768, new=32, layers=4, dtype='float32',
    )  # fmt: skip
    specs = [ATTENTION, *args.mixers]
    sizes = dict(width=args.width, heads=args.heads, dtype=args.dtype)
    by_length(specs, args, sizes)
    decoding(specs, args, sizes)


if __name__ == '__main__':
    main()
