"""The steps of generation: an empty cache, one pass over the prompts, one token at a time."""

import dataclasses
from collections.abc import Callable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from posenc_jax.lab.model.block import Block
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer import cache as caching
from posenc_jax.layer import slots
from posenc_jax.layer.cache import Cache, LayerCache
from posenc_jax.layer.cross import CrossState, Source
from posenc_jax.layer.recurrent_mixer import MixerState
from posenc_jax.layer.stream import NoState, StreamingMixer
from posenc_jax.layer.window_cache import WindowCache
from posenc_jax.protocol.tokens import Tokens

REMEMBERED = (
    LayerCache,
    WindowCache,
    MixerState,
    CrossState,
    NoState,
)  # what `prefill` leaves behind in a layer


def init_cache(model: Transformer, tok: Tokens, source: Source | None = None) -> Cache:
    """An empty cache for the tokens `tok`, which fill the whole capacity: the prompts and all
    tokens to come.

    `place` is called once, here. Where an encoding reads token ids, it is called again with the
    prompts and with every later token. This costs O(capacity) integer operations a step and does
    not change the positions of earlier tokens.

    Args:
      model: a decoder, or an encoder-decoder.
      tok: the tokens.
      source: the result of `model.encoded`, for an encoder-decoder.

    Raises:
      ValueError: the model is an encoder, has an encoding that no cache can serve, or has outputs
        that are not tokens; a source is missing or not wanted.
    """
    if not model.cfg.causal:
        raise ValueError(f'generation needs a decoder, this model is of kind {model.cfg.kind!r}')
    if model.cfg.pool or model.cfg.output_size > model.cfg.vocab_size:
        raise ValueError(
            f'generation reads what it predicts, but this model has {model.cfg.vocab_size} inputs '
            f'and {model.cfg.output_size} outputs, pool={model.cfg.pool!r}'
        )
    model.check_source(source)
    for part in model.shared:
        caching.check_cached(part)
    unplaced = (
        dataclasses.replace(tok, ids=jnp.zeros((1, tok.length), jnp.int32))
        if model.reads_ids
        else None
    )
    placed = model.place(tok if unplaced is None else unplaced)
    return Cache(
        tokens=placed, cursor=jnp.zeros((), jnp.int32), layers=(), unplaced=unplaced, source=source
    )


def read_ids(model: Transformer, cache: Cache, tokens: Int[Array, 'B T']) -> Cache:
    """Writes the ids of `tokens` into the cache from its cursor on, and places all tokens again.

    Every function that appends tokens to a cache calls this one first. Where no encoding reads ids,
    the cache is returned unchanged.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> encoding = 'bipe(separators=(3,)) | rope()'
      >>> model = tiny_model(encoding)
      >>> cache = read_ids(model, init_cache(model, Tokens.of(length=4)), jnp.array([[5, 3, 6]]))
      >>> cache.tokens[0].pos.tolist()
      [[0, 0, 1, 1]]
    """
    if cache.unplaced is None:
        return cache
    ids = jnp.broadcast_to(cache.unplaced.ids, (len(tokens), cache.capacity))
    ids = jax.lax.dynamic_update_slice_in_dim(ids, tokens.astype(jnp.int32), cache.cursor, axis=1)
    unplaced = dataclasses.replace(cache.unplaced, ids=ids)
    return dataclasses.replace(cache, tokens=model.place(unplaced), unplaced=unplaced)


def prefill(
    model: Transformer, cache: Cache, prompts: Int[Array, 'B T'], *, last: int | None = None
) -> tuple[Float[Array, 'B _ V'], Cache]:
    """Fills an empty cache with prompts; returns the logits of the model and the cache.

    Args:
      last: number of last prompt tokens whose logits are returned; None for all.

    Raises:
      ValueError: prompts longer than the capacity, a cache that is not empty, or `last` outside
        0 .. T.
    """
    check_prompts(cache, prompts, last)
    cache, length = read_ids(model, cache, prompts), prompts.shape[1]
    x, layers = read_rows(
        model,
        tuple(tok.slice(0, length) for tok in cache.tokens),
        prompts,
        cache.capacity,
        length,
        cache.source,
        last=last,
    )
    x = model.norm(x if last is None else x[:, x.shape[1] - last :])
    return model.logits(x), dataclasses.replace(
        cache, cursor=jnp.asarray(length, jnp.int32), layers=layers
    )


