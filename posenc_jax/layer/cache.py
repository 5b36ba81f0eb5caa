"""The decode cache: keys and values [B, K, S, H] per layer, `Tokens` of the whole capacity, and a
cursor.

The encoding decides in which form keys are cached (`Encoding.cached`):

  encoded   as `project` left them, with the features it attached to them;
  raw       as the layer produced them; `project` encodes all of them again at every step, because
            what it does to a key depends on the current length;
  evolving  as `project` left them, then rewritten by `EvolvingKeys.update_keys` for every later
            token. Features that such an encoding attaches under its own key are for `update_keys`.
            They reach it with the new token and are not cached, so `logits` does not see them for
            cached keys. Features under any other name are cached.

All functions here are about one layer and do not depend on a model; S is the capacity.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from posenc_jax.layer import slots
from posenc_jax.layer.cross import Source
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """The cache of one layer.

    Attributes:
      k, v: keys and values; slots from the cursor on are zero.
      feats: features that `project` attached to the keys, heads first like these: [#B, heads or 1,
        S, ...]. The tokens have them as [#B, S, heads or 1, ...], see `of_tokens`.
      rows: the last `Encoding.lookback` rows of the layer input, [B, lookback, D].
    """

    k: Float[Array, 'B K S H']
    v: Float[Array, 'B K S V']
    feats: dict[str, Any]
    rows: Float[Array, 'B R D']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The cache of a model.

    Attributes:
      tokens: the tokens of the whole capacity, placed once; one entry for each encoding in the
        pattern of layers.
      cursor: how many tokens were appended, the same in all rows (shorter prompts are padded on
        the left). Beyond the capacity, the slots are of no use (`layer/slots.py`).
      layers: one `LayerCache` per layer, in order; a cache method may use a class of its own.
      unplaced: the same tokens before they were placed, where a later step may say more of them:
        the ids known so far, where an encoding reads them; padding and documents in a cache of
        `Attention`.
      source: the output of the encoder, which the layers read by cross-attention.
    """

    tokens: tuple[Tokens, ...]
    cursor: Int[Array, '']
    layers: tuple[Any, ...]
    unplaced: Tokens | None = None
    source: Source | None = None

    @property
    def capacity(self) -> int:
        return self.tokens[0].length

    @property
    def free(self) -> int:
        """How many slots are free; the whole capacity where the cursor is traced."""
        return max(0, self.capacity - (0 if isinstance(self.cursor, Tracer) else int(self.cursor)))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays of all layers."""
        return sum(a.nbytes for a in jax.tree.leaves(self.layers))


def check_cached(encoding: Encoding) -> None:
    """Refuses an encoding that no cache can serve.

    Raises:
      ValueError: no cache can serve it; the message names the part.
    """
    for part in parts_of(encoding):
        if part.cached == 'none':
            raise ValueError(
                f'{name_of(part)} gives every token another position when one is added, so there '
                'is nothing to cache; '
                'run the model over the whole sequence again'
            )


def check_layers(cache: Cache, kind: type | tuple[type, ...], user: str, made_by: str) -> None:
    """Refuses a cache without layers, or with layers of another method.

    Args:
      cache: the cache to check.
      kind: the class that its layers must have, or several.
      user, made_by: names of the caller and of the function that makes such a cache, for the
        message.

    Raises:
      ValueError: the cache is refused; the message names the class found and the class expected.

    Example:
      >>> check_layers(
      ...     Cache((Tokens.of(length=2),), jnp.array(1), (LayerCache(None, None, {}, None),)),
      ...     LayerCache,
      ...     'this',
      ...     '',
      ... )
    """
    if not cache.layers:
        raise ValueError(f'{user} needs a filled cache, this one is empty; call {made_by} first')
    if not all(isinstance(layer, kind) for layer in cache.layers):
        found = next(type(layer).__name__ for layer in cache.layers if not isinstance(layer, kind))
        first = kind[0] if isinstance(kind, tuple) else kind
        raise ValueError(
            f'{user} needs a cache of {first.__name__}s, as {made_by} makes it; this one holds '
            f'{found}s'
        )


def of_tokens(feats: dict[str, Any]) -> dict[str, Any]:
    """Features of a cache as features of its tokens, and the other way round.

    A cache has the layout in which tiles of logits read features. Otherwise every step would copy
    the features of all tokens into it.
    """
    return jax.tree.map(lambda a: jnp.swapaxes(a, 1, 2), feats)


def filled(tok: Tokens, count) -> Tokens:
    """`tok` with only its first `count` slots valid (`count` may be traced)."""
    full = (jnp.arange(tok.length) < count)[None]
    return dataclasses.replace(tok, valid=full if tok.valid is None else tok.valid & full)


def project_prompt(
    encoding: Encoding,
    q: Float[Array, 'B T N _'],
    k: Float[Array, 'B T K _'],
    v: Float[Array, 'B T K H'],
    tok: Tokens,
    rows: Float[Array, 'B rows D'],
    capacity: int,
    count: int | Int[Array, ''] | None = None,
) -> tuple[tuple, LayerCache]:
    """Projects a prompt. Returns the arguments of `attend` over the prompt itself, and the cache
    that holds it.

    Args:
      encoding: of the layer.
      q, k, v: as the layer produced them, for T prompt tokens.
      tok: the placed tokens of the prompt.
      rows: the layer input with `lookback` rows in front, as `Encoding.project` reads it.
      capacity: slots of the cache.
      count: how many of the T tokens the cache holds; the others must not be valid. It may be
        traced; None is T.

    Raises:
      ValueError: a prompt longer than the capacity; an encoding that caches raw keys but reads
        earlier rows, or that no cache can serve.
    """
    check_cached(encoding)
    if tok.length > capacity:
        raise ValueError(f'a prompt of {tok.length} tokens does not fit a cache of {capacity}')
    if encoding.cached == 'raw' and encoding.lookback:
        raise ValueError(
            f'keys cached raw cannot be projected again with lookback={encoding.lookback}: their '
            'layer input is gone'
        )
    raw_k, raw_v = k, v
    q, k, v, tq, tk = encoding.project(q, k, v, tok, tok, rows)
    attend_arguments = (q, k, v, tq, tk)
    keep = _cached_feats(encoding, tok, tk)
    k, v = (jnp.swapaxes(a, 1, 2) for a in ((raw_k, raw_v) if encoding.cached == 'raw' else (k, v)))
    if encoding.cached == 'evolving':
        k = _evolve_prompt(encoding, k.astype(jnp.float32), tk)
    count = tok.length if count is None else count

    def room(a, axis):
        if not isinstance(count, int):
            there = (jnp.arange(tok.length) < count).reshape(-1, *[1] * (a.ndim - axis - 1))
            a = jnp.where(there, a, jnp.zeros((), a.dtype))
        return jnp.pad(a, [(0, capacity - tok.length if i == axis else 0) for i in range(a.ndim)])

    return attend_arguments, LayerCache(
        k=room(k, 2),
        v=room(v, 2),
        feats=jax.tree.map(lambda a: room(a, 2), of_tokens(keep)),
        rows=jax.lax.dynamic_slice_in_dim(rows, count, encoding.lookback, axis=1),
    )


def project_new(
    encoding: Encoding,
    cache: LayerCache,
    q: Float[Array, 'B T N _'],
    k: Float[Array, 'B T K _'],
    v: Float[Array, 'B T K H'],
    tok: Tokens,
    row: Float[Array, 'B T D'],
    cursor: Int[Array, ''],
    feats: dict[str, Any] | None = None,
) -> tuple[tuple, LayerCache]:
    """Projects T new tokens and appends them. Returns the arguments of
    `attend(..., heads_first=True)`, and the new cache.

    Args:
      encoding: of the layer.
      cache: the cache of the tokens before.
      q, k, v: as the layer produced them for the new tokens.
      tok: the placed tokens of the whole capacity.
      row: the layer input of the new tokens.
      cursor: the slot of the first new token.
      feats: further features of the new tokens, for `project`.

    Raises:
      ValueError: several tokens at once if every new token rewrites the cached keys.
    """
    count = row.shape[1]
    if count > 1 and encoding.cached == 'evolving':
        owner = next(part for part in parts_of(encoding) if part.opens('update_keys'))
        raise ValueError(
            f'every new token rewrites the cached keys of {name_of(owner)}, so they are appended '
            f'one by one, got {count} at once'
        )
    new, now = slots.at(tok, cursor, count), filled(tok, cursor + count)
    new = new.with_feats(**(feats or {}))
    rows = jnp.concatenate([cache.rows, row], axis=1)

    def append(buffer, a, axis):
        if buffer.shape[0] > 1:
            return slots.written(buffer, a, cursor, axis)
        # A batch of one row is written without its batch axis, as the products read it. Otherwise
        # XLA makes a second copy for the products.
        return slots.written(buffer[0], a[0], cursor, axis - 1)[None]

    first = lambda a: jnp.swapaxes(a, 1, 2)
    last_rows = rows[:, count:]
    if encoding.cached == 'raw':
        cache = LayerCache(
            append(cache.k, first(k), 2), append(cache.v, first(v), 2), {}, last_rows
        )
        q, k, v, tq, tk = encoding.project(q, first(cache.k), first(cache.v), new, now, rows)
        return (q, first(k), first(v), tq, tk), cache
    q, k, v, tq, tk = encoding.project(q, k, v, new, new, rows)
    old_k = cache.k
    if encoding.cached == 'evolving':
        before = filled(tok, cursor).with_feats(**of_tokens(cache.feats))
        old_k = _evolve(encoding, old_k, before, tk)
    fresh = of_tokens(_cached_feats(encoding, new, tk))
    known = jax.tree.map(lambda buffer, a: append(buffer, a, 2), cache.feats, fresh)
    cache = LayerCache(append(old_k, first(k), 2), append(cache.v, first(v), 2), known, last_rows)
    return (q, cache.k, cache.v, tq, now.with_feats(**of_tokens(known))), cache


def _cached_feats(encoding: Encoding, placed: Tokens, projected: Tokens) -> dict[str, Any]:
    """The features that `project` added to the keys, without those of an encoding whose cached keys
    evolve.
    """
    if encoding.cached == 'raw':
        return {}
    consumed = {name_of(part) for part in parts_of(encoding) if part.cached == 'evolving'}
    return {
        name: feature
        for name, feature in projected.feats.items()
        if feature is not placed.feats.get(name) and name not in consumed
    }


def _evolve(encoding: Any, k: Array, tk: Tokens, new: Tokens) -> Array:
    """`EvolvingKeys.update_keys` in the rows in which the new token is not padding."""
    moved = encoding.update_keys(k, tk, new)
    return moved if new.valid is None else jnp.where(new.valid[:, :, None, None], moved, k)


def _evolve_prompt(
    encoding: Encoding, k: Float[Array, 'B K T H'], tk: Tokens
) -> Float[Array, 'B K T H']:
    """The keys of a prompt, each rewritten by all tokens after it."""

    def append(buffer, number):
        buffer = _evolve(encoding, buffer, filled(tk, number), tk.slice(number, 1))
        own = jax.lax.dynamic_slice_in_dim(k, number, 1, axis=2)
        return jax.lax.dynamic_update_slice_in_dim(buffer, own, number, axis=2), None

    return jax.lax.scan(append, jnp.zeros_like(k), jnp.arange(tk.length))[0]
