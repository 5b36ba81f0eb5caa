"""A decode cache of fixed length for a layer with a sliding window: the keys that later tokens can
still see, in order.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from posenc_jax.layer import slots
from posenc_jax.layer.cache import LayerCache, of_tokens
from posenc_jax.methods.window import Window
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowCache:
    """The cache of a layer whose new tokens see at most W tokens before them.

    Attributes:
      k, v: keys and values of the last W tokens; the last slot has the last token. Slots before the
        first token are zero.
      feats, rows: as in a `LayerCache`, for the same tokens.
    """

    k: Float[Array, 'B K W H']
    v: Float[Array, 'B K W H']
    feats: dict[str, Any]
    rows: Float[Array, 'B R D']


def reach(encoding: Encoding) -> int | None:
    """How many tokens before itself a token can see at most, where a window says so; None if it may
    see them all, or if what it caches depends on later tokens.

    Example:
      >>> import posenc_jax as pj
      >>> reach(pj.make('window(size=5)', causal=True)), reach(pj.make('nope()', causal=True))
      (4, None)
    """
    parts = parts_of(encoding)
    found = [
        part.size * (2 if part.aligned else 1) - 1 for part in parts if isinstance(part, Window)
    ]
    return min(found, default=None) if encoding.cached == 'encoded' else None


def bounded(cache: LayerCache, size: int, count: int | Int[Array, '']) -> WindowCache:
    """The cache of the last `size` of the `count` tokens that a cache holds.

    Args:
      cache: of one layer.
      size: `reach` of its encoding, W.
      count: may be traced.

    Example:
      >>> k = jnp.arange(1.0, 5.0).reshape(1, 1, 4, 1)
      >>> bounded(LayerCache(k, k, {}, k[0]), 3, 2).k.ravel().tolist()
      [0.0, 1.0, 2.0]
    """

    def last(a, axis):
        a = jnp.pad(a, [(size if i == axis else 0, 0) for i in range(a.ndim)])
        return jax.lax.dynamic_slice_in_dim(a, count, size, axis)

    feats = jax.tree.map(lambda a: last(a, 2), cache.feats)
    return WindowCache(last(cache.k, 2), last(cache.v, 2), feats, cache.rows)


def project_new(
    encoding: Encoding,
    cache: WindowCache,
    q: Float[Array, 'B T N _'],
    k: Float[Array, 'B T K _'],
    v: Float[Array, 'B T K H'],
    tok: Tokens,
    row: Float[Array, 'B T D'],
    cursor: Int[Array, ''],
    feats: dict[str, Any] | None = None,
) -> tuple[tuple, WindowCache]:
    """Projects T new tokens and appends them. Arguments and result as for `cache.project_new`;
    `attend` gets W + T keys.
    """
    size, count = cache.k.shape[2], row.shape[1]
    new = slots.at(tok, cursor, count).with_feats(**(feats or {}))
    rows = jnp.concatenate([cache.rows, row], axis=1)
    q, k, v, tq, tk = encoding.project(q, k, v, new, new, rows)
    join = lambda old, a, axis: jnp.concatenate([old, a.astype(old.dtype)], axis)
    k, v = (join(old, jnp.swapaxes(a, 1, 2), 2) for old, a in ((cache.k, k), (cache.v, v)))
    fresh = of_tokens({name: tk.feats[name] for name in cache.feats})
    known = jax.tree.map(lambda old, a: join(old, a, 2), cache.feats, fresh)
    seen = _before(tok, cursor, size, count).with_feats(**of_tokens(known))
    last = lambda a, axis: jax.lax.slice_in_dim(a, count, count + size, axis=axis)
    k_left, v_left, feats_left = jax.tree.map(lambda a: last(a, 2), (k, v, known))
    grown = WindowCache(k_left, v_left, feats_left, rows[:, count:])
    return (q, k, v, tq, seen), grown


def _before(tok: Tokens, cursor, size: int, count: int) -> Tokens:
    """The tokens of slots `cursor - size .. cursor + count - 1`. Those before the first slot are
    not valid, and neither are those of several new ones behind the last slot.
    """
    valid = jnp.ones((1, tok.length), bool) if tok.valid is None else tok.valid
    tok = dataclasses.replace(tok, valid=valid)
    behind = 0 if count == 1 or slots.known_to_fit(cursor, count, tok.length) else count
    around = lambda a: jnp.pad(a, [(size, behind) if i == 1 else (0, 0) for i in range(a.ndim)])
    return jax.tree.map(around, tok).slice(cursor, size + count)
