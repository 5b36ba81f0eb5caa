"""The states of the layers of a model for a batch of sequences, and the attention of every head.
The analyses of positions read models through these functions.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from posenc_jax.base.memory import readable
from posenc_jax.lab.analyse.capture import attention_of, capture_encodings, compiled, in_order
from posenc_jax.lab.model.mix_ffn import MixFFN
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.tokens import Tokens

# 'hidden' is the input of the first layer and the output of every layer; the others have one entry
# a layer: what attention adds, the sum of both, and the input of the non-linearity of the network.
VECTORS = ('hidden', 'attention', 'residual', 'mlp')
MAX_BYTES = 4 * 2**30  # of the states that are held at once
LONGEST = 2048  # tokens of a sequence whose attention is held as maps of queries and keys


def layer_states(
    model: Transformer,
    tokens: Int[np.ndarray, 'S T'],
    vectors: Sequence[str] = ('hidden',),
    *,
    batch: int = 8,
) -> list[Float[np.ndarray, '_ S T _']]:
    """The vectors of all tokens in every layer, float32, for each of `vectors`.

    Args:
      model: a decoder or encoder of token ids, with any encodings or mixers.
      tokens: ids of S sequences.
      vectors: 'hidden' [layers + 1, S, T, D], whose first entry is the input of the first layer;
        'attention', 'residual' [layers, S, T, D], what attention adds and the sum with its input;
        'mlp' [layers, S, T, F], the input of the non-linearity (of the gate, where there is one).
      batch: sequences that are read at a time.

    Raises:
      SpecError: unknown vectors.
      ValueError: states that would take more than 4 GiB; a feed-forward network of images; layers
        that carry a stream.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> hidden, mlp = layer_states(
      ...     tiny_model('alibi()', layers=2), np.zeros((3, 5), int), ('hidden', 'mlp')
      ... )
      >>> hidden.shape, mlp.shape
      ((3, 3, 5, 8), (2, 3, 5, 32))
    """
    for name in vectors:
        check_choice('vectors', name, VECTORS)
    cfg, count = model.cfg, np.size(tokens)
    widths = [cfg.mlp_width if name == 'mlp' else cfg.width for name in vectors]
    if (size := 4 * count * (cfg.layers + 1) * sum(widths)) > MAX_BYTES:
        raise ValueError(
            f'the states of {len(tokens)} sequences of {tokens.shape[1]} tokens would take '
            f'{readable(size)}, more than {readable(MAX_BYTES)}; give fewer or shorter ones'
        )
    read = lambda rows: _states(model, rows, fixed=(tuple(vectors),))
    found = [jax.tree.map(np.asarray, read(rows)) for rows in batches(tokens, batch)]
    return [np.concatenate(one, axis=1) for one in zip(*found)]


def batches(rows: Any, size: int) -> Iterator[Any]:
    """The rows in batches of at most `size`, as even as possible, so that few programs are
    compiled.

    Raises:
      ValueError: no rows, or a size below 1.
    """
    if size < 1 or not len(rows):
        raise ValueError(f'expected rows and a batch of at least 1, got {len(rows)} and {size}')
    return iter(np.array_split(np.asarray(rows), -(-len(rows) // size)))


@compiled
def _states(model, vectors, tokens):
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
        if 'mlp' in vectors:
            if isinstance(block.mlp, MixFFN):
                raise ValueError('mix_ffn is a network of images, whose neurons are not read')
            seen['mlp'] = block.mlp.before(
                block.mlp_norm(x if block.parallel else seen['residual'])
            )
        return seen['hidden'], {name: seen[name].astype(jnp.float32) for name in vectors}

    _, outs = model.scan_layers(layer, first)
    found = in_order(outs)
    if 'hidden' in found:
        found['hidden'] = jnp.concatenate([first[None].astype(jnp.float32), found['hidden']])
    return [found[name] for name in vectors]


def through_layers(
    model: Transformer, x: Float[Array, 'B T D'], placed: tuple[Tokens, ...], look: Callable
) -> tuple[Float[Array, 'B T D'], Any]:
    """The output of the last layer, and `look` of the output of every layer, stacked."""

    def layer(x, number, layer_type, block):
        own = None if block.own_mixer is not None else model.encoding(layer_type, block)
        x = block(x, placed[layer_type], own)
        return x, look(x)

    x, outs = model.scan_layers(layer, x)
    return x, in_order(outs)


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
    s, p, seen = attention_of(encoding, jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2), tq, tk)
    return jnp.where(seen, s, 0.0), p


def over_layers(
    model: Transformer, tokens: Int[Array, 'B T'], look: Callable[..., Any], *fixed: Any
) -> Any:
    """`look(*fixed, encoding, before, after)` of every layer, stacked; compiled once for a
    function, its fixed arguments and the shape of the tokens. See `capture_encodings`.
    """
    return _over_layers(model, tokens, fixed=(look, fixed))


@compiled
def _over_layers(model, look, fixed, tokens):
    return capture_encodings(model, tokens, None, lambda *seen: look(*fixed, *seen))
