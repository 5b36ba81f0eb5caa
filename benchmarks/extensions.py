"""Context extensions on a text far beyond the trained length: what a pass and a decoding step cost.

The table gives time and temporary memory of a pass over the text, and the time of a decoding step
behind it. All extensions run the weights of one small model in one process and take turns; the
values of the weights do not matter. The model has 4 layers of width 160.
docs/results/training_free_extension.md has the numbers.

    python benchmarks/extensions.py  # 8192 tokens, 32 times the trained length; five minutes
    python benchmarks/extensions.py --length=2048 --rounds=1
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from measure import MIB, milliseconds, ratio, show, take_turns, temporary

from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.protocol.tokens import Tokens

EXTENSIONS = (
    'none', 'yarn(factor={factor}.0)', 'string()', 'dca()', 'self_extend(group={group})',
    'self_extend(group=None)',
    'lm_infinite()', 'gali()',
)  # fmt: skip


class Pass:
    """A compiled pass over one row of tokens; a call runs it."""

    def __init__(self, model: Transformer, length: int):
        graphdef, state = nnx.split(model)
        tokens = jax.random.randint(jax.random.key(1), (1, length), 0, model.cfg.vocab_size)
        read = jax.jit(lambda state, tokens: nnx.merge(graphdef, state).hidden(tokens))
        self.compiled, self.given = read.lower(state, tokens).compile(), (state, tokens)

    def __call__(self):
        return self.compiled(*self.given)


class Step:
    """A compiled decoding step behind `length - 1` tokens; a call runs it. All of these but the
    first have zeros as keys, which does not change the time.
    """

    def __init__(self, model: Transformer, length: int):
        model = model.for_decoding()
        token = jnp.zeros(1, jnp.int32)
        cache = prefill(model, init_cache(model, Tokens.of(length=length)), token[:, None])[1]
        cache = dataclasses.replace(cache, cursor=jnp.asarray(length - 1, jnp.int32))
        graphdef, state = nnx.split(model)
        step = jax.jit(
            lambda state, cache, token: decode_step(nnx.merge(graphdef, state), cache, token)[0]
        )
        self.compiled, self.given = step.lower(state, cache, token).compile(), (state, cache, token)

    def __call__(self):
        return self.compiled(*self.given)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ('length', 8192), ('trained', 256), ('layers', 4), ('width', 160), ('heads', 4), ('rounds',
            5), ('steps', 20),
    ):  # fmt: skip
        parser.add_argument(f'--{name}', type=int, default=default)
    args = parser.parse_args()
    factor = args.length // args.trained
    sizes = dict(
        vocab_size=256,
        train_len=args.trained,
        layers=args.layers,
        width=args.width,
        heads=args.heads,
    )
    model = Transformer(TransformerConfig(**sizes, encoding='rope()'), rngs=nnx.Rngs(0))
    specs = [spec.format(factor=factor, group=2 * factor) for spec in EXTENSIONS]
    models = {spec: model if spec == 'none' else model.extend(spec) for spec in specs}
    passes = {spec: Pass(model, args.length) for spec, model in models.items()}
    steps = {spec: Step(model, args.length) for spec, model in models.items()}
    read, written = take_turns(passes, args.rounds), take_turns(steps, args.steps)
    rows = [
        (
            spec,
            milliseconds(read[spec]),
            f'{ratio(read, spec, "none"):.2f}x',
            f'{temporary(passes[spec].compiled) / MIB:.0f}',
            milliseconds(written[spec]),
            f'{ratio(written, spec, "none"):.2f}x',
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
