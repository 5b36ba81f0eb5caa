"""A call of a Pallas kernel of attention: its grid, and what a program instance reads and writes.

A program instance has one row of the batch, one head and one block of its own, and visits blocks of
the other side. On a GPU it loops over them, and the arrays of the other side stay in the memory of
the device. A TPU core computes on its own small memory, so there every visit is a step of the grid:
its blocks are copied while the visit before is computed, and the state between visits is kept in
that memory.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from posenc_jax.core import targets
from posenc_jax.core.kernel_arrays import (
    Heads,
    OfEncoding,
    OfPairs,
    OfTokens,
    held,
    of_encoding,
    of_tokens,
    read,
)
from posenc_jax.core.kernel_operations import Operations
from posenc_jax.core.kernel_sizes import USE_BLOCKED
from posenc_jax.core.memory import readable
from posenc_jax.core.program import NoKernelError, Program
from posenc_jax.core.tiles import sweep_order
from posenc_jax.core.tokens import Tokens

_TPU_BYTES = 16 * 2**20  # what XLA gives a kernel of the vector memory of a core
_TPU_SCALARS = 2**20  # bytes of the scalar memory of a core, which hold the visits


@dataclasses.dataclass(frozen=True)
class Fold:
    """What a program instance computes from the blocks that it visits, one after the other.

    Attributes:
      start: (arrays of the encoding, own block) -> the first state.
      step: (arrays of the encoding, own block, the other block, state) -> the next state. If there
        are arrays for every visit, their `Pair` follows.
      end: (arrays of the encoding, own block, the last state) -> the results.
      back: the visits are in the opposite order.
    """

    start: Callable
    step: Callable
    end: Callable
    back: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A call of attention, with its arguments as kernels get them.

    Attributes:
      plan: how it is cut; `plan.target` is what the kernels are made for.
      heads: of the attention.
      encoding: (params, constants).
      queries: (q, more arrays [B, N, T, ...], tokens).
      keys: (k, v, tokens).
    """

    plan: Any
    heads: Heads
    encoding: Any
    queries: Any
    keys: Any

    @classmethod
    def of(cls, plan, params, constants, q, k, v, tq, tk, *rows) -> 'Call':
        q, k, v = plan.q.swap(q), plan.k.swap(k), plan.k.swap(v)
        heads = Heads(q.shape[0], q.shape[1], k.shape[1], Operations(plan.target).room)
        pair = lambda arrays, size: [OfTokens.of(a, 'pair', size, heads) for a in arrays]
        return cls(
            plan,
            heads,
            (of_encoding(params, heads), of_encoding(constants, heads)),
            (*pair((q, *rows), plan.q.size), of_tokens(tq, plan.q.size, heads)),
            (*pair((k, v), plan.k.size), of_tokens(tk, plan.k.size, heads)),
        )

    def constants(self, *programs: Program) -> list:
        return [[OfEncoding.of(a, (), self.heads) for a in p.constants] for p in programs]

    def run(
        self,
        name: str,
        visits,
        fixed,
        own,
        others,
        fold: Fold,
        results,
        known: Sequence[OfPairs] = (),
        found: Sequence[OfPairs] = (),
    ) -> list:
        """Runs a kernel. Returns the arrays of `results` and of `found`.

        Args:
          visits: (order, count) of the blocks of `others` that each own block meets, [#B, blocks,
            others] and [#B, blocks].
          fixed: arrays of the encoding; a program instance gets those of its head.
          own, others: arrays of tokens; an instance has one block of its own, and visits others.
          fold: what is computed.
          results: (leaf, dtype) for each result, which has the shape of a gradient of the leaf.
          known: arrays that a kernel of queries reads at every visit.
          found: arrays that a kernel of queries writes at every visit.
        """
        tables = [a.reshape(-1).astype(jnp.int32) for a in visits]
        visits = _Visits(*visits[0].shape, back=fold.back)
        trees = fixed, own, others, list(known)
        visit = targets.of_tpu(self.plan.target)
        place = visits.block if visit else None
        state = jax.eval_shape(fold.start, held(fixed), held(own)) if visit else None
        instance = _Instance(trees, fold, visits, len(results), len(found), state)
        given = [leaf.array for leaf in jax.tree.leaves(trees)]
        specs = [
            *(leaf.spec() for leaf in jax.tree.leaves(fixed)),
            *(leaf.spec(lambda b, i, *_: i) for leaf in jax.tree.leaves(own)),
            *(leaf.spec(place) for leaf in jax.tree.leaves(others)),
            *(leaf.written(place)[1] for leaf in known),
        ]
        shapes = [leaf.sums(visits.own) for leaf, _ in results]
        shapes += [leaf.written(place) for leaf in found]
        dtypes = [dtype for _, dtype in results] + [leaf.dtype for leaf in found]
        outputs = [spec for _, spec in shapes]
        size = self.heads.rows, self.heads.queries, visits.own
        if visit:
            kernel, scratch = instance.visit, _scratch(state)
            tile = jax.ShapeDtypeStruct((self.plan.q.size, self.plan.k.size), jnp.float32)
            dtypes_read = [a.dtype for a in given]
            _check_memory([*specs, *outputs], [*dtypes_read, *dtypes], [*scratch, tile], tables)
            options = _on_grid((*size, visits.others), specs, outputs, scratch, self.plan.target)
        else:
            kernel, numbers = (
                instance.loop,
                [pl.BlockSpec(a.shape, lambda *_: (0,)) for a in tables],
            )
            options = _in_a_loop(size, [*numbers, *specs], outputs, self.plan.target)
        return pl.pallas_call(
            kernel,
            name=name,
            out_shape=[jax.ShapeDtypeStruct(shape, d) for (shape, _), d in zip(shapes, dtypes)],
            **options,
        )(*tables, *given)


