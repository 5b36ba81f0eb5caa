"""What is known about each token besides its vector."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """What is known about each token besides its vector. Every leaf starts [#B, L], so it can be
    cut into blocks.

    Attributes:
      index: order in the sequence; causality uses this and only this. Ascends along the axis.
      pos: what the encoding believes the position is: may repeat, jump, be fractional, have several
        components.
      rank: which of the real tokens of its document it is, 0, 1, ..., whatever `place` did to
        `pos`; None where `index` says so (one document a row, no padding in front).
      ids: token ids as far as they are known, only where `place` of some encoding reads them; None
        everywhere else.
      segment: packed document of the token; None where there is one document a row.
      valid: False for padding and empty cache slots; None where all tokens are real.
      feats: per-token features keyed by the encoding's name, [#B, L, heads or 1, ...].
    """

    index: Int[Array, '#B L']
    pos: Num[Array, '#B L *P']
    segment: Int[Array, '#B L'] | None = None
    valid: Bool[Array, '#B L'] | None = None
    rank: Int[Array, '#B L'] | None = None
    ids: Int[Array, '#B L'] | None = None
    feats: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.index.shape[1]

    @property
    def order(self) -> Int[Array, '#B L']:
        """`rank`, or `index` where that is the rank."""
        return self.index if self.rank is None else self.rank

    @property
    def last(self) -> int | Int[Array, '#B']:
        """Index of the last valid token of each row."""
        return (
            self.length - 1
            if self.valid is None
            else self.length - 1 - jnp.argmax(self.valid[:, ::-1], axis=-1)
        )

    @classmethod
    def of(
        cls, *, length: int | None = None, positions=None, segment=None, valid=None, ids=None
    ) -> 'Tokens':
        """Tokens of whole sequences, as the data pipeline hands them over.

        Positions count 0, 1, ... over the valid tokens of each segment unless `positions` gives
        them.

        Args:
          length: L; needed only when nothing else tells it.
          positions: [#B, L] or [#B, L, P], or None.
          segment: [#B, L] integers, equal within a document and contiguous, or None.
          valid: [#B, L] booleans, False for padding on either side, or None.
          ids: [#B, L] integers, token ids; a model adds them where its encodings read them.

        Raises:
          ValueError: no length is known, or the shapes disagree.
        """
        given = {
            name: jnp.asarray(a, dtype)
            for name, a, dtype in (
                ('positions', positions, None),
                ('segment', segment, jnp.int32),
                ('valid', valid, bool),
                ('ids', ids, jnp.int32),
            )
            if a is not None
        }
        for name in given.keys() & {'segment', 'valid', 'ids'}:
            source = jnp.asarray({'segment': segment, 'valid': valid, 'ids': ids}[name])
            if jnp.issubdtype(source.dtype, jnp.floating):
                raise ValueError(
                    f'Tokens.of: {name} must be {"booleans" if name == "valid" else "integers"}, '
                    f'got {source.dtype}'
                )
        for name, a in given.items():
            if a.ndim < 2 or (a.ndim > 2 and name != 'positions'):
                raise ValueError(f'Tokens.of: {name} has shape {a.shape}, expected [B, L]')
        lengths = {a.shape[1] for a in given.values()} | ({length} if length is not None else set())
        if len(lengths) != 1 or not all(isinstance(n, int) for n in lengths) or min(lengths) < 1:
            raise ValueError(
                f'Tokens.of needs one length of at least 1, got {sorted(lengths) or "none"}'
            )
        if len(rows := {a.shape[0] for a in given.values()} - {1}) > 1:
            raise ValueError(f'Tokens.of: the numbers of rows do not agree: {sorted(rows)}')
        (length,) = lengths
        positions, segment, valid, ids = (
            given.get(name) for name in ('positions', 'segment', 'valid', 'ids')
        )
        index = jnp.arange(length, dtype=jnp.int32)[None]
        rank = None
        if segment is not None or valid is not None:
            ones = jnp.ones_like(index) if valid is None else valid.astype(jnp.int32)
            count = jnp.cumsum(ones, axis=1)
            if segment is not None:
                fresh = jnp.concatenate(
                    [jnp.ones_like(segment[:, :1], bool), segment[:, 1:] != segment[:, :-1]], axis=1
                )
                before = jax.lax.cummax(jnp.where(fresh, count - ones, 0), axis=1)
                count = count - before
            rank = jnp.maximum(count - 1, 0)
        pos = positions if positions is not None else index if rank is None else rank
        return cls(index=index, pos=pos, segment=segment, valid=valid, rank=rank, ids=ids)

    def with_feats(self, **feats) -> 'Tokens':
        """A copy that also carries these features.

        Raises:
          ValueError: a feature of that name is there already, e.g. of the same encoding twice in a
            chain.
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
        """The block of `size` tokens from `start` (which may be traced)."""
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis=1), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bounds:
    """Smallest and largest index, order, position (over all components), segment of the valid
    tokens in a block, over the batch.

    Empty blocks have low > high."""

    index_low: Array
    index_high: Array
    order_low: Array
    order_high: Array
    pos_low: Array
    pos_high: Array
    segment_low: Array | None
    segment_high: Array | None


def bounds(tok: Tokens) -> Bounds:
    """`Bounds` of a block of tokens."""

    def low_high(a) -> tuple[Any, Any]:
        if a is None:
            return None, None
        if tok.valid is None:
            return a.min(), a.max()
        big = jnp.iinfo(jnp.int32).max if jnp.issubdtype(a.dtype, jnp.integer) else jnp.inf
        valid = tok.valid.reshape(*tok.valid.shape, *[1] * (a.ndim - 2))
        return jnp.where(valid, a, big).min(), jnp.where(valid, a, -big).max()

    return Bounds(
        *low_high(tok.index), *low_high(tok.order), *low_high(tok.pos), *low_high(tok.segment)
    )
