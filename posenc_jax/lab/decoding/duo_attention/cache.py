"""The decode cache of DuoAttention: all keys of retrieval heads, few keys of streaming heads."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.lab.decoding.decode import append, check_prompts, read_ids
from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.decoding.duo_attention import DuoAttention, Heads, _mask_of, heads_of, with_mask
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache, check_layers, filled
from posenc_jax.layer.mixer import AttentionMixer
from posenc_jax.layer.sharding import constrain
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DuoLayer:
    """The cache of one layer with R retrieval heads and C = K - R streaming heads.

    Attributes:
      k, v: all keys and values of the retrieval heads, as in `posenc_jax.layer.cache`.
      kept_k, kept_v: keys and values of the streaming heads for the first `sink` tokens, and behind
        them for the last `recent + 1` tokens, in a ring buffer: the token with index c is in slot
        `sink + c mod (recent + 1)`.
      heads: for each key head, whether it is a retrieval head.
    """

    k: Float[Array, 'B R S H']
    v: Float[Array, 'B R S H']
    kept_k: Float[Array, 'B C kept H']
    kept_v: Float[Array, 'B C kept H']
    heads: Heads = dataclasses.field(metadata=dict(static=True))


def prefill(
    model: Transformer,
    cache: Cache,
    prompts: Int[Array, 'B T'],
    *,
    last: int | None = None,
    full: bool = False,
    heads: tuple[Heads, ...] | None = None,
) -> tuple[Float[Array, 'B _ V'], Cache]:
    """Fills an empty cache with prompts; returns their logits and the cache.

    Only one layer at a time has the keys of all its heads in memory. By default the logits are
    those of the deployed model, so a later step equals a pass over the whole text.

    Args:
      model: from `deploy`, or with `duo_attention` in its encoding.
      cache: an empty cache for the prompts (padded on the left) and the tokens to come.
      last: number of last prompt tokens whose logits are returned; None for all.
      full: all heads see the whole prompt, as in the released code where a prompt is read at once.
      heads: `heads_of(model)`, needed where the model is traced.

    Raises:
      ValueError: prompts that are not integers [B, T], are longer than the capacity, or have
        another number of rows than the cache; packed documents; padding that is not in front
        (checked where `valid` is not traced); a layer whose encoding does not fit (the message
        names it).
    """
    if prompts.ndim != 2 or not prompts.shape[1] or not jnp.issubdtype(prompts.dtype, jnp.integer):
        raise ValueError(
            f'prompts must be integers [B, T] with T at least 1, got {prompts.dtype} '
            f'{prompts.shape}'
        )
    check_prompts(cache, prompts, last)
    (batch, length), tok = prompts.shape, cache.tokens[0]
    if rows := sorted({leaf.shape[0] for leaf in jax.tree.leaves(tok)} - {1, batch}):
        raise ValueError(
            f'duo_attention: the cache has {rows[0]} rows, the prompts {batch}; expected {batch} '
            '(or 1)'
        )
    if tok.segment is not None:
        raise ValueError(
            'duo_attention keeps one text a row, got packed documents; give each a row of its own'
        )
    if tok.valid is not None and not isinstance(tok.valid, jax.core.Tracer):
        valid = np.asarray(tok.valid)
        if (wrong := valid[:, :-1] & ~valid[:, 1:]).any():
            row, slot = map(int, np.argwhere(wrong)[0])
            raise ValueError(
                'duo_attention keeps the first and last tokens of a text and needs its padding in '
                f'front, but slot {slot + 1} of row {row} is padding behind a token; move it to '
                'the left'
            )
    for at in enumerate(model.blocks):
        _mask_of(model.encoding(*at))
    heads = heads_of(model) if heads is None else heads
    cache = read_ids(model, cache, prompts)
    tokens = cache.tokens
    placed = tuple(t.slice(0, length) for t in tokens)

    def mix(h, mixer, layer_type, own_heads):
        mask = _mask_of(mixer.encoding)
        seeing = (
            with_mask(mixer.encoding, mask.with_heads(np.ones(mask.kv_heads, bool)))
            if full
            else None
        )
        q, k, v, tq, tk = _projected(mixer, h, placed[layer_type])
        out = mixer.attend(q, k, v, tq, tk, encoding=seeing)
        return mixer.output(out), _kept(mask, own_heads, k, v, tokens[layer_type], length)

    x, layers = model.loop_layers(mix, model.embed(prompts, placed), heads)
    x = model.norm(x if last is None else x[:, prompts.shape[1] - last :])
    return model.logits(x), dataclasses.replace(
        cache, cursor=jnp.asarray(length, jnp.int32), layers=layers
    )


def decode_step(
    model: Transformer,
    cache: Cache,
    tokens: Int[Array, 'B'],
    layers: list[tuple[int, Any]] | None = None,
) -> tuple[Float[Array, 'B V'], Cache]:
    """Appends one token to each row, as `posenc_jax.lab.decoding.decode.decode_step`; returns the
    logits of the next token and the cache.

    Raises:
      ValueError: another number of rows than the cache has; the cache is full (checked where the
        cursor is not traced).
    """
    check_layers(cache, DuoLayer, 'duo_attention.decode_step', 'duo_attention.prefill')
    cursor, rows = cache.cursor, cache.layers[0].k.shape[0]
    if tokens.shape != (rows,) or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f'duo_attention: expected a token id for each of {rows} rows, got {tokens.dtype} '
            f'{tokens.shape}'
        )

    def mix(h, mixer, tok, own):
        mask, new = _mask_of(mixer.encoding), tok.slice(cursor, 1)
        q, k, v, tq, _ = _projected(mixer, h, new)
        grown = _appended(own, mask, k, v, new, cursor)
        return mixer.output(_attended(mixer, mask, grown, q, tq, tok, cursor)), grown

    return append(model, cache, tokens, mix, layers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Streaming(Decoding):
    """For `generate`: a deployed model with the cache of this module. `streaming` makes it.

    Attributes:
      heads: `heads_of(model)`.
      full: as for `prefill`.
    """

    heads: tuple[Heads, ...] = dataclasses.field(metadata=dict(static=True))
    full: bool = dataclasses.field(default=False, metadata=dict(static=True))

    def check(self, model):
        found = heads_of(model)
        if found != self.heads:
            counts = f'{len(self.heads)} layers and the model {len(found)}'
            differ = [
                layer for layer, pair in enumerate(zip(self.heads, found)) if pair[0] != pair[1]
            ]
            where = (
                f'has {counts}'
                if len(found) != len(self.heads)
                else f'differs from the model in layer {differ[0]}'
            )
            raise ValueError(
                f'duo_attention: this Streaming was made for another model, it {where}; use '
                'streaming(model)'
            )

    def prefill(self, model, empty, prompts):
        return prefill(model, empty, prompts, last=1, full=self.full, heads=self.heads)

    def step(self, model, empty, cache, tokens, layers):
        return decode_step(model, cache, tokens, layers)


def streaming(model: Transformer, *, full: bool = False) -> Streaming:
    """The `decoding` of `generate` for a deployed model: it keeps all keys of retrieval heads and
    the first and last keys of streaming heads.

    Raises:
      ValueError: a layer without `duo_attention`.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> from posenc_jax.lab.decoding.generate import generate
      >>> encoding = 'rope() | duo_attention(sink=1, recent=2, retrieval=(1,))'
      >>> model, text = tiny_model(encoding, layers=2), jnp.arange(6)[None]
      >>> generate(model, text, max_new_tokens=3, temperature=0.0, decoding=streaming(model)).shape
      (1, 9)
    """
    return Streaming(heads_of(model), full)


def _projected(mixer: AttentionMixer, h, tok: Tokens):
    q, k, v, tq, tk = mixer.projected(h, tok)
    if added := sorted((tq.feats.keys() | tk.feats.keys()) - tok.feats.keys()):
        raise ValueError(
            f'duo_attention keeps keys and values only, but {added[0]} attaches features; decode '
            'with Decoding()'
        )
    return q, k, v, tq, tk


def _split(heads: Heads) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the retrieval heads and of the streaming heads."""
    return np.flatnonzero(heads), np.flatnonzero(~np.asarray(heads, bool))