@dataclasses.dataclass(frozen=True)
class _Visits:
    """Which blocks of others an own block meets. The tables are those of `visits_of_queries`, flat.

    Attributes:
      rows: of the tables; one if all rows of the batch have the same.
      own, others: how many blocks there are.
      back: the visits are in the opposite order.
    """

    rows: int
    own: int
    others: int
    back: bool

    def total(self, b, i, count):
        return count[self._line(b, i)]

    def block(self, b, i, n, order, count):
        """The block of visit `n`. Behind the last visit it is that of the last one, so that nothing
        is copied.
        """
        last = jnp.maximum(self.total(b, i, count) - 1, 0)
        n = jnp.minimum(n, last)
        return order[self._line(b, i) * self.others + (last - n if self.back else n)]

    def _line(self, b, i):
        return i + (b * self.own if self.rows > 1 else 0)


class _Refs(NamedTuple):
    """The references that a kernel gets, behind those to the tables of visits."""

    fixed: list
    own: list
    others: list
    known: list
    results: list
    found: list
    state: list


class _Instance:
    """What a program instance does.

    Args:
      trees: arrays of the encoding, own arrays, those of the others, and those of every visit.
      fold, visits: see `Call.run`.
      results: how many results there are.
      found: how many arrays are written at every visit.
      state: shapes and dtypes of what is kept between visits that are steps of the grid.
    """

    def __init__(self, trees, fold: Fold, visits: _Visits, results: int, found: int, state=None):
        self.trees, self._fold, self._visits = trees, fold, visits
        self._like, self._structure = jax.tree.flatten(state)
        self._sizes = [len(jax.tree.leaves(tree)) for tree in trees]
        self._sizes += [results, found, len(self._like)]

    def loop(self, order, count, *refs) -> None:
        """A kernel that has all blocks of the others."""
        refs, b, i = self._parts(refs), pl.program_id(0), pl.program_id(2)
        given = self._given(refs)

        def meet(n, state):
            return self._meet(given, refs, state, self._visits.block(b, i, n, order, count))

        state = self._fold.start(*given)
        self._end(given, refs, jax.lax.fori_loop(0, self._visits.total(b, i, count), meet, state))

    def visit(self, order, count, *refs) -> None:
        """A kernel that has the block of one visit."""
        refs, (b, i, n) = self._parts(refs), (pl.program_id(axis) for axis in (0, 2, 3))

        def state():
            found = [_read(ref, like) for ref, like in zip(refs.state, self._like)]
            return self._structure.unflatten(found)

        def keep(state):
            for ref, a in zip(refs.state, jax.tree.leaves(state), strict=True):
                ref[...] = a.reshape(ref.shape).astype(ref.dtype)

        @pl.when(n == 0)
        def _():
            keep(self._fold.start(*self._given(refs)))

        @pl.when(n < self._visits.total(b, i, count))
        def _():
            keep(self._meet(self._given(refs), refs, state()))

        @pl.when(n == self._visits.others - 1)
        def _():
            self._end(self._given(refs), refs, state())

    def _parts(self, refs) -> _Refs:
        refs = iter(refs)
        return _Refs(*([next(refs) for _ in range(size)] for size in self._sizes))

    def _given(self, refs: _Refs):
        return read(self.trees[0], refs.fixed), read(self.trees[1], refs.own)

    def _meet(self, given, refs: _Refs, state, *block):
        pair = Pair(block, (self.trees[3], refs.known), refs.found)
        more = (pair,) if refs.known or refs.found else ()
        return self._fold.step(*given, read(self.trees[2], refs.others, *block), state, *more)

    def _end(self, given, refs: _Refs, state):
        values = jax.tree.leaves(self._fold.end(*given, state))
        for ref, value in zip(refs.results, values, strict=True):
            ref[...] = value.reshape(ref.shape).astype(ref.dtype)


