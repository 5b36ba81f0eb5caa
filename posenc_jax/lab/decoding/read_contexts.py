"""Encodes contexts, reads a query behind joined contexts, and generates its continuation."""

import dataclasses
import functools
from collections.abc import Sequence
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from posenc_jax.lab.decoding.cached_contexts import Piece, check_tokens, token_positions
from posenc_jax.lab.decoding.contexts import ContextMask, check_model, has_part, join
from posenc_jax.lab.decoding.decode import appended, check_last
from posenc_jax.lab.decoding.generate import check_new_tokens, continue_cache
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache, LayerCache, check_layers
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.tokens import Tokens


def read(
    model: Transformer, cache: Cache, tokens: Int[Array, 'B T'], *, last: int | None = None
) -> tuple[Float[Array, 'B _ V'] | None, Cache]:
    """Appends several tokens to a filled cache in one pass; returns their logits and the cache.

    Args:
      last: number of last tokens whose logits are returned; None for all.

    Raises:
      ValueError: more tokens than free slots, or a wrong number of rows; `last` outside 0 .. T;
        token ids outside the vocabulary; an empty cache or one of another method; a cache of joined
        contexts with a model that has no `ContextMask`; an encoding that caches more than encoded
        keys, or encodes them again at every step. Traced values are not checked.
    """
    tokens = jnp.asarray(tokens)
    _check_readable(model, cache)
    rows, free = cache.layers[0].k.shape[0], cache.free
    if tokens.ndim != 2 or tokens.shape[0] != rows or not 1 <= tokens.shape[1] <= free:
        raise ValueError(
            f'tokens to read must be [{rows}, 1 .. {free}] (a cache of {cache.capacity} slots, '
            f'{cache.capacity - free} of them full), got '
            f'{tokens.shape}'
        )
    if not isinstance(tokens, jax.core.Tracer):
        check_tokens('read', 'the tokens', tokens, model.cfg.vocab_size)
    count = tokens.shape[1]
    check_last(last, count)
    graphdef, state = nnx.split(model)
    return _read((graphdef, last), state, cache, tokens)


def _check_readable(model: Transformer, cache: Cache) -> None:
    check_layers(cache, LayerCache, 'read', 'prefill or join')
    if cache.tokens[0].segment is not None and not has_part(model, ContextMask):
        raise ValueError(
            'read: the cache holds joined contexts, which this model would not see; read it with '
            'the model that `join` returned beside it'
        )
    for (layer_type, block), own in zip(enumerate(model.blocks), cache.layers):
        encoding = model.encoding(layer_type, block)
        if encoding.cached != 'encoded' or encoding.lookback or own.feats:
            chained = ' | '.join(map(name_of, parts_of(encoding)))
            raise ValueError(
                f'read cannot append several tokens at once with {chained}, which caches more than '
                'encoded keys or encodes its keys again at every step; append them one by one with '
                'decode_step'
            )


@functools.partial(jax.jit, static_argnums=0)
def _read(static, state, cache: Cache, tokens):
    graphdef, last = static
    model, cursor, count = nnx.merge(graphdef, state), cache.cursor, tokens.shape[1]

    def mix(h, mixer, tok, own):
        projected, grown = mixer.append(h, tok, own, cursor)
        return mixer.output(mixer.attend(*projected, heads_first=True)), grown

    x, cache = appended(model, cache, tokens, mix)
    last = count if last is None else last
    return model.logits(model.norm(x[:, count - last :])) if last else None, cache


def continue_from(
    model: Transformer,
    cache: Cache,
    query: Int[Array, 'B T'],
    *,
    max_new_tokens: int,
    key: Array | None = None,
    temperature: float = 0.0,
) -> Int[Array, 'B new']:
    """Reads a query and generates new tokens behind it, by default the most probable ones.

    Raises:
      ValueError: the query and the new tokens do not fit the free slots, a temperature above 0 has
        no key, or the errors of `read`.
    """
    query = jnp.asarray(query)
    check_new_tokens(cache, max_new_tokens, temperature, key, query=query.shape[-1])
    logits, cache = read(model, cache, query, last=1)
    return continue_cache(
        model, cache, logits[:, -1], max_new_tokens=max_new_tokens, temperature=temperature, key=key
    )


