"""Contexts encoded once, each on its own, and joined into one decode cache where they are used.

`encode` fills a `Piece` for every context, `join` lays any of them, in any order, into a `Cache`,
`read` sends a query through it, and `decode_step` goes on from there. A piece that is joined at
other positions than it was encoded at has its keys turned (`pie_keys`); its values stay. `dense` is
what all of this has to equal: one pass over all tokens, with explicit positions and a mask of
segments.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.core.compose import chain
from posenc_jax.core.composite import name_of, parts_of
from posenc_jax.core.encoding import Constant, Encoding
from posenc_jax.core.masks import Causal, Document
from posenc_jax.core.tokens import Tokens
from posenc_jax.decoding.decode import check_last, check_temperature, continue_cache, read_ids
from posenc_jax.decoding.pie import pie_keys
from posenc_jax.model.cache import Cache, LayerCache, check_layers, filled
from posenc_jax.model.layers import layer_rows
from posenc_jax.model.sharding import sharded_attend
from posenc_jax.model.transformer import Transformer
from posenc_jax.rotation.rope import Rotary
from posenc_jax.rotation.single import single_rotary

PREFIX, QUERY = 0, -1  # segments; contexts count from 1
_KEYS = 256  # to a tile where all of a query is one block of rows


@dataclasses.dataclass(frozen=True)
class Piece:
    """The cached keys and values of a stretch of tokens, and where it stood when they were
    computed.

    Attributes:
      k, v: of every layer.
      ids: positions the keys are rotated at.
    """

    k: tuple[Float[Array, 'B K n H'], ...]
    v: tuple[Float[Array, 'B K n H'], ...]
    ids: Num[np.ndarray, 'n']

    @property
    def length(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the tokens of prefix, contexts and query stand, and which of these see which.

    Attributes:
      ids: positions of the tokens of every segment: of the prefix (which may have none), then of
        every context.
      start: position of the query's first token; those of the others count up by 1.
      sees: whether tokens of one segment (row) see the tokens before them of another: prefix,
        contexts, query.
    """

    ids: tuple[Num[np.ndarray, '_'], ...]
    start: float
    sees: Bool[np.ndarray, 'segments segments']

    def tokens(self, query: int) -> Tokens:
        """`Tokens` of everything in a row, with so many of the query; segments as in this module.

        Example:
          >>> tok = parallel_layout((np.arange(1), np.arange(1, 3), np.arange(1, 2)), 3).tokens(2)
          >>> tok.pos.tolist(), tok.segment.tolist()
          ([[0, 1, 2, 1, 3, 4]], [[0, 1, 1, 2, -1, -1]])
        """
        pos = _positions([*self.ids, self.start + np.arange(query)])
        segment = np.concatenate(
            [
                np.repeat(np.arange(len(self.ids)), [len(ids) for ids in self.ids]),
                np.full(query, QUERY),
            ]
        )
        index, pos, segment = (jnp.asarray(a)[None] for a in (np.arange(len(pos)), pos, segment))
        return Tokens(index=index.astype(jnp.int32), pos=pos, segment=segment.astype(jnp.int32))


def parallel_layout(ids: Sequence[Num[np.ndarray, '_']], start: float) -> Layout:
    """Contexts that see the prefix and themselves; the query sees everything. Arguments as the
    fields of `Layout`.

    Example:
      >>> parallel_layout((np.arange(1), np.arange(1, 3), np.arange(1, 2)), 3).sees.astype(
      ...     int
      ... ).tolist()
      [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]
    """
    sees = np.eye(len(ids) + 1, dtype=bool)
    sees[:, PREFIX] = sees[QUERY] = True
    return Layout(tuple(map(np.asarray, ids)), start, sees)


def check_lengths(user: str, prefix: int, lengths: Sequence[int]) -> None:
    """Refuses numbers of tokens that no prefix and contexts can have.

    Raises:
      ValueError: says what was expected.

    Example:
      >>> check_lengths('this', 0, [3])
    """
    whole = all(isinstance(n, Integral) for n in (prefix, *lengths))
    if not whole or prefix < 0 or not len(lengths) or min(lengths) < 1:
        expected = 'a prefix of 0 or more and contexts of 1 or more tokens'
        raise ValueError(f'{user}: expected {expected}, got {prefix}, {list(lengths)}')