def read_rows(
    model: Transformer,
    placed: tuple[Tokens, ...],
    tokens: Int[Array, 'B T'],
    capacity: int,
    count: int | Int[Array, ''],
    source: Source | None = None,
    *,
    last: int | None = None,
) -> tuple[Float[Array, 'B _ D'], tuple[Any, ...]]:
    """One pass over whole rows; returns the output of the last layer, before the final norm, and
    the filled cache of every layer.

    Args:
      placed: the placed tokens [#B, T] for each layer of the period; valid up to `count`.
      tokens: token ids; those from `count` on may be anything.
      capacity: slots of the cache, at least T.
      count: number of real tokens, at most T; may be traced.
      source: what cross-attention reads. Then the caches are of `CrossState`.
      last: number of last tokens whose output is needed, if `count` is T. For one, the last layers
        of a model that are `memoryless` read that token alone, and the result has one row.
    """

    def layer(carry, number, layer_type, block):
        x, stream = carry
        tok, mixer = placed[layer_type], model.mixer(layer_type, block)

        def mix(h, *stream):
            if (begin := tok.length - h.shape[1]) > 0:
                return mixer.step(h, tok, *stream, NoState(), begin)
            return mixer.fill(h, tok, *stream, capacity, count)

        cross = None if source is None else lambda x: block.cross.whole(x, tok, source)
        x, stream, own = block.beside(x, stream, mixer, mix, cross)
        state = own if source is None else CrossState(own, block.cross.start(source))
        return (x, stream), state

    x = model.embed(tokens, placed)
    carry = x, model.begin_stream(placed, len(x))
    of_last = _memoryless(model) if last == 1 < x.shape[1] and source is None else 0
    if of_last:
        states = []
        for number, (layer_type, block) in enumerate(model.layers()):
            if number == model.cfg.layers - of_last:
                mixer: Any = block.own_mixer
                carry = carry[0][:, -1:], mixer.tail(carry[1], 1)
            carry, own = layer(carry, number, layer_type, block)
            states.append(own)
        return carry[0], tuple(states)
    (x, _), stacked = model.scan_layers(layer, carry)
    groups = model.cfg.layers // len(stacked)
    return x, tuple(jax.tree.map(lambda a: a[g], own) for g in range(groups) for own in stacked)


def _memoryless(model: Transformer) -> int:
    """How many of the last layers need only their input and the stream of a token."""
    kept = [
        number
        for number, block in enumerate(model.blocks)
        if not (isinstance(block.own_mixer, StreamingMixer) and block.own_mixer.memoryless)
    ]
    return len(model.blocks) - 1 - kept[-1]


def check_prompts(cache: Cache, prompts: Int[Array, 'B T'], last: int | None) -> None:
    """Refuses prompts that a cache has no room for, and a number of last tokens that they do not
    have. Errors are those of `prefill`.
    """
    if cache.layers:
        raise ValueError('prefill needs an empty cache; continue a filled one with decode_step')
    if prompts.shape[1] > cache.capacity:
        raise ValueError(
            f'prompts of {prompts.shape[1]} tokens do not fit a cache of {cache.capacity}'
        )
    check_last(last, prompts.shape[1])


def check_last(last: int | None, count: int) -> None:
    """Refuses a number of last tokens that a row of `count` tokens does not have.

    Raises:
      ValueError: `last` is neither None nor an integer in 0 .. count.
    """
    if last is not None and not (isinstance(last, Integral) and 0 <= last <= count):
        raise ValueError(f'last must be None, for all, or an integer in 0 .. {count}, got {last}')