def _kept_index(mask: DuoAttention, tok: Tokens, cursor) -> Int[Array, '#B kept']:
    """Indices of the tokens that streaming heads keep where the last token has index `cursor`. A
    row with fewer tokens than sinks also gets indices beyond the capacity, and an empty slot of the
    ring buffer has a negative index.
    """
    first = 0 if tok.valid is None else jnp.argmax(tok.valid, axis=1)[:, None]
    sinks, size = first + jnp.arange(mask.sink)[None], mask.recent + 1
    ring = cursor - (cursor - jnp.arange(size)) % size
    return jnp.concatenate([sinks, jnp.broadcast_to(ring, (len(sinks), size))], axis=1)


def _at(a: Array, index: Int[Array, '#B n'], axis: int) -> Array:
    """Entries at `index` along an axis, by row. An index out of range is clipped; the caller masks
    its entry.
    """
    rows = max(a.shape[0], index.shape[0])
    shape = index.shape[0], *[1] * (axis - 1), index.shape[1], *[1] * (a.ndim - axis - 1)
    index = jnp.clip(index, 0, a.shape[axis] - 1).reshape(shape)
    a = jnp.broadcast_to(a, (rows, *a.shape[1:]))
    return jnp.take_along_axis(a, jnp.broadcast_to(index, (rows, *index.shape[1:])), axis=axis)


