"""Decoding behind a long text: the full cache against LM-Infinite and DuoAttention.

The table gives the time of a step, the size of the cache, and the ratios of both to the full cache.
All contenders run the weights of one small model in one process and take turns. Their caches hold
random numbers, whose values do not matter. `lm_infinite` has two rows: it keeps all keys and hides
most of them, or it keeps only the visible keys (`constant_cache`).

    python benchmarks/long_decode.py                     # 32k tokens; a few minutes on two cores
    python benchmarks/long_decode.py --length=2048 --new=16
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import MIB, options, shorter, show, small_model, take_turns

from posenc_jax.lab.decoding import decode as plain
from posenc_jax.lab.decoding import duo_attention
from posenc_jax.lab.decoding.constant_cache import constant_cache
from posenc_jax.lab.decoding.duo_attention import cache as duo_cache
from posenc_jax.lab.model import Transformer
from posenc_jax.protocol.tokens import Tokens


def filled(cache, length: int, seed: int):
    """The cache filled with random numbers, as if a prompt of `length` tokens had been read."""
    leaves, structure = jax.tree.flatten(cache.layers)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = lambda key, leaf: (
        jax.random.normal(key, leaf.shape, leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf
    )
    full = [drawn(key, leaf) for key, leaf in zip(keys, leaves)]
    return dataclasses.replace(
        cache, layers=jax.tree.unflatten(structure, full), cursor=jnp.asarray(length, jnp.int32)
    )


def all_keys(model: Transformer, tok: Tokens, prompt: jax.Array):
    """A cache of all keys that has read a prompt."""
    return plain.prefill(model, plain.init_cache(model, tok), prompt)[1]


def contender(
    model: Transformer,
    length: int,
    new: int,
    batch: int = 1,
    *,
    start: Callable = all_keys,
    step: Callable = plain.decode_step,
    cut_down: Callable = lambda cache: cache,
):
    """A function that decodes `new` tokens behind `length` others, and the bytes of its cache.

    Args:
      model: the model.
      length, new, batch: tokens behind which it decodes, tokens that it decodes, and rows.
      start: from the model, the tokens and a prompt to a cache.
      step: a decoding step.
      cut_down: reduces the cache after it was filled.
    """
    model = model.for_decoding()
    prompt, capacity = jnp.zeros((batch, 1), jnp.int32), length + new
    cache = cut_down(filled(start(model, Tokens.of(length=capacity), prompt), length, 0))
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, layers, tokens, cursor):
        model = nnx.merge(graphdef, state)
        blocks = model.layers()
        # A batch of one row is carried without its batch axis, as in `generate`, so that keys are
        # written in place.
        cut = lambda layers: jax.tree.map(lambda a: a[0], layers) if batch == 1 else layers
        whole = lambda layers: jax.tree.map(lambda a: a[None], layers) if batch == 1 else layers

        def one(loop, _):
            layers, cursor, token = loop
            now = dataclasses.replace(cache, tokens=tokens, layers=whole(layers), cursor=cursor)
            logits, grown = step(model, now, token, blocks)
            token = logits.argmax(-1).astype(jnp.int32)
            return (cut(grown.layers), grown.cursor, token), token

        first = jnp.zeros(batch, jnp.int32)
        return jax.lax.scan(one, (cut(layers), cursor, first), None, length=new)[1]

    size = sum(a.nbytes for a in jax.tree.leaves(cache.layers))
    return functools.partial(run, state, cache.layers, cache.tokens, cache.cursor), size


def times_and_sizes(built: Mapping[str, tuple], new: int, rounds: int) -> list[tuple]:
    """Rows of a table of contenders: name, milliseconds a token, times faster than the first one,
    bytes of the cache, and times less memory than the first one.
    """
    seconds = take_turns({name: run for name, (run, _) in built.items()}, rounds)
    base = next(iter(built))
    return [
        (name, *shorter(seconds, name, base, new), size, built[base][1] / size)
        for name, (_, size) in built.items()
    ]


def main():
    args = options(
        __doc__, length=32768, new=32, batch=1, layers=4, width=256, heads=8, kv_heads=8, sink=64,
        recent=256, window=1024, rounds=5, sparsity=(0.5, 'share of key heads that stream'),
    )  # fmt: skip
    sizes = dict(train_len=args.window, layers=args.layers, width=args.width, heads=args.heads)
    of = functools.partial(small_model, kv_heads=args.kv_heads, **sizes)
    full = of('rope()')
    infinite = of(f'lm_infinite(encoding=rope(), n_global={args.sink}, n_local={args.window})')
    gates = np.random.default_rng(0).random((args.layers, args.kv_heads))
    retrieval = duo_attention.retrieval_heads(gates, sparsity=args.sparsity)
    duo = duo_attention.deploy(full, retrieval, sink=args.sink, recent=args.recent)
    ends = lambda cache: constant_cache(infinite, cache, cache.tokens, room=args.new)
    by_heads = lambda model, tok, prompt: duo_cache.prefill(
        model, plain.init_cache(model, tok), prompt
    )[1]
    streaming = f'duo_attention, {1 - retrieval.mean():.0%} of heads stream'
    behind = args.length, args.new, args.batch
    built = {
        'full cache': contender(full, *behind),
        'lm_infinite, all keys kept': contender(infinite, *behind),
        'lm_infinite, first and last keys': contender(infinite, *behind, cut_down=ends),
        streaming: contender(duo, *behind, start=by_heads, step=duo_cache.decode_step),
    }
    rows = [
        (*times, f'{size / MIB:.1f}', f'{saved:.2f}x')
        for *times, size, saved in times_and_sizes(built, args.new, args.rounds)
    ]
    columns = 'cache', 'ms per token, median (min)', 'speed', 'MiB of keys and values'
    sizes = f'{args.layers} layers of width {args.width}'
    title = f'{args.new} tokens behind {args.length}, {args.batch} row(s), {sizes}'
    show(title, (*columns, 'memory saved'), rows)


if __name__ == '__main__':
    main()