def decode_step(
    model: Transformer,
    cache: Cache,
    tokens: Int[Array, 'B'],
    layers: list[tuple[int, Block]] | None = None,
) -> tuple[Float[Array, 'B V'], Cache]:
    """Appends one token to each row; returns the logits of the next token and the cache.

    A full cache is an error where the cursor is known. Where it is traced, as inside `jax.jit`, the
    logits of tokens beyond the capacity are NaN, unless no layer keeps keys.

    Args:
      layers: `model.layers()`. A loop calls it once, outside, because XLA does not move the slicing
        of the stacked layers out of the loop. None slices them here.

    Raises:
      ValueError: the cache has not been prefilled, or it is full (checked where the cursor is not
        traced).
    """
    caching.check_layers(cache, REMEMBERED, 'decode_step', 'prefill')
    _check_one_each(cache, tokens)
    x, cache = appended(model, cache, tokens[:, None], None, layers)
    return model.logits(model.norm(x))[:, 0], cache


def append(
    model: Transformer,
    cache: Cache,
    tokens: Int[Array, 'B'],
    mix: Callable | None,
    layers: list[tuple[int, Block]] | None = None,
) -> tuple[Float[Array, 'B V'], Cache]:
    """Appends one token to each row of a cache of any kind; returns the logits of the next token
    and the cache.

    Args:
      mix: the attention of one layer, `mix(h, mixer, tok, own) -> y, own`. It gets the normed input
        h [B, 1, D], the mixer of the layer, the placed tokens of the whole capacity and the cache
        of the layer. It returns the output [B, 1, D] and the new cache of the layer. None is
        `mixer.step`.
      layers: as for `decode_step`.

    Raises:
      ValueError: the cache is full (checked where the cursor is not traced), the tokens are not
        one for each row of the cache, or `mix` is given where a stream flows from layer to layer.
    """
    _check_one_each(cache, tokens)
    x, cache = appended(model, cache, tokens[:, None], mix, layers)
    return model.logits(model.norm(x))[:, 0], cache


def _check_one_each(cache: Cache, tokens: Int[Array, '...']) -> None:
    """Refuses a full cache, and tokens that are not one for each of its rows."""
    rows = jax.tree.leaves(cache.layers)[0].shape[0]
    if tokens.shape != (rows,):
        raise ValueError(
            f'a step appends one token to each of {rows} rows, got tokens of shape {tokens.shape}'
        )
    if not cache.free:
        raise ValueError(f'the cache of {cache.capacity} slots is full')


def appended(
    model: Transformer,
    cache: Cache,
    tokens: Int[Array, 'B T'],
    mix: Callable | None = None,
    layers: list[tuple[int, Block]] | None = None,
) -> tuple[Float[Array, 'B T D'], Cache]:
    """Appends several tokens to each row; returns the output of the last layer for them, before the
    final norm, and the cache. Arguments as for `append`.

    Raises:
      ValueError: `mix` is given where a stream flows from layer to layer.
    """
    cache, count = read_ids(model, cache, tokens), tokens.shape[1]
    new = tuple(slots.at(tok, cache.cursor, count) for tok in cache.tokens)
    x = model.embed(tokens, new)
    stream, states = model.begin_stream(new, len(x)), []
    if mix is not None and stream is not None:
        raise ValueError(
            'a stream flows from layer to layer of this model, which only Decoding() passes on'
        )

    for (layer_type, block), state in zip(
        model.layers() if layers is None else layers, cache.layers, strict=True
    ):
        tok, mixer = cache.tokens[layer_type], model.mixer(layer_type, block)
        own, keys = (state.own, state.source) if isinstance(state, CrossState) else (state, None)

        def mixed(h, *stream):
            if mix is not None:
                y, grown = mix(h, mixer, tok, own)
                return slots.beyond_as_nan(y, cache.cursor, tok.length), grown
            return mixer.step(h, tok, *stream, own, cache.cursor)

        cross = lambda x: block.cross.step(x, new[layer_type], keys, cache.source.tok)
        x, stream, own = block.beside(x, stream, mixer, mixed, None if keys is None else cross)
        states.append(own if keys is None else CrossState(own, keys))
    return x, dataclasses.replace(cache, cursor=cache.cursor + count, layers=tuple(states))