def encode(
    user: str,
    model: Transformer,
    contexts: Sequence[Int[np.ndarray, 'B _']],
    ids: Sequence[Num[np.ndarray, '_']],
    before: Sequence[Piece] = (),
    *,
    together: int | None = None,
) -> tuple[Piece, ...]:
    """Encodes every context on its own, causally. Each context also sees all the pieces `before`.

    Contexts whose lengths round up to the same power of two are encoded as one batch, with padding.

    Args:
      user: name of the method, for error messages.
      model: causal attention with one rotary encoding of fixed frequencies.
      contexts: token ids; a context may be empty.
      ids: positions of the tokens, one array for each context.
      before: pieces, already at the positions where the contexts see them (see `moved`).
      together: largest number of contexts in one pass; None for no limit.
    """
    check_model(user, model)
    if together is not None and not (isinstance(together, Integral) and together >= 1):
        raise ValueError(f'{user}: together must be at least 1, an integer, got {together}')
    pieces: dict[int, Piece] = {}
    alike: dict[int, list[int]] = {}
    for number, length in enumerate(tokens.shape[1] for tokens in contexts):
        alike.setdefault(length and 1 + (length - 1).bit_length(), []).append(number)
    for numbers in alike.values():
        size = together or len(numbers)
        for some in (numbers[start : start + size] for start in range(0, len(numbers), size)):
            chosen = [contexts[n] for n in some], [np.asarray(ids[n]) for n in some]
            pieces.update(zip(some, _encode(user, model, *chosen, before)))
    return tuple(pieces[number] for number in range(len(contexts)))


def _encode(user, model, contexts, ids, before) -> list[Piece]:
    count, rows = len(contexts), contexts[0].shape[0]
    longest = max(tokens.shape[1] for tokens in contexts)
    past, lengths = sum(piece.length for piece in before), tuple(map(len, ids))
    cache = join(user, model, before, capacity=past + longest, rows=rows, copies=count)
    if longest:
        fill = lambda a, n: np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, longest - n)])
        own = np.stack([fill(token_positions([a]), len(a)) for a in ids])
        old = np.broadcast_to(token_positions([piece.ids for piece in before]), (count, past))
        dtype = np.result_type(*(a for a in (old, own) if a.size))
        pos = np.concatenate([old, own], axis=1, dtype=dtype)
        real = np.arange(past + longest) < past + np.array(lengths)[:, None]
        per_row = lambda a: jnp.asarray(np.repeat(a, rows, axis=0))
        index = jnp.arange(past + longest)[None]
        tok = Tokens(index, per_row(pos), rank=index, valid=per_row(real))
        tokens = np.concatenate([fill(a, a.shape[1]) for a in contexts])
        _, cache = read(
            model, dataclasses.replace(cache, tokens=(tok,) * len(model.links)), tokens, last=0
        )
    return [
        Piece(k, v, token_positions([a]))
        for (k, v), a in zip(_cut((past, lengths), cache.layers), ids)
    ]


@functools.partial(jax.jit, static_argnums=0)
def _cut(static, layers):
    """Keys and values of every context, cut out of the batch in which it was encoded."""
    past, lengths = static
    rows = layers[0].k.shape[0] // len(lengths)
    cut = lambda a, number, n: a[number * rows : (number + 1) * rows, :, past : past + n]
    every = lambda name, *which: tuple(cut(getattr(layer, name), *which) for layer in layers)
    return [(every('k', number, n), every('v', number, n)) for number, n in enumerate(lengths)]