class ContextMask(Encoding):
    """What stands in place of `document()` where segments are prefix, contexts and query.

    Without a table a query sees every segment: the joined cache holds only what it is to see.

    Class attributes:
      whole_rows: all tokens of a query have to be in one tile.

    Args:
      sees: `Layout.sees`, or None.

    Example:
      >>> layout = parallel_layout((np.arange(1), np.arange(1, 2)), 2)
      >>> ContextMask(layout.sees).mask(layout.tokens(1), layout.tokens(1))[0, 0].astype(
      ...     int
      ... ).tolist()
      [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """

    traits = frozenset({'decides_segments'})
    whole_rows = False

    def __init__(self, sees: Bool[np.ndarray, '... segments segments'] | None = None):
        self.sees = None if sees is None else Constant(jnp.asarray(sees))

    def mask(self, tq, tk):
        if self.sees is None or tq.segment is None or tk.segment is None:
            return None
        return self.sees[...][tq.segment[:, :, None], tk.segment[:, None, :]][:, None]


def from_query(tq: Tokens, tk: Tokens) -> Bool[Array, '#B 1 T S']:
    """Pairs of a token of the query and one of a context."""
    return ((tq.segment == QUERY)[:, :, None] & (tk.segment > PREFIX)[:, None, :])[:, None]


def with_part(
    model: Transformer,
    part: Callable[..., ContextMask],
    sees: Bool[np.ndarray, 's s'] | None = None,
) -> Transformer:
    """The same weights with `part(sees)` in place of `document()`, or of another part of this kind,
    in every layer.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=2, width=8, heads=2, encoding='rope()'
      ... )
      >>> reader = with_part(Transformer(cfg, rngs=nnx.Rngs(0)), ContextMask)
      >>> [type(part).__name__ for part in parts_of(reader.encoding(0, reader.blocks[0]))]
      ['Rotary', 'Causal', 'ContextMask']
    """
    stacked = lambda layers: (
        None if sees is None else np.broadcast_to(sees, (len(layers), *sees.shape))
    )
    for kind in [kind for kind in (ContextMask, Document) if has_part(model, kind)] or [Document]:
        model = model.map_parts(kind, lambda _, layers: part(stacked(layers)))
    return model


def has_part(model: Transformer, kind: type[Encoding]) -> bool:
    """Whether some layer has a part of this class.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=2, width=8, heads=2, encoding='rope()'
      ... )
      >>> has_part(Transformer(cfg, rngs=nnx.Rngs(0)), Document)
      True
    """
    return any(
        isinstance(part, kind)
        for at in enumerate(model.blocks)
        for part in parts_of(model.encoding(*at))
    )


def check_model(user: str, model: Transformer) -> None:
    """Refuses a model whose layers are not causal attention with one rotary encoding of fixed
    frequencies.

    Raises:
      ValueError: names the part that is in the way.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=2, width=8, heads=2, encoding='rope()'
      ... )
      >>> check_model('this', Transformer(cfg, rngs=nnx.Rngs(0)))
    """
    if not model.cfg.causal:
        raise ValueError(f'{user} needs a decoder, this model is of kind {model.cfg.kind!r}')
    for place, block in enumerate(model.blocks):
        parts = [
            part
            for part in parts_of(model.encoding(place, block))
            if not isinstance(part, ContextMask)
        ]
        rotary = single_rotary(user, chain(*parts), beside=('mask',))
        if rotary.uses_length:
            raise ValueError(
                f'{user} joins keys that are cached as encoded, but the angles of {rotary.freqs} '
                'depend on the current length; '
                'keys of such a rule are cached raw and encoded at every step'
            )
        for part in parts:
            if part is not rotary and not isinstance(part, (Causal, Document)):
                raise ValueError(
                    f'{user} needs plain causal attention beside its rotary encoding, got '
                    f'{name_of(part)}'
                )


def check_tokens(
    user: str, what: str, tokens, vocabulary: int, *, empty: bool = False
) -> Int[np.ndarray, 'B _']:
    """Token ids [B, n]; a plain list is one row. `empty` allows n = 0.

    Raises:
      ValueError: no integers, no tokens, or ids that do not exist, with the numbers.

    Example:
      >>> check_tokens('this', 'the query', [3, 4], 9).tolist()
      [[3, 4]]
    """
    try:
        a = np.asarray(tokens)
    except ValueError:
        raise ValueError(
            f'{user}: the rows of {what} differ in length; give each a call of its own'
        ) from None
    a = a.reshape(1, -1) if a.ndim == 1 else a
    if a.ndim != 2 or not (np.issubdtype(a.dtype, np.integer) or not a.size):
        raise ValueError(
            f'{user}: {what} must be integers [B, n] or [n], got {a.dtype} {np.shape(tokens)}'
        )
    if not a.shape[0] or not (a.shape[1] or empty):
        raise ValueError(f'{user}: {what} has no tokens, its shape is {a.shape}')
    if a.size and not 0 <= a.min() <= a.max() < vocabulary:
        raise ValueError(
            f'{user}: token ids of {what} must lie in 0 .. {vocabulary - 1}, got {a.min()} .. '
            f'{a.max()}'
        )
    return a.astype(np.int32)


