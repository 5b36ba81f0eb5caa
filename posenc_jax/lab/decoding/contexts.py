"""Contexts that are encoded once, each on its own, and joined into one decode cache for a query.

`encode` computes a `Piece` for every context. `join` puts any of the pieces, in any order, into a
`Cache`. `read` appends a query to this cache, and `decode_step` appends single tokens. `moved`
rotates the keys of a piece to other positions (`pie_keys`) and leaves its values unchanged.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Num

from posenc_jax.lab.decoding.cached_contexts import (
    PREFIX,
    QUERY,
    Layout,
    Piece,
    check_pieces,
    token_positions,
)
from posenc_jax.lab.decoding.pie import at_positions, fixed_rotary
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.cache import Cache, LayerCache
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.masks import Causal, Document
from posenc_jax.protocol.tokens import Tokens


class ContextMask(Encoding):
    """Replaces `document()` where the segments are a prefix, contexts and a query.

    Without a table every segment is visible, since a joined cache holds only what the query may
    see.

    Args:
      sees: `Layout.sees`, or None for no table.
    """

    traits = frozenset({'decides_segments'})

    def __init__(self, sees: Bool[np.ndarray, '... segments segments'] | None = None):
        self.sees = None if sees is None else Constant(jnp.asarray(sees))

    def mask(self, tq, tk):
        if self.sees is None or tq.segment is None or tk.segment is None:
            return None
        return self.sees[...][tq.segment[:, :, None], tk.segment[:, None, :]][:, None]


def from_query(tq: Tokens, tk: Tokens) -> Bool[Array, '#B 1 T S']:
    """True for the pairs of a token of the query (in tq) and a token of a context (in tk)."""
    return ((tq.segment == QUERY)[:, :, None] & (tk.segment > PREFIX)[:, None, :])[:, None]


def with_contexts(
    model: Transformer,
    sees: Bool[np.ndarray, 's s'] | None = None,
    attention_fn: Callable = sharded_attend,
) -> Transformer:
    """The same weights with `ContextMask(sees)` in place of `document()` in every layer.

    Args:
      sees: as for `ContextMask`.
      attention_fn: evaluates the pair stage of every layer, see `AttentionMixer`; hashable.
    """
    stacked = lambda layers: (
        None if sees is None else np.broadcast_to(sees, (len(layers), *sees.shape))
    )
    for kind in [kind for kind in (ContextMask, Document) if has_part(model, kind)] or [Document]:
        model = model.map_parts(kind, lambda _, layers: ContextMask(stacked(layers)))
    for block in model.blocks:
        block.attention_fn = attention_fn
    return model


def has_part(model: Transformer, kind: type[Encoding]) -> bool:
    """Whether some layer has a part of this class."""
    return any(
        isinstance(part, kind)
        for at in enumerate(model.blocks)
        for part in parts_of(model.encoding(*at))
    )


def check_model(user: str, model: Transformer) -> None:
    """Refuses a model whose layers are not causal attention with one rotary encoding of fixed
    frequencies.

    Raises:
      ValueError: the model does not fit; the message names the part of the encoding at fault.
    """
    if not model.cfg.causal:
        raise ValueError(f'{user} needs a decoder, this model is of kind {model.cfg.kind!r}')
    for layer_type, block in enumerate(model.blocks):
        parts = [
            part
            for part in parts_of(model.encoding(layer_type, block))
            if not isinstance(part, ContextMask)
        ]
        rotary = fixed_rotary(user, chain(*parts), beside=('mask',))
        for part in parts:
            if part is not rotary and not isinstance(part, (Causal, Document)):
                raise ValueError(
                    f'{user} needs plain causal attention beside its rotary encoding, got '
                    f'{name_of(part)}'
                )


def moved(model: Transformer, piece: Piece, ids: Num[np.ndarray, 'n']) -> Piece:
    """The piece at the positions `ids`: its keys are rotated to them, its values are unchanged."""
    ids = token_positions([ids])
    if np.array_equal(ids, piece.ids):
        return piece
    keys = []
    for (layer_type, block), k in zip(model.layers(), piece.k, strict=True):
        (rotary,) = [
            part for part in parts_of(model.encoding(layer_type, block)) if isinstance(part, Rotary)
        ]
        keys.append(at_positions(rotary, k, *(jnp.asarray(a)[None] for a in (piece.ids, ids))))
    return Piece(tuple(keys), piece.v, ids)


def join(
    user: str,
    model: Transformer,
    pieces: Sequence[Piece],
    *,
    capacity: int,
    start: float = 0,
    rows: int | None = None,
    copies: int = 1,
) -> Cache:
    """A decode cache that holds the pieces one after the other, at their present positions (see
    `moved`).

    Args:
      user: name of the method, for error messages.
      model: the model that will read the cache. If its layers have a `ContextMask`, the tokens of
        the cache have segments, and the first piece is the prefix.
      pieces: at least one, unless `rows` is given.
      capacity: number of slots, for the pieces, the query and the generated tokens.
      start: position of the first slot behind the pieces; the following ones count up by 1.
      rows: rows of the batch, used only without pieces.
      copies: how often the whole batch is repeated along the batch axis.

    Returns:
      A cache for `read` and then `decode_step`.

    Raises:
      ValueError: pieces that do not fit the capacity, or whose shapes do not fit this model; the
        message gives the numbers.
    """
    check_model(user, model)
    if len(pieces) or rows is None:
        check_pieces(user, model, pieces)
    if not isinstance(capacity, Integral):
        raise ValueError(f'{user}: capacity is a number of slots, an integer, got {capacity}')
    past = sum(piece.length for piece in pieces)
    if past > capacity or (past == capacity and rows is None):
        raise ValueError(
            f'{user}: contexts of {past} tokens (with the prefix) and a query do not fit a cache '
            f'of {capacity}'
        )
    room = capacity - past
    layout = Layout(tuple(piece.ids for piece in pieces), start, np.zeros((0, 0), bool))
    tok = layout.tokens(room)
    tok = tok if has_part(model, ContextMask) else dataclasses.replace(tok, segment=None)
    cfg = model.cfg
    rows = pieces[0].k[0].shape[0] if pieces else rows
    static = (cfg.layers, (rows, cfg.kv_heads, room, cfg.head_dim), cfg.width, cfg.dtype, copies)
    layers = _joined(static, [piece.k for piece in pieces], [piece.v for piece in pieces])
    return Cache((tok,) * len(model.links), jnp.asarray(past, jnp.int32), layers)


@functools.partial(jax.jit, static_argnums=0)
def _joined(static, keys, values):
    """The layers of a cache: keys and values of all pieces, followed by free slots."""
    layers, shape, width, dtype, copies = static
    free = jnp.zeros(shape, dtype)
    every = lambda held: jnp.tile(jnp.concatenate([*held, free], axis=2), (copies, 1, 1, 1))
    rows = jnp.zeros((copies * shape[0], 0, width), dtype)
    of_layer = lambda pieces, number: every(layers_of[number] for layers_of in pieces)
    return tuple(
        LayerCache(of_layer(keys, n), of_layer(values, n), {}, rows) for n in range(layers)
    )
