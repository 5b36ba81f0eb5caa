"""What the layers of a model hold for a batch of sequences, and the attention of every head; the
analyses of positions read models through these functions.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.attention.tiles import pair_logits
from posenc_jax.base.memory import readable
from posenc_jax.lab.analyse.capture import capture_encodings
from posenc_jax.lab.model.mix_ffn import MixFFN
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.tokens import Tokens

# 'hidden' is the input of the first layer and the output of every layer; the others have one entry
# a layer: what attention adds, the sum of both, and the input of the non-linearity of the network.
PARTS = ('hidden', 'attention', 'residual', 'mlp')
MAX_BYTES = 4 * 2**30  # of the states that are held at once
LONGEST = 2048  # tokens of a sequence whose attention is held as maps of queries and keys


def layer_states(
    model: Transformer,
    tokens: Int[np.ndarray, 'S T'],
    parts: Sequence[str] = ('hidden',),
    *,
    batch: int = 8,
) -> list[Float[np.ndarray, '_ S T _']]:
    """The vectors of all tokens in every layer, float32, for each of `parts`.

    Args:
      model: a decoder or encoder of token ids, with any encodings or mixers.
      tokens: ids of S sequences.
      parts: 'hidden' [layers + 1, S, T, D], whose first entry is the input of the first layer;
        'attention', 'residual' [layers, S, T, D], what attention adds and the sum with its input;
        'mlp' [layers, S, T, F], the input of the non-linearity (of the gate, where there is one).
      batch: sequences that are read at a time.

    Raises:
      SpecError: an unknown part.
      ValueError: states that would take more than 4 GiB; a feed-forward network of images; layers
        that carry a stream.

    Example:
      >>> from posenc_jax.lab.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='alibi()'
      ... )
      >>> hidden, mlp = layer_states(
      ...     Transformer(cfg, rngs=nnx.Rngs(0)), np.zeros((3, 5), int), ('hidden', 'mlp')
      ... )
      >>> hidden.shape, mlp.shape
      ((3, 3, 5, 8), (2, 3, 5, 32))
    """
    for part in parts:
        check_choice('part', part, PARTS)
    cfg, count = model.cfg, np.size(tokens)
    widths = [cfg.mlp_width if part == 'mlp' else cfg.width for part in parts]
    if (size := 4 * count * (cfg.layers + 1) * sum(widths)) > MAX_BYTES:
        raise ValueError(
            f'the states of {len(tokens)} sequences of {tokens.shape[1]} tokens would take '
            f'{readable(size)}, more than {readable(MAX_BYTES)}; give fewer or shorter ones'
        )
    graphdef, state = nnx.split(model)
    found = [
        jax.tree.map(np.asarray, _states((graphdef, tuple(parts)), state, piece))
        for piece in pieces(tokens, batch)
    ]
    return [np.concatenate(one, axis=1) for one in zip(*found)]


def pieces(rows: Any, size: int) -> Iterator[Any]:
    """The rows in batches of at most `size`, as even as possible, so that few programs are
    compiled.

    Raises:
      ValueError: no rows, or a size below 1.
    """
    if size < 1 or not len(rows):
        raise ValueError(f'expected rows and a batch of at least 1, got {len(rows)} and {size}')
    return iter(np.array_split(np.asarray(rows), -(-len(rows) // size)))


@functools.partial(jax.jit, static_argnums=0)
def _states(static, state, tokens):
    graphdef, parts = static
    model = nnx.merge(graphdef, state)
    placed = model.place(Tokens.of(length=tokens.shape[1]), tokens)
    first = model.embed(tokens, placed)

    def layer(x, number, layer_type, block):
        mixer, seen = model.mixer(layer_type, block), {}
        if mixer.streams:
            raise ValueError('layers that carry a stream from one to the next cannot be read')

        def mix(h):
            seen['attention'] = mixer.whole(h, placed[layer_type])
            return seen['attention']

        seen['hidden'] = block.around(x, mix)
        seen['residual'] = x + block.attention_norm_after(seen['attention'])
        if 'mlp' in parts:
            if isinstance(block.mlp, MixFFN):
                raise ValueError('mix_ffn is a network of images, whose neurons are not read')
            seen['mlp'] = block.mlp.before(
                block.mlp_norm(x if block.parallel else seen['residual'])
            )
        return seen['hidden'], {part: seen[part].astype(jnp.float32) for part in parts}

    _, outs = model.scan_layers(layer, first)
    found = in_order(outs)
    if 'hidden' in found:
        found['hidden'] = jnp.concatenate([first[None].astype(jnp.float32), found['hidden']])
    return [found[part] for part in parts]


def in_order(outs: tuple) -> Any:
    """The outputs of `scan_layers`, whose first axis counts groups for each layer type, with one
    axis of layers in order.
    """
    return jax.tree.map(lambda *types: jnp.stack(types, 1).reshape(-1, *types[0].shape[1:]), *outs)


def head_maps(
    encoding: Encoding,
    q: Float[Array, 'B L N H'],
    k: Float[Array, 'B L K H'],
    tq: Tokens,
    tk: Tokens,
) -> tuple[Float[Array, 'B N L L'], Float[Array, 'B N L L']]:
    """Logits before the softmax, and attention, of every head of one layer, from the results of
    `Encoding.project`. Logits of keys that a query does not see are 0.

    Raises:
      ValueError: more than 2048 tokens.
    """
    if q.shape[1] > LONGEST:
        raise ValueError(
            f'maps of all queries and keys are held for at most {LONGEST} tokens, got {q.shape[1]}'
        )
    q, k = jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2)
    s, _, seen = pair_logits(encoding, q, k, tq, tk, encoding.init_carry(q, tq))
    p = jnp.where(seen, jax.nn.softmax(jnp.where(seen, s, -1e30), axis=-1), 0.0)
    return jnp.where(seen, s, 0.0), p


def over_layers(
    model: Transformer, tokens: Int[Array, 'B T'], look: Callable[..., Any], *fixed: Any
) -> Any:
    """`look(*fixed, encoding, before, after)` of every layer, stacked; compiled once for a
    function, its fixed arguments and the shape of the tokens. See `capture_encodings`.
    """
    graphdef, state = nnx.split(model)
    return _over_layers((graphdef, look, fixed), state, tokens)


@functools.partial(jax.jit, static_argnums=0)
def _over_layers(static, state, tokens):
    graphdef, look, fixed = static
    return capture_encodings(
        nnx.merge(graphdef, state), tokens, None, lambda *seen: look(*fixed, *seen)
    )


def check_causal(user: str, model: Transformer) -> None:
    """Refuses a model whose queries see later tokens.

    Raises:
      ValueError: as said.
    """
    for layer_type, block in enumerate(model.blocks):
        later = block.own_mixer is None and 'sees_later' in model.encoding(layer_type, block).traits
        if not model.cfg.causal or later:
            raise ValueError(
                f'{user} is defined for causal models; this one lets queries see later tokens'
            )