def check_contexts(
    user: str, prefix, contexts: Sequence, vocabulary: int
) -> list[Int[np.ndarray, 'B _']]:
    """The prefix and every context as ids [B, n], with one number of rows.

    Raises:
      ValueError: no contexts, an empty one, different numbers of rows, or what `check_tokens`
        refuses.

    Example:
      >>> [a.shape for a in check_contexts('this', [], [[3, 4], [5]], 9)]
      [(1, 0), (1, 2), (1, 1)]
    """
    if not len(contexts):
        raise ValueError(f'{user} needs at least one context, got none')
    checked = [
        check_tokens(user, f'context {number}', tokens, vocabulary)
        for number, tokens in enumerate(contexts)
    ]
    rows = checked[0].shape[0]
    prefix = (
        np.zeros((rows, 0), np.int32)
        if not np.size(prefix)
        else check_tokens(user, 'the prefix', prefix, vocabulary)
    )
    if prefix.shape[0] == 1:
        prefix = np.broadcast_to(prefix, (rows, prefix.shape[1]))
    for number, a in enumerate([prefix, *checked]):
        if a.shape[0] != rows:
            name = f'context {number - 1}' if number else 'the prefix'
            raise ValueError(f'{user}: {name} has {a.shape[0]} rows, context 0 has {rows}')
    return [prefix, *checked]


def check_pieces(user: str, model: Transformer, pieces: Sequence[Piece]) -> None:
    """Refuses pieces that are not of this model, as far as their shapes tell, or of different
    numbers of rows.

    Raises:
      ValueError: no pieces, another number of layers, or keys and values of another shape, with the
        numbers.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=2, width=8, heads=2, encoding='rope()'
      ... )
      >>> model = Transformer(cfg, rngs=nnx.Rngs(0))
      >>> check_pieces('this', model, encode('this', model, [np.array([[1, 2]])], [np.arange(2)]))
    """
    if not len(pieces):
        raise ValueError(f'{user} needs at least one piece, got none; pieces come from encode')
    cfg, rows = model.cfg, pieces[0].k[0].shape[0]
    for number, piece in enumerate(pieces):
        if other := sorted({len(piece.k), len(piece.v)} - {cfg.layers}):
            found = f'piece {number} is of {other[0]} layers, the model has {cfg.layers}'
            raise ValueError(f'{user}: {found}; encode it with this model')
        wanted = (rows, cfg.kv_heads, piece.length, cfg.head_dim)
        for a in (*piece.k, *piece.v):
            if a.shape != wanted:
                raise ValueError(
                    f'{user}: piece {number} holds rows, key heads, tokens, width {a.shape}, '
                    f'expected {wanted}: the rows of '
                    'piece 0, the heads of the model'
                )


def select(
    user: str, model: Transformer, pieces: Sequence[Piece], chosen: Sequence[int] | None
) -> tuple[Piece, ...]:
    """The prefix and the chosen contexts, which count from 0, in their order; all for None.

    Raises:
      ValueError: none is chosen, one twice, or one that does not exist; what `check_pieces`
        refuses.
    """
    check_pieces(user, model, pieces)
    count = len(pieces) - 1
    if not count:
        raise ValueError(
            f'{user}: these pieces are one, the prefix; contexts are the pieces behind it'
        )
    if isinstance(chosen, Integral):
        raise ValueError(f'{user}: `chosen` lists contexts, got {chosen}; did you mean [{chosen}]?')
    chosen = range(count) if chosen is None else chosen
    if not len(chosen) or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(count)):
        raise ValueError(
            f'{user}: expected different contexts among 0 .. {count - 1}, got {list(chosen)}'
        )
    return (pieces[0], *(pieces[1 + number] for number in chosen))


