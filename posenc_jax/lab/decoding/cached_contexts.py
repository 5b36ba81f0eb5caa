"""The cached pieces of contexts that are encoded separately, their positions, and checks."""

import dataclasses
from collections.abc import Sequence
from numbers import Integral

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.tokens import Tokens

PREFIX, QUERY = 0, -1  # values of `Tokens.segment`; those of the contexts are 1, 2, ...


@dataclasses.dataclass(frozen=True)
class Piece:
    """The cached keys and values of a stretch of tokens, and its positions.

    Attributes:
      k, v: keys and values, one array for each layer; n tokens.
      ids: the positions to which the keys are rotated.
    """

    k: tuple[Float[Array, 'B K n H'], ...]
    v: tuple[Float[Array, 'B K n H'], ...]
    ids: Num[np.ndarray, 'n']

    @property
    def length(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The positions of a prefix, contexts and a query, and which of these segments see each other.

    Attributes:
      ids: positions of the tokens of each segment: first of the prefix (which may be empty), then
        of every context.
      start: position of the first token of the query; the following ones count up by 1.
      sees: whether tokens of one segment (row) see earlier tokens of another segment (column). The
        segments are the prefix, the contexts and the query, in this order.
    """

    ids: tuple[Num[np.ndarray, '_'], ...]
    start: float
    sees: Bool[np.ndarray, 'segments segments']

    def tokens(self, query: int) -> Tokens:
        """`Tokens` of prefix, contexts and a query of `query` tokens, one after the other."""
        pos = token_positions([*self.ids, self.start + np.arange(query)])
        segment = np.concatenate(
            [
                np.repeat(np.arange(len(self.ids)), [len(ids) for ids in self.ids]),
                np.full(query, QUERY),
            ]
        )
        index, pos, segment = (jnp.asarray(a)[None] for a in (np.arange(len(pos)), pos, segment))
        index, segment = index.astype(jnp.int32), segment.astype(jnp.int32)
        return Tokens(index, pos, rank=index, segment=segment)


def parallel_layout(ids: Sequence[Num[np.ndarray, '_']], start: float) -> Layout:
    """A layout in which a context sees the prefix and itself, and the query sees everything. The
    arguments are the fields of `Layout`.
    """
    sees = np.eye(len(ids) + 1, dtype=bool)
    sees[:, PREFIX] = sees[QUERY] = True
    return Layout(tuple(map(np.asarray, ids)), start, sees)


def check_lengths(user: str, prefix: int, lengths: Sequence[int]) -> None:
    """Refuses impossible numbers of tokens of a prefix and of contexts.

    Raises:
      ValueError: a number that is not an integer, a prefix below 0, no context, or an empty one.
    """
    whole = all(isinstance(n, Integral) for n in (prefix, *lengths))
    if not whole or prefix < 0 or not len(lengths) or min(lengths) < 1:
        expected = 'a prefix of 0 or more and contexts of 1 or more tokens'
        raise ValueError(f'{user}: expected {expected}, got {prefix}, {list(lengths)}')


def check_tokens(
    user: str, what: str, tokens, vocabulary: int, *, empty: bool = False
) -> Int[np.ndarray, 'B n']:
    """Checks token ids and returns them as [B, n]; a plain list is one row. `empty` allows n = 0.

    Raises:
      ValueError: ids that are not integers or not in the vocabulary, or no tokens.
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
    """Checks prefix and contexts and returns their token ids, [B, n] each with the same B.

    Raises:
      ValueError: no contexts, an empty one, different numbers of rows, or the errors of
        `check_tokens`.
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
    """Refuses pieces whose shapes do not fit the model, or that have different numbers of rows.

    Raises:
      ValueError: no pieces, a wrong number of layers, or keys and values of a wrong shape.
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
                    f'{user}: piece {number} holds rows, key heads, tokens and width {a.shape}, '
                    f'expected {wanted}, from piece 0 and the model'
                )


def select(
    user: str, model: Transformer, pieces: Sequence[Piece], chosen: Sequence[int] | None
) -> tuple[Piece, ...]:
    """The prefix and the chosen contexts, in the order of `chosen`; None chooses all.

    Args:
      pieces: the prefix, then the contexts.
      chosen: numbers of contexts, from 0.

    Raises:
      ValueError: no context is chosen, one is chosen twice or does not exist, or the errors of
        `check_pieces`.
    """
    check_pieces(user, model, pieces)
    count = len(pieces) - 1
    if not count:
        raise ValueError(
            f'{user} needs a prefix and at least one context, got a single piece, the prefix'
        )
    if isinstance(chosen, Integral):
        raise ValueError(f'{user}: `chosen` lists contexts, got {chosen}; did you mean [{chosen}]?')
    chosen = range(count) if chosen is None else chosen
    if not len(chosen) or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(count)):
        raise ValueError(
            f'{user}: expected different contexts among 0 .. {count - 1}, got {list(chosen)}'
        )
    return (pieces[0], *(pieces[1 + number] for number in chosen))


def token_positions(ids: Sequence[np.ndarray]) -> Num[np.ndarray, 'n']:
    """The positions joined into one array: int32, or float32 if any of them is a fraction."""
    joined = np.concatenate([np.zeros(0, np.int32), *map(np.asarray, ids)])
    whole = joined.astype(np.int32)
    return whole if (whole == joined).all() else joined.astype(np.float32)
