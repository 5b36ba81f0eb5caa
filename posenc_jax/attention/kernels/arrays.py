"""Arrays as kernels get them: their layout, which part of them a program instance reads, and how
that part looks in a door.

A program instance has the numbers (b, n, i) of a row of the batch, a query head and a block. Where
visits are steps of the grid, the number of the step and the tables of visits follow. `groups.py`
makes of these the parts of an instance that goes through several query heads. The rules by which an
encoding and the features of tokens are cut to one head are those of `layer/sharding.py`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import pallas as pl

from posenc_jax.attention.kernels.lanes import OfRows
from posenc_jax.attention.kernels.look_up import Part
from posenc_jax.attention.kernels.operations import without_booleans
from posenc_jax.attention.kernels.padding import cut, widen
from posenc_jax.protocol.tokens import Tokens

# The number of a block, from (b, i) or (b, i, step, order, count).
Place = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Heads:
    """The rows of the batch, and the heads of queries and of keys.

    Attributes:
      room, held, hold: the shapes of arrays in kernels and how they are held, as in `Operations`.
    """

    rows: int
    queries: int
    keys: int
    room: Callable[[Sequence[int]], tuple[int, ...]]
    held: Callable[[Sequence[int]], tuple[int, ...]]
    hold: Callable[[Any, Sequence[int]], Any]

    @property
    def group(self) -> int:
        """How many query heads share a key head."""
        return self.queries // self.keys

    def number(self, count: int, n):
        """Which of `count` heads belongs to query head `n`."""
        if count in (1, self.queries):
            return n if count > 1 else 0
        return jax.lax.div(n, self.group)

    def sum(self, a, count: int):
        """Sums over the query heads, axis 1, that share one of `count` heads."""
        return a.reshape(a.shape[0], count, -1, *a.shape[2:]).sum(2)

    def sums(self, apart: bool):
        """How many heads there are in sums of program instances, and which of them belongs to query
        head `n`. Those that are not `apart` for each query head are sums over a group.
        """
        if apart:
            return self.queries, lambda n: n
        return self.keys, lambda n: jax.lax.div(n, self.group)


@dataclasses.dataclass(frozen=True, eq=False)
class OfTokens:
    """An array with an entry for each token, as a kernel gets it.

    Attributes:
      array: [#B, heads or 1, L, *room]; without a rest [#B, heads or 1, 1, L], whose last dimension
        a TPU can cut.
      rest: what an entry has besides its head.
      door: a block of T tokens is in a door [1, 1, T, *rest] for 'pair', [1, T, 1, *rest] for
        'feature' and [1, T, *rest] for 'token'.
      size: T.
      dtype: of the array in a door. Booleans are passed as integers.
      heads: of the attention.
      queries: the tokens are those of queries.
    """

    array: Any
    rest: tuple[int, ...]
    door: str
    size: int
    dtype: Any
    heads: Heads
    queries: bool = dataclasses.field(default=False, kw_only=True)

    @classmethod
    def of(cls, a, door: str, size: int, heads: Heads, queries: bool = False) -> 'OfTokens':
        """Of an array [#B, L, ...], or for 'pair' [B, heads, L, ...]."""
        dtype = a.dtype
        if door != 'pair':
            a = jnp.swapaxes(a, 1, 2) if door == 'feature' else a[:, None]
        rest = a.shape[3:]
        a = widen(without_booleans(a), (*a.shape[:3], *heads.room(rest)))
        a = a if rest else a[:, :, None]
        return cls(a, rest, door, size, dtype, heads, queries=queries)

    @property
    def room(self):
        return self.heads.room(self.rest)

    @property
    def of_heads(self) -> tuple[int, ...]:
        """The axes of `array` that have an entry for each query head."""
        return (1,) if self.array.shape[1] == self.heads.queries else ()

    @property
    def example(self):
        kind = jax.ShapeDtypeStruct
        if self.queries and self.door == 'token' and self.turned:
            kind = OfRows
        return kind((*self._block, *self.rest), self.dtype)

    @property
    def held(self):
        """What `read` gives."""
        return jax.ShapeDtypeStruct(self.heads.held(self._shown), self.dtype)

    @property
    def turned(self) -> bool:
        """Whether a kernel holds numbers in other places of a register than those of `array`."""
        return math.prod(self.heads.held(self._shown)) != math.prod(self._shown)

    @property
    def _shown(self):
        of_queries = self.queries and self.door == 'token' and not self.rest
        numbers = (1, 1, self.size)
        # A block that does not fill registers is held as doors see it.
        turns = of_queries and self.heads.held(numbers) != numbers
        return numbers if turns else (*self._block, *self.room)

    @property
    def _block(self):
        shape = {'pair': (1, 1, self.size), 'feature': (1, self.size, 1), 'token': (1, self.size)}
        return shape[self.door]

    def spec(self, place: Place | None = None) -> pl.BlockSpec:
        """The part of a program instance: the block in this place, or all tokens."""
        rows, count, *_ = self.array.shape
        length = self.size if place else self.array.shape[2 if self.rest else 3]

        def index(b, n, *more):
            block = place(b, *more) if place else 0
            return (*self._row(rows, count, b, n), *self._place(block))

        return pl.BlockSpec((None, None, *self._shape(length)), index)

    def read(self, ref, number=None):
        """A block, as a kernel holds it: the one that is there, or that of a number among all."""
        if number is None:
            block = ref[...]
        else:
            at = pl.ds(pl.multiple_of(number * self.size, self.size), self.size)
            block = ref[(at, *(slice(None),) * len(self.rest)) if self.rest else (0, at)]
        block = self.heads.hold(block, self._shown)
        return block != 0 if self.dtype == jnp.bool_ else block

    def load(self, ref, *arguments):
        """The numbers of own or other tokens at an index, see `Part.load`. The first argument may
        be the number of a block among all.
        """
        *number, index, owner, shape = arguments
        if owner not in ('query', 'key') or len(self.rest) != 1 or self.size == 1:
            return None
        axis = 0 if owner == 'query' else len(shape) - 1
        token = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        first = [n * self.size for n in number if n is not None]
        return ref[sum(first, token), jnp.broadcast_to(index, shape)]

    def sums(self, blocks: int, group: int = 1):
        """The shape of the gradients of all program instances, and the part of one of them, which
        goes through so many query heads.
        """
        count, number = self.heads.sums(group == 1 or bool(self.of_heads))
        shape = self.heads.rows, count, *self._shape(blocks * self.size)
        block = None, None, *self._shape(self.size)
        return shape, pl.BlockSpec(block, lambda b, n, i, *_: (b, number(n), *self._place(i)))

    def gradient(self, sums):
        """The gradient of the array that `of` got."""
        rows, count, *_ = self.array.shape
        a = self.heads.sum(self.joined(sums), count)
        a = a if rows == len(a) else a.sum(0, keepdims=True)
        return {'pair': a, 'feature': jnp.swapaxes(a, 1, 2), 'token': a[:, 0]}[self.door]

    def joined(self, sums):
        """What all program instances have written, [B, heads, L, *rest]."""
        a = sums.reshape(*sums.shape[:2], -1, *self.room)
        return cut(a, (*a.shape[:3], *self.rest))

    def _row(self, rows, count, b, n):
        return b if rows > 1 else 0, self.heads.number(count, n)

    def _shape(self, length: int):
        return (length, *self.room) if self.rest else (1, length)

    def _place(self, i):
        return (i, *(0,) * len(self.rest)) if self.rest else (0, i)


@dataclasses.dataclass(frozen=True, eq=False)
class OfPairs(OfTokens):
    """An array with an entry for each query and each block of keys: [B, N, blocks, L, *room];
    without a rest [B, N, blocks, 1, L]. A program instance of a kernel of queries has its own
    queries and all blocks, or the block of its visit. One of a kernel of keys has its own block and
    all queries, or those of its visit, and reads them as an `OfTokens`.

    Attributes:
      blocks, length: how many blocks of keys and how many queries there are.
    """

    blocks: int
    length: int

    def spec(self, place: Place | None = None) -> pl.BlockSpec:
        """The part of a program instance of a kernel of keys."""
        block = None, None, None, *self._shape(self.size if place else self.length)

        def index(b, n, i, *more):
            return b, n, i, *self._place(place(b, i, *more) if place else 0)

        return pl.BlockSpec(block, index)

    def written(self, place: Place | None = None):
        """The shape of the array, and the part of a program instance of a kernel of queries."""
        shape = self.heads.rows, self.heads.queries, self.blocks, *self._shape(self.length)
        block = None, None, None if place else self.blocks, *self._shape(self.size)

        def index(b, n, i, *more):
            return b, n, place(b, i, *more) if place else 0, *self._place(i)

        return shape, pl.BlockSpec(block, index)

    def at(self, ref, number=None):
        """The entries of the own queries, as a kernel holds them: of the block of keys that is
        there, or of the one of a number.
        """
        block = ref[...] if number is None else ref[number]
        return self.heads.hold(block, (*self._block, *self.room))


@dataclasses.dataclass(frozen=True, eq=False)
class OfEncoding:
    """An array of the encoding, as a kernel gets it.

    Attributes:
      array: [*heads, rows, columns]; first the axes that have the role of heads.
      cut: these axes in the array of the encoding.
      shape, dtype: those of the array of the encoding.
      heads: of the attention.
    """

    array: Any
    cut: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any
    heads: Heads

    @classmethod
    def of(cls, a, roles, heads: Heads) -> 'OfEncoding':
        """Of an array whose dimensions have these roles."""
        a = jnp.asarray(a)
        axes = tuple(n for n, role in enumerate(roles) if role in ('heads', 'kv_heads'))
        shape, dtype = a.shape, a.dtype
        a = jnp.moveaxis(a, axes, range(len(axes)))
        a = widen(a, (*a.shape[: len(axes)], *heads.room(a.shape[len(axes) :])))
        a = a.reshape(*a.shape[: len(axes)], -1, a.shape[-1] if a.ndim > len(axes) else 1)
        return cls(without_booleans(a), axes, shape, dtype, heads)

    @property
    def example(self):
        shape = tuple(1 if n in self.cut else size for n, size in enumerate(self.shape))
        return jax.ShapeDtypeStruct(shape, self.dtype)

    @property
    def held(self):
        """What `read` gives."""
        shape = self.heads.held(self.heads.room(self.example.shape))
        return jax.ShapeDtypeStruct(shape, self.dtype)

    @property
    def of_heads(self) -> tuple[int, ...]:
        """As for `OfTokens`."""
        heads = self.array.shape[: len(self.cut)]
        return tuple(axis for axis, count in enumerate(heads) if count == self.heads.queries)

    def spec(self) -> pl.BlockSpec:
        counts = self.array.shape[: len(self.cut)]

        def index(b, n, *_):
            return (*(self.heads.number(count, n) for count in counts), 0, 0)

        return pl.BlockSpec((*(None,) * len(counts), *self.array.shape[-2:]), index)

    def read(self, ref):
        a = ref[...] if self.shape else ref[0, 0]
        shape = self.heads.room(self.example.shape)
        a = self.heads.hold(a, shape) if self.shape else a  # Mosaic does not reshape a scalar
        return a != 0 if self.dtype == jnp.bool_ else a

    def load(self, ref, *arguments):
        """The entries at an index, see `Part.load`."""
        *_, index, owner, shape = arguments
        if owner == 'row' and len(self.held.shape) == 2:
            column = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
            return ref[jnp.broadcast_to(index, shape), column]
        if owner != 'all':
            return None
        rows, columns = ref.shape
        if rows == 1 or columns == 1:
            return ref[0, index] if rows == 1 else ref[index, 0]
        return ref[index // columns, index % columns]

    def sums(self, blocks: int, group: int = 1):
        """As for `OfTokens`."""
        count, number = self.heads.sums(group == 1 or bool(self.of_heads))
        shape, rest = (self.heads.rows, count, blocks), self.array.shape[-2:]
        index = lambda b, n, i, *_: (b, number(n), i, 0, 0)
        return (*shape, *rest), pl.BlockSpec((None, None, None, *rest), index)

    def zero(self):
        return jnp.zeros(self.shape, jnp.float32)

    def gradient(self, sums):
        a = sums.sum((0, 2))
        if not self.cut:
            return cut(a.sum(0).reshape(self.heads.room(self.shape)), self.shape)
        (axis,) = self.cut
        a = self.heads.sum(a[None], self.shape[axis])[0]
        rest = [size for n, size in enumerate(self.shape) if n != axis]
        a = a.reshape(-1, *self.heads.room(rest))
        return jnp.moveaxis(cut(a, (len(a), *rest)), 0, axis)


def of_encoding(state: nnx.State, heads: Heads) -> Any:
    """The variables of an encoding as `OfEncoding`, in the structure of the state."""
    variables = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    roles = [variable.get_metadata().get('axes') or () for variable in variables]
    leaves, structure = jax.tree.flatten(state)
    return structure.unflatten([OfEncoding.of(a, r, heads) for a, r in zip(leaves, roles)])


def of_tokens(tok: Tokens, size: int, heads: Heads, queries: bool = False) -> Tokens:
    """The leaves of tokens as `OfTokens`."""
    of = lambda a: OfTokens.of(a, 'token', size, heads, queries)
    plain = jax.tree.map(of, tok.without_feats())
    feats = jax.tree.map(lambda a: OfTokens.of(a, 'feature', size, heads), tok.feats)
    return dataclasses.replace(plain, feats=feats)


def examples(tree: Any) -> Any:
    """The shapes and dtypes that doors see."""
    return jax.tree.map(lambda leaf: leaf.example, tree)


def held(tree: Any) -> Any:
    """The shapes and dtypes of what `read` gives."""
    return jax.tree.map(lambda leaf: leaf.held, tree)


def read(tree: Any, refs, *number) -> Any:
    """The arrays as a kernel gets them, a `Part` for each leaf of `tree`, from its references."""
    leaves, structure = jax.tree.flatten(tree)
    part = lambda leaf, ref: Part(
        leaf.read(ref, *number), functools.partial(leaf.load, ref, *number)
    )
    return structure.unflatten([part(leaf, ref) for leaf, ref in zip(leaves, refs)])