def encode(
    user: str,
    model: Transformer,
    contexts: Sequence[Int[np.ndarray, 'B _']],
    ids: Sequence[Num[np.ndarray, '_']],
    before: Sequence[Piece] = (),
    *,
    together: int | None = None,
) -> tuple[Piece, ...]:
    """Every context through the model on its own, causally, behind the same pieces, all of which it
    sees.

    Contexts whose lengths share a power of two go through the model as rows of one batch, padded
    and masked.

    Args:
      user: the method, for messages.
      model: causal attention with one rotary encoding of fixed frequencies.
      contexts: token ids; a context may be empty.
      ids: the position of every token.
      before: pieces at the positions they are read at (see `moved`).
      together: most contexts in one pass; None for no limit.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=2, width=8, heads=2, encoding='rope()'
      ... )
      >>> model = Transformer(cfg, rngs=nnx.Rngs(0))
      >>> (prefix,) = encode('this', model, [np.array([[1, 2]])], [np.arange(2)])
      >>> [
      ...     p.length
      ...     for p in encode(
      ...         'this',
      ...         model,
      ...         [np.array([[3, 4, 5]]), np.array([[6]])],
      ...         [2 + np.arange(3), [2]],
      ...         [prefix],
      ...     )
      ... ]
      [3, 1]
    """
    check_model(user, model)
    if together is not None and not (isinstance(together, Integral) and together >= 1):
        raise ValueError(f'{user}: together must be at least 1, an integer, got {together}')
    pieces: list[Piece | None] = [None] * len(contexts)
    alike: dict[int, list[int]] = {}
    for number, tokens in enumerate(contexts):
        alike.setdefault((tokens.shape[1] - 1).bit_length() if tokens.shape[1] else -1, []).append(
            number
        )
    for numbers in alike.values():
        size = together or len(numbers)
        for start in range(0, len(numbers), size):
            some = numbers[start : start + size]
            encoded = _encode(
                user, model, [contexts[n] for n in some], [np.asarray(ids[n]) for n in some], before
            )
            for number, piece in zip(some, encoded):
                pieces[number] = piece
    return tuple(pieces)


def _encode(user, model, contexts, ids, before) -> list[Piece]:
    count, rows, longest = (
        len(contexts),
        contexts[0].shape[0],
        max(tokens.shape[1] for tokens in contexts),
    )
    past, lengths = sum(piece.length for piece in before), tuple(map(len, ids))
    cache = join(user, model, before, capacity=past + longest, rows=rows, copies=count)
    if longest:
        fill = lambda a, n: np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, longest - n)])
        own = np.stack([fill(_positions([a]), len(a)) for a in ids])
        old = np.broadcast_to(_positions([piece.ids for piece in before]), (count, past))
        pos = np.concatenate(
            [old, own], axis=1, dtype=np.result_type(*(a for a in (old, own) if a.size))
        )
        real = np.arange(past + longest) < past + np.array(lengths)[:, None]
        per_row = lambda a: jnp.asarray(np.repeat(a, rows, axis=0))
        tok = Tokens(index=jnp.arange(past + longest)[None], pos=per_row(pos), valid=per_row(real))
        tokens = np.concatenate([fill(a, a.shape[1]) for a in contexts])
        _, cache = read(
            model, dataclasses.replace(cache, tokens=(tok,) * len(model.links)), tokens, last=0
        )
    return [
        Piece(k, v, _positions([a])) for (k, v), a in zip(_cut((past, lengths), cache.layers), ids)
    ]


@functools.partial(jax.jit, static_argnums=0)
def _cut(static, layers):
    """Keys and values of every context out of the rows that it was encoded in."""
    past, lengths = static
    rows = layers[0].k.shape[0] // len(lengths)
    cut = lambda a, number, n: a[number * rows : (number + 1) * rows, :, past : past + n]
    every = lambda name, *which: tuple(cut(getattr(layer, name), *which) for layer in layers)
    return [(every('k', number, n), every('v', number, n)) for number, n in enumerate(lengths)]


def _positions(ids: Sequence[np.ndarray]) -> Num[np.ndarray, 'n']:
    """All of these in a row: int32, or float32 where there are fractions."""
    joined = np.concatenate([np.zeros(0, np.int32), *map(np.asarray, ids)])
    whole = joined.astype(np.int32)
    return whole if (whole == joined).all() else joined.astype(np.float32)