def _kept(mask: DuoAttention, heads: Heads, k, v, tok: Tokens, length: int) -> DuoLayer:
    """The cache of a prompt from its keys and values [B, T, K, H]."""
    retrieval, streaming = _split(heads)
    k, v = (jnp.swapaxes(a, 1, 2) for a in (k, v))
    room = lambda a: jnp.pad(a[:, retrieval], ((0, 0), (0, 0), (0, tok.length - length), (0, 0)))
    kept = lambda a: _at(a[:, streaming], _kept_index(mask, tok, length - 1), 2)
    return DuoLayer(room(k), room(v), kept(k), kept(v), heads)


def _appended(own: DuoLayer, mask: DuoAttention, k, v, new: Tokens, cursor) -> DuoLayer:
    retrieval, streaming = _split(own.heads)
    k, v = (jnp.swapaxes(a, 1, 2) for a in (k, v))

    def write(buffer, a, slot):
        put = jax.lax.dynamic_update_slice_in_dim
        if buffer.shape[0] > 1:
            return put(buffer, a.astype(buffer.dtype), slot, 2)
        return put(buffer[0], a[0].astype(buffer.dtype), slot, 1)[None]  # see `model.cache.step`

    is_sink = new.rank == jnp.arange(mask.sink)
    if new.valid is not None:
        is_sink &= new.valid
    is_sink = jnp.pad(is_sink, ((0, 0), (0, mask.recent + 1)))[:, None, :, None]
    slot = mask.sink + cursor % (mask.recent + 1)

    def keep(buffer, a):
        ring = write(buffer, a[:, streaming], slot)
        return jnp.where(is_sink, a[:, streaming].astype(buffer.dtype), ring)

    return DuoLayer(
        write(own.k, k[:, retrieval], cursor),
        write(own.v, v[:, retrieval], cursor),
        keep(own.kept_k, k),
        keep(own.kept_v, v),
        own.heads,
    )


def _attended(
    mixer: AttentionMixer, mask: DuoAttention, own: DuoLayer, q, tq: Tokens, tok: Tokens, cursor
):
    """Attention of one query, [B, 1, N, H]: retrieval heads over the whole cache, streaming heads
    over the keys that they keep.
    """
    now, outs, order = filled(tok, cursor + 1), [], []
    kept = _kept_index(mask, tok, cursor)
    slots = jax.tree.map(lambda a: _at(a, kept, 1), now)
    in_ring = jnp.arange(kept.shape[1])[None] >= mask.sink
    there = jnp.where(in_ring, (kept >= 0) & (slots.rank >= mask.sink), kept < tok.length)
    slots = dataclasses.replace(slots, valid=slots.valid & there)
    group = mask.heads // mask.kv_heads
    for key_heads, k, v, tk in zip(
        _split(own.heads), (own.k, own.kept_k), (own.v, own.kept_v), (now, slots)
    ):
        if not len(key_heads):
            continue
        heads = (key_heads[:, None] * group + np.arange(group)).ravel()
        k, v = (constrain(a, 'batch', 'kv_heads', None, None) for a in (k, v))
        part = _of_heads(mixer.encoding, heads, key_heads)
        tiles = dict(heads_first=True, implementation='dense')
        outs.append(mixer.attend(q[:, :, heads], k, v, tq, tk, encoding=part, **tiles))
        order.append(heads)
    return jnp.concatenate(outs, axis=2)[:, :, np.argsort(np.concatenate(order))]


def _of_heads(encoding: Encoding, heads: np.ndarray, key_heads: np.ndarray) -> Encoding:
    """The encoding of the given heads alone, cut out of every array with an axis of heads."""
    graphdef, state = nnx.split(encoding)
    arrays, structure = jax.tree.flatten(state)
    variables = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    chosen = {'heads': heads, 'kv_heads': key_heads}
    taken = []
    for array, variable in zip(arrays, variables, strict=True):
        for axis, role in enumerate(variable.get_metadata().get('axes') or ()):
            if role in chosen:
                array = jnp.take(array, chosen[role], axis=axis)
        taken.append(array)
    return nnx.merge(graphdef, jax.tree.unflatten(structure, taken))
