"""The facts that are known about each token besides its vector."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.core import Tracer
from jaxtyping import Array, Bool, Int, Num

from posenc_jax.protocol.errors import names_checked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """What is known about each token besides its vector. Every leaf starts [#B, L], so it can be
    cut into blocks.

    Attributes:
      index: order in the sequence, ascending along the axis. Causality uses nothing else.
      pos: the position that the encoding uses. It may repeat, jump, be fractional, or have several
        components, such as row and column; tokens in front of a grid have negative ones alone.
      rank: the number of the token among the real tokens of its document, 0, 1, ...; `place` does
        not change it.
      ids: token ids as far as they are known, where `place` of some encoding reads them; else None.
      segment: packed document of the token; None if every row is one document.
      valid: False for padding and empty cache slots; None where all tokens are real.
      feats: per-token features keyed by the encoding's name, [#B, L, heads or 1, ...].
      grid: (rows, columns) if the last rows x columns tokens are the cells of a grid, row by row;
        else None. It is no array, so it is known while a program is traced. The positions of the
        cells are (row, column), and those of the tokens in front of them are (-1, -1).
    """

    index: Int[Array, '#B L']
    pos: Num[Array, '#B L *P']
    rank: Int[Array, '#B L']
    segment: Int[Array, '#B L'] | None = None
    valid: Bool[Array, '#B L'] | None = None
    ids: Int[Array, '#B L'] | None = None
    feats: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: tuple[int, int] | None = dataclasses.field(default=None, metadata=dict(static=True))

    @property
    def length(self) -> int:
        return self.index.shape[1]

    @property
    def last(self) -> int | Int[Array, '#B']:
        """The place of the last valid token along the axis, for each row."""
        return (
            self.length - 1
            if self.valid is None
            else self.length - 1 - jnp.argmax(self.valid[:, ::-1], axis=-1)
        )

    @classmethod
    @names_checked
    def of(
        cls,
        *,
        length: int | None = None,
        positions=None,
        segment=None,
        valid=None,
        ids=None,
        index: Any = None,
        rank=None,
    ) -> 'Tokens':
        """Tokens of whole sequences, or, with `index`, tokens from the middle of them.

        The index counts 0, 1, ... over all tokens unless it is given; `positions` never change it.
        Queries behind a cache of keys are therefore `of(index=...)`, or a slice of the tokens of
        the keys. Ranks count 0, 1, ... over the valid tokens of each segment, or equal a given
        index. Positions equal the ranks unless they are given.

        Args:
          length: L; needed only when nothing else tells it.
          positions: [#B, L] or [#B, L, P], or None.
          segment: [#B, L] integers, equal within a document and contiguous, or None.
          valid: [#B, L] booleans, False for padding on either side, or None.
          ids: [#B, L] integers, token ids; a model adds them where its encodings read them.
          index: [#B, L] ascending integers, the order of these tokens in their whole sequences.
          rank: [#B, L] integers, see the class. It must be given if `index` is given together with
            `segment` or `valid`, because the tokens in front are not known.

        Raises:
          ValueError: no length is known, the shapes disagree, an index that does not ascend, an
            index without the ranks that do not follow from it, positions that are not finite, or a
            document in two pieces. Values that are traced are not checked.

        Example:
          >>> queries = Tokens.of(index=[[11]])  # one query behind 11 others
          >>> queries.pos.tolist(), Tokens.of(positions=[[11]]).index.tolist()
          ([[11]], [[0]])
        """
        whole = dict(positions=positions, segment=segment, index=index, rank=rank, ids=ids)
        for name, a in dict(whole, valid=valid).items():
            _check_range(name, a)
        _check_finite(positions)
        given = {
            name: jnp.asarray(a, dtype)
            for name, a, dtype in (
                ('positions', positions, None),
                ('segment', segment, jnp.int32),
                ('valid', valid, bool),
                ('ids', ids, jnp.int32),
                ('index', index, jnp.int32),
                ('rank', rank, jnp.int32),
            )
            if a is not None
        }
        if 'positions' in given:
            dtype = given['positions'].dtype
            if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.floating)):
                raise ValueError(f'Tokens.of: positions must be real numbers, got {dtype}')
        length = int(length) if isinstance(length, np.integer) else length
        sources = dict(segment=segment, valid=valid, ids=ids, index=index, rank=rank)
        for name in given.keys() & sources.keys():
            source = jnp.asarray(sources[name])
            if jnp.issubdtype(source.dtype, jnp.floating):
                raise ValueError(
                    f'Tokens.of: {name} must be {"booleans" if name == "valid" else "integers"}, '
                    f'got {source.dtype}'
                )
        for name, a in given.items():
            if a.ndim < 2 or (a.ndim > 2 and name != 'positions'):
                raise ValueError(f'Tokens.of: {name} has shape {a.shape}, expected [B, L]')
        lengths = {a.shape[1] for a in given.values()} | ({length} if length is not None else set())
        if len(lengths) != 1 or not all(map(_is_length, lengths)):
            raise ValueError(
                f'Tokens.of needs one length of at least 1, got {sorted(lengths) or "none"}'
            )
        if len(rows := {a.shape[0] for a in given.values()} - {1}) > 1:
            raise ValueError(f'Tokens.of: the numbers of rows do not agree: {sorted(rows)}')
        (length,) = lengths
        if segment is not None:
            _check_documents(segment, valid)
        positions, segment, valid, ids, index, rank = (
            given.get(name) for name in ('positions', 'segment', 'valid', 'ids', 'index', 'rank')
        )
        counted = segment is not None or valid is not None
        if index is None:
            # Known also while a program is traced, unless the length is symbolic.
            count = np if isinstance(length, int) else jnp
            index = count.arange(length, dtype=np.int32)[None]
        else:
            if counted and rank is None:
                raise ValueError(
                    'Tokens.of: index with segment or valid needs rank too, since the documents '
                    'and the padding in front of these tokens are not known'
                )
            if not isinstance(index, Tracer) and (jnp.diff(index) <= 0).any():
                raise ValueError(f'Tokens.of: index must ascend along each row, got {index}')
        if rank is None and not counted:
            rank = jnp.asarray(index)
        elif rank is None:
            ones = jnp.ones_like(index) if valid is None else valid.astype(jnp.int32)
            count = jnp.cumsum(ones, axis=1)
            if segment is not None:
                fresh = jnp.concatenate(
                    [jnp.ones_like(segment[:, :1], bool), segment[:, 1:] != segment[:, :-1]], axis=1
                )
                before = jax.lax.cummax(jnp.where(fresh, count - ones, 0), axis=1)
                count = count - before
            rank = jnp.maximum(count - 1, 0)
        pos = rank if positions is None else positions
        return cls(index=index, pos=pos, rank=rank, segment=segment, valid=valid, ids=ids)

    @classmethod
    def on_grid(cls, rows: int, columns: int, *, extra: int = 0) -> 'Tokens':
        """The cells of a grid, row by row, behind `extra` tokens that have no place on it.

        Raises:
          ValueError: a grid without cells, or a negative number of tokens.

        Example:
          >>> Tokens.on_grid(2, 2, extra=1).pos[0].tolist()
          [[-1, -1], [0, 0], [0, 1], [1, 0], [1, 1]]
        """
        if rows < 1 or columns < 1 or extra < 0:
            raise ValueError(
                f'a grid has at least one row and one column, got {rows} x {columns} cells behind '
                f'{extra} other tokens'
            )
        cells = np.stack(np.divmod(np.arange(rows * columns, dtype=np.int32), columns), axis=-1)
        positions = np.concatenate([np.full((extra, 2), -1, np.int32), cells])
        return dataclasses.replace(cls.of(positions=positions[None]), grid=(rows, columns))

    def with_feats(self, **feats) -> 'Tokens':
        """A copy that also has these features.

        Raises:
          ValueError: a feature of that name exists, e.g. because an encoding is in a chain twice.
        """
        taken = sorted(feats.keys() & self.feats.keys())
        if taken:
            raise ValueError(
                f'the feature {taken[0]!r} exists already: two parts of one chain write it'
            )
        return dataclasses.replace(self, feats={**self.feats, **feats})

    def without_feats(self) -> 'Tokens':
        return dataclasses.replace(self, feats={})

    def slice(self, start, size: int) -> 'Tokens':
        """The block of `size` tokens from `start` (which may be traced). It is no grid."""
        cut = lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis=1)
        return dataclasses.replace(jax.tree.map(cut, self), grid=None)


def _check_range(name: str, a) -> None:
    """Refuses lists that are no array, and integers that 32 bits do not hold; arrays of JAX have
    been cut to them already.
    """
    if a is None or isinstance(a, jax.Array):
        return
    try:
        a = np.asarray(a)
    except ValueError:
        raise ValueError(
            f'Tokens.of: {name} has rows of different lengths, expected [B, L]; pad the shorter '
            'ones and give valid=, False for padding'
        ) from None
    limits = np.iinfo(np.int32)
    if np.issubdtype(a.dtype, np.integer) and a.size:
        if a.min() < limits.min or a.max() > limits.max:
            raise ValueError(
                f'Tokens.of: {name} must lie in {limits.min} .. {limits.max} (32 bits), got '
                f'{a.min()} .. {a.max()}'
            )


def host_values(a) -> np.ndarray | None:
    """The values of an array; None if they are traced or lie on other hosts too."""
    if isinstance(a, Tracer) or (isinstance(a, jax.Array) and not a.is_fully_addressable):
        return None
    return np.asarray(a)


def _check_finite(positions) -> None:
    known = None if positions is None else host_values(positions)
    if known is not None and jnp.issubdtype(known.dtype, jnp.floating):
        with np.errstate(over='ignore'):
            known = known.astype(np.float32)
        wrong = known[~np.isfinite(known)]
        if wrong.size:
            raise ValueError(f'Tokens.of: positions must be finite in float32, got {wrong[0]}')


def _check_documents(segment, valid) -> None:
    """Refuses a document whose real tokens are in several runs of one segment."""
    known, real = host_values(segment), None if valid is None else host_values(valid)
    if known is None or (valid is not None and real is None):
        return
    known, real = np.broadcast_arrays(known, True if real is None else real)
    for number, (row, counts) in enumerate(zip(known, real)):
        starts = np.flatnonzero(np.append(True, row[1:] != row[:-1]))
        runs = row[starts][np.logical_or.reduceat(counts, starts)]
        several = [s for s, n in zip(*np.unique(runs, return_counts=True)) if n > 1]
        if several:
            raise ValueError(
                f'Tokens.of: segment {several[0]} of row {number} is in several pieces; a document '
                'is contiguous, so give each piece a number of its own'
            )


def _is_length(n) -> bool:
    if export.is_symbolic_dim(n):
        return True
    return isinstance(n, int) and not isinstance(n, bool) and n >= 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bounds:
    """Smallest and largest index, rank, segment and position of the valid tokens in a block, over
    the batch. Of a position with components it is their sum.

    A block without valid tokens has low > high.
    """

    index_low: Array
    index_high: Array
    rank_low: Array
    rank_high: Array
    segment_low: Array | None
    segment_high: Array | None
    position_low: Array
    position_high: Array


def bounds(tok: Tokens) -> Bounds:
    """`Bounds` of a block of tokens."""

    def low_high(a) -> tuple[Any, Any]:
        if a is None:
            return None, None
        if tok.valid is None:
            return a.min(), a.max()
        big = jnp.iinfo(jnp.int32).max
        return jnp.where(tok.valid, a, big).min(), jnp.where(tok.valid, a, -big).max()

    position = tok.pos if tok.pos.ndim == 2 else tok.pos.sum(-1)
    return Bounds(
        *low_high(tok.index), *low_high(tok.rank), *low_high(tok.segment), *low_high(position)
    )