class Pair:
    """The entries of arrays for a visit: those of the own queries and of the block of keys.

    Args:
      block: the number of the block of keys, if the references have all of them.
      known: arrays that are read, and references to them.
      found: references to arrays that are written.
    """

    def __init__(self, block, known, found):
        self._block, self._known, self._found = block, known, found

    def known(self) -> list:
        return [leaf.at(ref, *self._block) for leaf, ref in zip(*self._known)]

    def write(self, arrays) -> None:
        for ref, a in zip(self._found, arrays, strict=True):
            ref[self._block or ...] = a.reshape(ref.shape[len(self._block) :])


def _flat(shape: Sequence[int]) -> tuple[int, ...]:
    """Without axes of one entry in front, and with two axes at least, as a TPU stores arrays."""
    shape = (1, 1, *shape)
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _scratch(state) -> list[jax.ShapeDtypeStruct]:
    """How the arrays of a state are kept."""
    kind = lambda a: jnp.int32 if a.dtype == jnp.bool_ else a.dtype
    return [jax.ShapeDtypeStruct(_flat(a.shape), kind(a)) for a in jax.tree.leaves(state)]


def _read(ref, like):
    """An array of a state."""
    a = ref[...].reshape(like.shape) if like.shape else ref[0, 0]
    return a != 0 if like.dtype == jnp.bool_ else a


def _check_memory(specs: Sequence[pl.BlockSpec], dtypes: Sequence[Any], once, tables) -> None:
    """Refuses what the memories of a TPU core do not hold: the parts of a program instance, twice,
    since those of the next visit come while one is computed; its state and its logits, `once`; and
    the tables of visits.
    """
    parts = [(spec.block_shape, dtype, 2) for spec, dtype in zip(specs, dtypes, strict=True)]
    parts += [(a.shape, a.dtype, 1) for a in once]
    needed = 0
    for shape, dtype, copies in parts:
        *front, rows, lanes = [1, 1, *(n for n in shape if isinstance(n, int))]
        tile = -(-rows // 8) * 8 * -(-lanes // 128) * 128  # a TPU stores tiles of 8 x 128
        needed += copies * math.prod(front) * tile * jnp.dtype(dtype).itemsize
    numbers = sum(4 * a.size for a in tables)
    what = "attend: implementation='kernel' would need"
    if needed > _TPU_BYTES:
        raise NoKernelError(
            f'{what} {readable(needed)} of the memory of a TPU core, which has '
            f'{readable(_TPU_BYTES)}, for a tile and the tables of the encoding; use a smaller '
            f'block or smaller tables, or {USE_BLOCKED}'
        )
    if numbers > _TPU_SCALARS:
        raise NoKernelError(
            f'{what} {readable(numbers)} of the scalar memory of a TPU core, which has '
            f'{readable(_TPU_SCALARS)}, for the order of the blocks; use a larger block, cut the '
            f'sequence (mesh.sequence), or {USE_BLOCKED}'
        )


def _in_a_loop(grid, in_specs, out_specs, target: str) -> dict:
    """Options of `pallas_call` for a kernel that loops over its visits."""
    options = dict(grid=grid, in_specs=in_specs, out_specs=out_specs)
    if target in targets.INTERPRETED:
        return options | dict(interpret=True)
    from jax.experimental.pallas import triton

    return options | dict(compiler_params=triton.CompilerParams(num_warps=4, num_stages=2))


def _on_grid(grid, in_specs, out_specs, scratch, target: str) -> dict:
    """The same for a kernel whose visits are steps of the grid."""
    from jax.experimental.pallas import tpu

    return dict(
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[tpu.VMEM(a.shape, a.dtype) for a in scratch],
        ),
        compiler_params=tpu.CompilerParams(
            dimension_semantics=('parallel', 'parallel', 'parallel', 'arbitrary')
        ),
        interpret=target in targets.INTERPRETED,
    )


def visits_of_queries(plan, encoding, tq: Tokens, tk: Tokens, together: bool = False):
    """The order in which every block of queries meets blocks of keys, and how many it meets, for
    every row of the batch, or once if all rows share their tokens or go `together`.
    """
    tq, tk = tq.without_feats(), tk.without_feats()

    def of_rows(tq, tk):
        blocks = jnp.arange(tq.length // plan.q.size)
        return jax.vmap(lambda i: sweep_order(plan, encoding, plan.q.tokens(tq, i), tk))(blocks)

    rows = max(a.shape[0] for a in jax.tree.leaves((tq, tk)))
    parts = 1 if together else rows
    cut = lambda a: jnp.broadcast_to(a, (rows, *a.shape[1:])).reshape(parts, -1, *a.shape[1:])
    return jax.vmap(of_rows)(*jax.tree.map(cut, (tq, tk)))


def visits_of_keys(visits):
    """The same for every block of keys, which meets blocks of queries."""
    order, count = visits
    meets = jnp.swapaxes(jnp.argsort(order, -1) < count[..., None], 1, 2)
    return jnp.argsort(~meets, -1), meets.sum(-1)
