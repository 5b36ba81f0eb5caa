"""Context extensions on a text far beyond the trained length: what a pass and a decoding step cost.

The table gives time and temporary memory of a pass over the text, and the time of a decoding step
behind it. All extensions run the weights of one small model in one process and take turns; the
values of the weights do not matter. The model has 4 layers of width 160.
docs/results/training_free_extension.md has the numbers.

    python benchmarks/extensions.py  # 8192 tokens, 32 times the trained length; five minutes
    python benchmarks/extensions.py --length=2048 --rounds=1
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from measure import Compiled, longer, options, show, small_model, take_turns, temporary_mib

from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.model import Transformer
from posenc_jax.protocol.tokens import Tokens

EXTENSIONS = (
    'none', 'yarn(factor={factor}.0)', 'string()', 'dca()', 'self_extend(group={group})',
    'self_extend(group=None)',
    'lm_infinite()', 'gali()',
)  # fmt: skip


def reading(model: Transformer, length: int) -> Compiled:
    """A compiled pass over one row of tokens."""
    graphdef, state = nnx.split(model)
    tokens = jax.random.randint(jax.random.key(1), (1, length), 0, model.cfg.vocab_size)
    return Compiled(lambda state, ids: nnx.merge(graphdef, state).hidden(ids), state, tokens)


def decoding(model: Transformer, length: int) -> Compiled:
    """A compiled decoding step behind `length - 1` tokens. All of these but the first have zeros as
    keys, which does not change the time.
    """
    model = model.for_decoding()
    token = jnp.zeros(1, jnp.int32)
    cache = prefill(model, init_cache(model, Tokens.of(length=length)), token[:, None])[1]
    cache = dataclasses.replace(cache, cursor=jnp.asarray(length - 1, jnp.int32))
    graphdef, state = nnx.split(model)
    step = lambda state, cache, token: decode_step(nnx.merge(graphdef, state), cache, token)[0]
    return Compiled(step, state, cache, token)


def main():
    args = options(
        __doc__, length=8192, trained=256, layers=4, width=160, heads=4, rounds=5, steps=20
    )
    factor = args.length // args.trained
    sizes = dict(train_len=args.trained, layers=args.layers, width=args.width, heads=args.heads)
    model = small_model('rope()', **sizes)
    specs = [spec.format(factor=factor, group=2 * factor) for spec in EXTENSIONS]
    models = {spec: model if spec == 'none' else model.extend(spec) for spec in specs}
    passes = {spec: reading(model, args.length) for spec, model in models.items()}
    steps = {spec: decoding(model, args.length) for spec, model in models.items()}
    read, written = take_turns(passes, args.rounds), take_turns(steps, args.steps)
    rows = [
        (
            *(spec, *longer(read, spec, 'none'), temporary_mib(passes[spec])),
            *longer(written, spec, 'none'),
        )
        for spec in specs
    ]
    title = (
        f'{args.length} tokens, {factor} times the trained length, {args.layers} layers of '
        f'width {args.width}, {args.heads} heads'
    )
    show(title, ('extension', 'pass, ms', 'time', 'temporary MiB', 'step, ms', 'time'), rows)


if __name__ == '__main__':
    main()
