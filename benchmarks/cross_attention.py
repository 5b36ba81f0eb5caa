"""A decode step of cross-attention against one of self-attention over as many cached keys.

Both are one layer's mixer with the same sizes, and every step reads the output of the step before.
Self-attention projects and appends one key a step; the keys of cross-attention were projected once,
when the source was encoded.

    python benchmarks/cross_attention.py                   # about a minute on two cores
    python benchmarks/cross_attention.py --keys 256 4096 --steps=64
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from measure import milliseconds, options, ratio, show, small_model, take_turns

from posenc_jax.protocol.tokens import Tokens


def contenders(keys: int, steps: int, batch: int, sizes: dict):
    """Two functions that take `steps` decode steps over `keys` cached keys."""
    model = small_model(
        'nope()', vocab_size=8, train_len=keys, layers=1, kind='encoder_decoder', source_size=8,
        source_len=keys, **sizes,
    )  # fmt: skip
    ((layer_type, block),) = model.layers()
    source = model.encoded(jnp.ones((batch, keys), jnp.int32))
    x = jax.random.normal(jax.random.key(0), (batch, 1, model.cfg.width))
    graphdef, state = nnx.split(block)
    tok, mixer = Tokens.of(length=keys), model.mixer(layer_type, block)
    cache = mixer.fill(source.x, model.place(tok)[layer_type], keys)[1]
    rows = block.cross.start(source)
    encoding = model.encoding(layer_type, block)

    @jax.jit
    def own(state, x, cache):
        mixer = nnx.merge(graphdef, state).mixer(encoding)

        def step(carry, number):
            x, cache = carry
            y, cache = mixer.step(x, tok, cache, keys - steps + number)
            return (x + y, cache), None

        return jax.lax.scan(step, (x, cache), jnp.arange(steps))[0][0]

    @jax.jit
    def crossed(state, x, rows):
        cross = nnx.merge(graphdef, state).cross

        def step(x, number):
            new = tok.slice(keys - steps + number, 1)
            return x + cross.step(x, new, rows, source.tok), None

        return jax.lax.scan(step, x, jnp.arange(steps))[0]

    return {
        'self-attention': functools.partial(own, state, x, cache),
        'cross-attention': functools.partial(crossed, state, x, rows),
    }


def main():
    args = options(
        __doc__, keys=[256, 1024, 4096], batch=4, steps=64, width=256, heads=8, rounds=15
    )
    rows = []
    for keys in args.keys:
        runs = contenders(keys, args.steps, args.batch, dict(width=args.width, heads=args.heads))
        seconds = take_turns(runs, args.rounds)
        more = f'{ratio(seconds, "cross-attention", "self-attention"):.2f}'
        rows.append((keys, *(milliseconds(seconds[name]) for name in runs), more))
    title = (
        f'{args.steps} decode steps of one layer, batch {args.batch}, width {args.width}, '
        f'{args.heads} heads: median (smallest) ms'
    )
    show(title, ('keys', 'self-attention', 'cross-attention', 'cross / self'), rows)


if __name__ == '__main__':
    main()
