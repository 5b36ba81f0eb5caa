"""Decoding speed: a scanned loop over all tokens against one jitted call for every token.

The scanned loop is that of `generate`, with a cache [B, K, S, H]; the calls use a cache [B, S, N,
H]. Both decode greedily with the same weights and take turns in one process. The share of tokens
that agree is printed.

    python benchmarks/decode.py            # about a minute on two cores
"""

import functools
import statistics

import jax
import jax.numpy as jnp
from flax import nnx
from measure import options, small_model, take_turns

from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import Transformer
from posenc_jax.protocol.tokens import Tokens


def plain_forward(graphdef, state, layers, cache, tokens, start):
    """The most probable token after `tokens` [B, T], whose first position is `start`, and the new
    cache [B, S, N, H] of each layer. ALiBi is a dense bias.
    """
    model = nnx.merge(graphdef, state)
    length, capacity = tokens.shape[1], cache[0][0].shape[1]
    distance = (start + jnp.arange(length))[:, None] - jnp.arange(capacity)[None]
    bias = jnp.where(
        distance >= 0, -model.shared[0].slopes[...][:, None, None] * distance, -jnp.inf
    )[None]
    x = model.embed(tokens, (Tokens.of(length=length),))
    new = []
    for (block_graph, block_state), (keys, values) in zip(layers, cache, strict=True):
        block = nnx.merge(block_graph, block_state)

        def mix(h):
            q, k, v = block.attention.qkv(h)
            own = [
                jax.lax.dynamic_update_slice_in_dim(a, b, start, 1)
                for a, b in ((keys, k), (values, v))
            ]
            new.append(own)
            return block.attention.output(jax.nn.dot_product_attention(q, *own, bias=bias))

        x = block.around(x, mix)
    return jnp.argmax(model.logits(model.norm(x[:, -1:]))[:, 0], axis=-1), new


def plain_generate(model: Transformer):
    """Generation with one jitted call for every token, which donates the cache."""
    graphdef, state = nnx.split(model)
    graphs, states = zip(*(nnx.split(block) for _, block in model.layers()))
    forward = jax.jit(
        lambda state, states, cache, tokens, start: plain_forward(
            graphdef, state, list(zip(graphs, states)), cache, tokens, start
        ),
        donate_argnums=2,
    )

    def run(prompts, new):
        batch, length = prompts.shape
        empty = lambda: jnp.zeros((batch, length + new, model.cfg.heads, model.cfg.head_dim))
        token, cache = forward(state, states, [(empty(), empty()) for _ in states], prompts, 0)
        out = [token]
        for step in range(1, new):
            token, cache = forward(state, states, cache, token[:, None], length + step - 1)
            out.append(token)
        return jnp.concatenate([prompts, jnp.stack(out, axis=1)], axis=1)

    return run


def main():
    args = options(__doc__, batch=8, prompt=64, new=192, layers=6, width=256, heads=8, rounds=5)
    sizes = dict(train_len=256, layers=args.layers, width=args.width, heads=args.heads)
    model = small_model('alibi()', **sizes)
    shape = args.batch, args.prompt
    prompts = jax.random.randint(jax.random.key(1), shape, 0, model.cfg.vocab_size)
    ours = functools.partial(generate, model, prompts, max_new_tokens=args.new, temperature=0.0)
    plain = functools.partial(plain_generate(model), prompts, args.new)
    agree = float((ours() == plain()).mean())
    calls = {'scanned loop, [B, K, S, H]': ours, 'step by step, [B, S, N, H]': plain}
    seconds = take_turns(calls, args.rounds)
    print(vars(args), jax.devices()[0].device_kind)
    rates = [args.batch * args.new / statistics.median(times) for times in seconds.values()]
    for name, rate in zip(calls, rates):
        print(f'{name:30s} {rate:8.0f} tokens/s')
    print(f'ratio {rates[0] / rates[1]:.2f}; tokens that agree: {agree:.1%}')


if __name__ == '__main__':
    main()
