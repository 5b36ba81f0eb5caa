"""The protocol: `Tokens`, and `Encoding` with its doors, all shut by default.

Letters: B batch, T query tokens, S key tokens, L either, N query heads, K key/value heads, H head
width, D model width, P position components. A leading axis written #B may be 1 where the whole
batch shares it.

Token stage (`place`, `embed`, `branch`, `project`, `merge`) sees whole sequences, layout [B, L,
heads, H]. Pair stage (`open`, `turn`, `match`, `score`, `mask`, `collect`) sees one block of
queries and one block of keys, heads first: q [B, N, T, H], k and v [B, K, S, H], logits [B, N, T,
S] in float32; `whole` may do all of it at once for whole sequences. Features of tokens stay token
first, [#B, L, heads or 1, ...].
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.core.registry import Card

Carry = Any  # pytree of arrays [B, N, T, ...]


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
    def last(self) -> Int[Array, '#B']:
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


class Constant(nnx.Variable):
    """An array that belongs to an encoding and is not trained: slopes, thresholds per head.

    Like `nnx.Param` it may carry `axes`, one role per dimension ('heads' where the head axis is),
    for sharding.
    """


class Encoding(nnx.Module):
    """A positional encoding as a value: the doors it opens are overridden, all others stay shut.

    Class attributes:
      card: the catalogue entry, set by `register`; an encoding made for one experiment may do
        without.
      spec_kind: lets a spec string nest encodings as arguments.
      decides: what a mask settles by itself, so that the model adds no default mask for it:
        'causality', 'segments'.
      sees_later: a mask that lets queries see keys after them; without deciding causality, one that
        means nothing where another mask hides those keys.
      rotates: it turns queries and keys by their positions, which one part of a chain may do.
      unrotated: it reads queries and keys before they are turned.
      projected: the queries and keys that its logits are made of: 'last', as the whole chain leaves
        them; 'own', as the parts before it do; 'none', of none at all.
      runs: what it sums from key to query is right only where a query sees every key between its
        first and itself.
      leaves_gaps: a mask that hides keys between others that a query sees.
      reads_ids: `place` reads token ids; a position may then depend on earlier tokens of its
        document alone, and decoding places all tokens again whenever one becomes known.
      lookback: how many earlier rows of the layer input `branch` and `project` read (a short
        convolution); their rows come first in `x`.
      inputs: how many inputs of attention `branch` makes, if it is open.
      cached: 'encoded', 'raw', 'evolving' or 'none' (see `Promises.cached`).
    """

    card: ClassVar[Card]
    spec_kind: ClassVar[str] = 'encoding'
    decides: ClassVar[frozenset[str]] = frozenset()
    sees_later: ClassVar[bool] = False
    rotates: ClassVar[bool] = False
    unrotated: ClassVar[bool] = False
    projected: ClassVar[str] = 'last'
    runs: ClassVar[bool] = False
    leaves_gaps: ClassVar[bool] = False
    reads_ids: ClassVar[bool] = False
    lookback: ClassVar[int] = 0
    inputs: ClassVar[int] = 2

    @property
    def cached(self) -> str:
        card = getattr(self, 'card', None)
        return 'encoded' if card is None else card.promises.cached

    @property
    def draws(self) -> int | None:
        """`place` assigns positions from 0 .. draws-1; None where it keeps them near those it is
        given.
        """
        return None

    @property
    def position_limit(self) -> int | None:
        """How many positions there is a table entry for; None where every position will do."""
        return None

    # Token stage, whole sequences, O(L).

    def place(self, tok: Tokens, *, key: Array | None = None) -> Tokens:
        """Assigns positions. The only door that may be random: with a `key` the training rule,
        without it the evaluation rule.
        """
        return tok

    def embed(self, x: Float[Array, 'B L D'], tok: Tokens) -> Float[Array, 'B L D']:
        """Changes the token vectors at the input of the model."""
        return x

    def branch(self, x: Float[Array, 'B R+L D'], tok: Tokens) -> tuple[Float[Array, 'B L D'], ...]:
        """The inputs of attention in place of the layer input, for which the layer has one set of
        projections.

        `x` as for `project`, `tok` of its last L rows. With n inputs all later doors see n N query
        and n K key heads, those of the first input first, until `merge`, which is open or shut
        together with this door. An input may keep the `lookback` rows in front; `project` then
        takes those of q, k and v off, and is the first of a chain to be open.
        """
        return (x[:, self.lookback :],)

    def project(self, q, k, v, tq: Tokens, tk: Tokens, x=None):
        """Changes queries [B, T, N, H], keys and values [B, S, K, H] token by token, or attaches
        features to `tq` and `tk`.

        `x` is the layer input, [B, lookback + T, D]; rows before the sequence, padding among them,
        are zero.
        """
        return q, k, v, tq, tk

    def merge(self, out: Float[Array, 'B T nN H']) -> Float[Array, 'B T N H']:
        """The result of attention from those of the n inputs that `branch` made."""
        return out

    # Pair stage, one block of queries and one of keys.

    def open(self, q: Float[Array, 'B N T H'], tq: Tokens) -> Carry:
        """What is carried along the sweep over key blocks, from near to far, for this block of
        queries.
        """
        return ()

    def turn(self, fresh: Carry, swept: Carry) -> Carry:
        """What the sweep starts with where all keys have to be known first; open, keys are swept
        twice.

        The first sweep is one of logits alone (`match`, `score`), from `open`; the logits it makes
        are dropped.

        Args:
          fresh: what `open` gave.
          swept: what is carried out of the first sweep.
        """
        return fresh

    def match(self, q, k, tq: Tokens, tk: Tokens, seen, carry: Carry):
        """Logits of a block, float32 and scaled, and the carry for the next (farther) block."""
        return scaled_dot_product(q, k), carry

    def score(self, s: Float[Array, 'B N T S'], tq: Tokens, tk: Tokens, seen, carry: Carry):
        """Changes the logits of a block; returns them and the carry."""
        return s, carry

    def mask(self, tq: Tokens, tk: Tokens) -> Bool[Array, '#B #N T S'] | None:
        """Which keys each query may see; None for all. Masks of a chain are combined with AND."""
        return None

    def may_see(self, tq: 'Bounds', tk: 'Bounds') -> Bool[Array, ''] | bool:
        """Whether a block of keys can hold anything `mask` allows, from the bounds of the two
        blocks. May err towards True.
        """
        return True

    def collect(
        self, w: Float[Array, 'B N T S'], v, tq: Tokens, tk: Tokens
    ) -> Float[Array, 'B N T H']:
        """Sums values with weights `w` (not yet normalised); must be linear in `w`."""
        return weighted_sum(w, v)

    # All pairs of whole sequences at once.

    def whole(
        self, q, k, v, tq: Tokens, tk: Tokens, *, causal: bool, sweep: Callable[[], Array]
    ) -> Array | None:
        """A cheaper evaluation of the pair stage than tile by tile, [B, T, N, H] in the dtype of
        `v`; None where there is none.

        Asked only where no tiles are asked for, and in a chain whose other parts leave the pair
        stage alone but for the causal mask. It must equal `sweep()`, the evaluation by tiles, which
        it chooses where its conditions are known only when the program runs. The layout is that of
        `project`; gradients are those of JAX.

        Args:
          causal: whether later keys are hidden.
        """
        return None

    # Decode.

    def evolve(
        self, k: Float[Array, 'B K S H'], tk: Tokens, new: Tokens
    ) -> Float[Array, 'B K S H']:
        """Rewrites cached keys for one new token (`new` has length 1); only for
        `cached='evolving'`.
        """
        return k

    def opens(self, door: str) -> bool:
        """Whether this encoding overrides a door."""
        return getattr(type(self), door) is not getattr(Encoding, door)


DOORS = (
    'place',
    'embed',
    'branch',
    'project',
    'open',
    'turn',
    'match',
    'score',
    'mask',
    'collect',
    'whole',
    'merge',
    'evolve',
)


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

    def low_high(a):
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


def scaled_dot_product(
    q: Float[Array, 'B N T H'], k: Float[Array, 'B K S H']
) -> Float[Array, 'B N T S']:
    """`q k^T / sqrt(H)` in float32; each of the K key heads serves N // K consecutive query
    heads.
    """
    b, n, t, h = q.shape
    kv, s = k.shape[1], k.shape[2]
    return _rows_by_rows(q.reshape(b, kv, n // kv * t, h), k, h**-0.5).reshape(b, n, t, s)


def weighted_sum(w: Float[Array, 'B N T S'], v: Float[Array, 'B K S H']) -> Float[Array, 'B N T H']:
    """`w v` in float32, key/value heads shared as in `scaled_dot_product`."""
    b, n, t, s = w.shape
    kv, h = v.shape[1], v.shape[3]
    out = _rows_by_columns(w.reshape(b, kv, n // kv * t, s).astype(v.dtype), v)
    return out.reshape(b, n, t, h)


# The two products have gradients of their own because the transposed one contracts the rows of a
# large tile: written as [H, T] x [T, S] it is twice as fast on CPU as the [S, T] x [T, H] that
# automatic differentiation asks for.
_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows_by_rows(a, b, scale):
    if a.dtype == jnp.float32:
        return _dot('bkth,bksh->bkts', scale * a, b)  # not a pass over the large tile
    return scale * _dot('bkth,bksh->bkts', a, b)


@jax.custom_vjp
def _rows_by_columns(w, v):
    return _dot('bkts,bksh->bkth', w, v)


def _columns_by_columns(tile, a):
    product = _dot('bkht,bkts->bkhs', a.swapaxes(2, 3), tile)
    return jax.lax.optimization_barrier(product).swapaxes(
        2, 3
    )  # or XLA turns it back into the slow form


def _rows_by_rows_bwd(scale, operands, g):
    a, b = operands
    g = g.astype(a.dtype)  # scaled only after the products: a bias reads the same large tile
    d_a, d_b = scale * _dot('bkts,bksh->bkth', g, b), scale * _columns_by_columns(g, a)
    return d_a.astype(a.dtype), d_b.astype(b.dtype)


def _rows_by_columns_bwd(operands, g):
    w, v = operands
    g = g.astype(v.dtype)
    return _dot('bkth,bksh->bkts', g, v).astype(w.dtype), _columns_by_columns(w, g).astype(v.dtype)


_rows_by_rows.defvjp(lambda a, b, scale: (_rows_by_rows(a, b, scale), (a, b)), _rows_by_rows_bwd)
_rows_by_columns.defvjp(lambda w, v: (_rows_by_columns(w, v), (w, v)), _rows_by_columns_bwd)


def over_batch(a: Float[Array, '#B N T S'], batch: int) -> Float[Array, 'B N T S']:
    """What all rows of the batch share, evaluated once instead of in every row that reads it; what
    has all rows as it is.
    """
    return a if a.shape[0] == batch else _over_batch(a, batch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _over_batch(a, batch):
    return jnp.broadcast_to(jax.lax.optimization_barrier(a), (batch, *a.shape[1:]))


def _over_batch_bwd(batch, _, g):
    if batch <= 16:  # one pass, in which what made `g` is computed as well
        return (functools.reduce(jnp.add, [g[row] for row in range(batch)])[None],)
    return (
        jnp.tensordot(jnp.ones(batch, g.dtype), g, 1)[None],
    )  # as a product: 25 times faster on CPU than as a sum


_over_batch.defvjp(lambda a, batch: (_over_batch(a, batch), None), _over_batch_bwd)


def heads_first(feature: Array) -> Array:
    """A per-token feature [#B, L, heads, ...] as [#B, heads, L, ...]."""
    return jnp.swapaxes(feature, 1, 2)
