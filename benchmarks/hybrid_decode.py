"""A decoder-hybrid-decoder behind a long text, against a plain decoder of equal depth and width.

Two tables: the time of a decode step, the bytes of the cache and how many of its layers have full
length; and the time of a prompt. The hybrid runs with caches of full length in its window layers,
and with caches that keep their windows (`BoundedWindows`). Its prompt is read by all layers, or by
its lower half and the last token alone (`prefill(last=1)`). All contenders run in one process and
take turns. The caches of the first table hold random numbers, whose values do not matter.

    python benchmarks/hybrid_decode.py                    # 16k tokens; a few minutes on two cores
    python benchmarks/hybrid_decode.py --length=1024 --new=8 --rounds=2
"""

import functools

import jax
from flax import nnx
from long_decode import contender, times_and_sizes
from measure import MIB, options, shorter, show, small_model, take_turns

from posenc_jax.lab.decoding import decode as plain
from posenc_jax.lab.decoding.bounded_windows import bounded_windows
from posenc_jax.lab.model import Transformer
from posenc_jax.mixers.gmu_hybrid import pattern_of
from posenc_jax.protocol.tokens import Tokens


def full_length(cache, capacity: int) -> int:
    """How many layers keep keys of the whole capacity."""
    keys = [getattr(own, 'k', None) for own in cache.layers]
    return sum(k is not None and k.shape[2] == capacity for k in keys)


def prompt_reader(model: Transformer, length: int, last: int | None):
    """A function that reads a prompt and returns the logits of its last token and the cache."""
    graphdef, state = nnx.split(model)
    ids = jax.random.randint(jax.random.key(1), (1, length), 0, model.cfg.vocab_size)

    @jax.jit
    def run(state, ids):
        model = nnx.merge(graphdef, state)
        empty = plain.init_cache(model, Tokens.of(length=length))
        logits, cache = plain.prefill(model, empty, ids, last=last)
        return logits[:, -1], cache.layers

    return functools.partial(run, state, ids)


def main():
    args = options(
        __doc__, length=16384, new=32, batch=1, layers=8, width=256, heads=8, window=64, rounds=5
    )
    capacity, kept = args.length + args.new, {}
    sizes = dict(train_len=256, layers=args.layers, width=args.width, heads=args.heads)
    of = lambda *pattern: small_model('', pattern=pattern, **sizes)
    decoder, hybrid = of('rope()'), of(*pattern_of(args.layers, window=args.window))

    def counted(name, cut_down=lambda cache: cache):
        def run(cache):
            cache = cut_down(cache)
            kept[name] = full_length(cache, capacity)
            return cache

        return run

    contenders = {
        'plain decoder': (decoder,),
        'hybrid': (hybrid,),
        'hybrid, windows bounded': (hybrid, functools.partial(bounded_windows, hybrid)),
    }
    built = {
        name: contender(model, args.length, args.new, args.batch, cut_down=counted(name, *cut))
        for name, (model, *cut) in contenders.items()
    }
    rows = [
        (name, *times, kept[name], f'{size / MIB:.2f}', f'{saved:.2f}x')
        for name, *times, size, saved in times_and_sizes(built, args.new, args.rounds)
    ]
    columns = 'model', 'ms per token, median (min)', 'speed', 'full caches', 'MiB of all states'
    sizes = f'{args.layers} layers of width {args.width}, window {args.window}'
    title = f'{args.new} tokens behind {args.length}, {args.batch} row(s), {sizes}'
    show(title, (*columns, 'memory saved'), rows)

    readers = {
        'plain decoder': prompt_reader(decoder, args.length, 1),
        'hybrid, all layers': prompt_reader(hybrid, args.length, None),
        'hybrid, last token in the upper half': prompt_reader(hybrid, args.length, 1),
    }
    seconds = take_turns(readers, args.rounds)
    rows = [(name, *shorter(seconds, name, 'plain decoder')) for name in readers]
    columns = ('model', 'ms per prompt, median (min)', 'speed')
    show(f'A prompt of {args.length} tokens, {sizes}', columns, rows)


if __name__ == '__main__':
    main()