def moved(model: Transformer, piece: Piece, ids: Num[np.ndarray, 'n']) -> Piece:
    """The piece at other positions: its keys turned there, its values as they are.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=1, width=8, heads=2, encoding='rope()'
      ... )
      >>> model = Transformer(cfg, rngs=nnx.Rngs(0))
      >>> here, there = (
      ...     encode('this', model, [np.array([[1, 2]])], [ids])[0]
      ...     for ids in (np.arange(2), 5 + np.arange(2))
      ... )
      >>> bool(jnp.allclose(moved(model, here, 5 + np.arange(2)).k[0], there.k[0], atol=1e-5))
      True
    """
    ids = _positions([ids])
    if np.array_equal(ids, piece.ids):
        return piece
    keys = []
    for (place, block), k in zip(model.layers(), piece.k, strict=True):
        (rotary,) = [
            part for part in parts_of(model.encoding(place, block)) if isinstance(part, Rotary)
        ]
        (before, old), (after, new) = (
            rotary.angles(jnp.asarray(a)[None]) for a in (piece.ids, ids)
        )
        scale = (new / old)[:, None, :, None] if jnp.ndim(new) else 1.0
        keys.append(pie_keys(k, before, after, layout=rotary.layout, scale=scale))
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
    """A decode cache that holds the pieces one after the other, where they stand (see `moved`).

    Args:
      user: the method, for messages.
      model: that will read the cache. Where its layers hold a `ContextMask` the tokens carry
        segments: the first piece is the prefix.
      pieces: at least one, unless `rows` is given.
      capacity: slots: of the pieces, the query and what is generated.
      start: position of the first slot behind the pieces.
      rows: of the batch; from the pieces where there are any.
      copies: how often the rows are repeated, one after the other.

    Returns:
      A cache for `read` and then `decode_step`.

    Raises:
      ValueError: pieces that do not fit the capacity or are not of this model, with the numbers.
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
    """The layers of a cache: what every piece holds of them, and free slots."""
    layers, shape, width, dtype, copies = static
    free = jnp.zeros(shape, dtype)
    every = lambda held: jnp.tile(jnp.concatenate([*held, free], axis=2), (copies, 1, 1, 1))
    rows = jnp.zeros((copies * shape[0], 0, width), dtype)
    of_layer = lambda pieces, number: every(layers_of[number] for layers_of in pieces)
    return tuple(
        LayerCache(of_layer(keys, n), of_layer(values, n), {}, rows) for n in range(layers)
    )


def read(
    model: Transformer, cache: Cache, tokens: Int[Array, 'B T'], *, last: int | None = None
) -> tuple[Float[Array, 'B _ V'] | None, Cache]:
    """Appends several tokens to a filled cache in one pass; the logits of their `last` ones (None:
    of all of them).

    Raises:
      ValueError: more tokens than there are (known) free slots, or another number of rows; `last`
        outside 0 .. T; (where they are known) token ids that do not exist; an empty cache, one of
        another method, one of joined contexts that another model is to read; an encoding whose keys
        are not cached as encoded, or with more than its keys.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=1, width=8, heads=2, encoding='rope()'
      ... )
      >>> model = Transformer(cfg, rngs=nnx.Rngs(0))
      >>> pieces = encode(
      ...     'this', model, [np.array([[1, 2]]), np.array([[3]])], [np.arange(2), np.arange(1)]
      ... )
      >>> logits, cache = read(model, join('this', model, pieces, capacity=8, start=2), [[4, 5]])
      >>> logits.shape, int(cache.cursor)
      ((1, 2, 9), 5)
    """
    tokens = jnp.asarray(tokens)
    _check_readable(model, cache)
    full = 0 if isinstance(cache.cursor, jax.core.Tracer) else int(cache.cursor)
    rows, free = cache.layers[0].k.shape[0], cache.capacity - full
    if tokens.ndim != 2 or tokens.shape[0] != rows or not 1 <= tokens.shape[1] <= free:
        raise ValueError(
            f'tokens to read must be [{rows}, 1 .. {free}] (a cache of {cache.capacity} slots, '
            f'{full} of them full), got '
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
            'read: the cache holds joined contexts, which this model would not see: read it with '
            'the model that `join` '
            'returned beside it'
        )
    for (place, block), own in zip(enumerate(model.blocks), cache.layers):
        encoding = model.encoding(place, block)
        if encoding.cached != 'encoded' or encoding.lookback or own.feats:
            chained = ' | '.join(map(name_of, parts_of(encoding)))
            raise ValueError(
                f'read appends several tokens where a cache holds encoded keys alone; {chained} '
                'keeps more, or encodes keys '
                'anew: append them one by one with decode_step'
            )


@functools.partial(jax.jit, static_argnums=0)
def _read(static, state, cache: Cache, tokens):
    graphdef, last = static
    model, cursor, count = nnx.merge(graphdef, state), cache.cursor, tokens.shape[1]
    cache = read_ids(model, cache, tokens)
    fresh = tuple(tok.slice(cursor, count) for tok in cache.tokens)

    def mix(h, encoding, place, block, own):
        new, now = fresh[place], filled(cache.tokens[place], cursor + count)
        q, k, v, tq, _ = encoding.project(
            *block.attention.split(h), new, new, layer_rows(h, new.valid, 0)
        )
        put = lambda old, a: jax.lax.dynamic_update_slice_in_dim(
            old, jnp.swapaxes(a, 1, 2).astype(old.dtype), cursor, 2
        )
        grown = dataclasses.replace(own, k=put(own.k, k), v=put(own.v, v))
        whole = any(
            isinstance(part, ContextMask) and part.whole_rows for part in parts_of(encoding)
        )
        tiles = dict(
            block=(count, block.block or _KEYS) if whole else block.block,
            implementation=block.implementation,
        )
        return sharded_attend(
            encoding, q, grown.k, grown.v, tq, now, heads_first=True, **tiles
        ), grown

    x, appended = model.loop_layers(mix, model.embed(tokens, fresh), cache.layers)
    last = count if last is None else last
    logits = model.logits(model.norm(x[:, count - last :])) if last else None
    return logits, dataclasses.replace(cache, cursor=cursor + count, layers=appended)


def continue_from(
    model: Transformer,
    cache: Cache,
    query: Int[Array, 'B T'],
    *,
    max_new_tokens: int,
    key: Array | None = None,
    temperature: float = 0.0,
) -> Int[Array, 'B new']:
    """Reads a query and generates behind it, token by token; without a key the most probable ones.

    Raises:
      ValueError: the query and the new tokens do not fit the free slots; a temperature without a
        key; what `read` refuses.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=1, width=8, heads=2, encoding='rope()'
      ... )
      >>> model = Transformer(cfg, rngs=nnx.Rngs(0))
      >>> pieces = encode(
      ...     'this', model, [np.array([[1, 2]]), np.array([[3]])], [np.arange(2), np.arange(1)]
      ... )
      >>> cache = join('this', model, pieces, capacity=8, start=2)
      >>> continue_from(model, cache, [[4]], max_new_tokens=3).shape
      (1, 3)
    """
    query = jnp.asarray(query)
    free = cache.capacity - int(cache.cursor)
    if not isinstance(max_new_tokens, Integral):
        raise ValueError(f'max_new_tokens must be an integer of at least 1, got {max_new_tokens}')
    if max_new_tokens < 1 or query.shape[-1] + max_new_tokens - 1 > free:
        raise ValueError(
            f'{query.shape[-1]} tokens of a query and {max_new_tokens} new ones (at least 1; the '
            'last is not stored) do not '
            f'fit {free} free slots of a cache of {cache.capacity}'
        )
    check_temperature(temperature, key)
    logits, cache = read(model, cache, query, last=1)
    return continue_cache(
        model, cache, logits[:, -1], max_new_tokens=max_new_tokens, temperature=temperature, key=key
    )


def dense(
    model: Transformer,
    segments: Sequence[Int[np.ndarray, 'B _']],
    query: Int[np.ndarray, 'B T'],
    layout: Layout,
    part: Callable[..., ContextMask] = ContextMask,
) -> Float[Array, 'B L V']:
    """Logits of all tokens from one pass over prefix, contexts and query at the positions and with
    the mask of `layout`.

    The definition that the cached way is tested against.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=9, train_len=8, layers=1, width=8, heads=2, encoding='rope()'
      ... )
      >>> layout = parallel_layout((np.arange(1), np.arange(1, 3), np.arange(1, 2)), 3)
      >>> segments = [np.array([[1]]), np.array([[2, 3]]), np.array([[4]])]
      >>> dense(Transformer(cfg, rngs=nnx.Rngs(0)), segments, np.array([[5]]), layout).shape
      (1, 5, 9)
    """
    tokens = np.concatenate([*segments, query], axis=1)
    return with_part(model, part, layout.sees)(jnp.asarray(tokens), layout.tokens(query.shape[1]))
