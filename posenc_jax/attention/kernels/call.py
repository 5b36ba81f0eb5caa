"""A call of a Pallas kernel of attention: its grid, and what a program instance reads and writes.

A program instance has one row of the batch, one head and one block of its own, and visits blocks of
the other side. An instance of a key head does so for each query head of its group. On a GPU it
loops over them, and the arrays of the other side stay in the memory of the device. A TPU core
computes on its own small memory, so there a program instance is several steps of the grid, one for
each visit: the blocks of a visit are copied while the one before is computed, and the state between
visits is kept in that memory.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from posenc_jax.attention.kernels.arrays import (
    Heads,
    OfEncoding,
    OfPairs,
    OfTokens,
    held,
    of_encoding,
    of_tokens,
    read,
)
from posenc_jax.attention.kernels.groups import OfHead, of_group
from posenc_jax.attention.kernels.lanes import release
from posenc_jax.attention.kernels.operations import Operations, without_booleans
from posenc_jax.attention.kernels.program import Program
from posenc_jax.attention.kernels.sizes import GPU_TILES
from posenc_jax.attention.kernels.tpu_memory import (
    check_memory,
    check_scalars,
    from_scratch,
    scratch_of,
)
from posenc_jax.attention.kernels.visits import Visits
from posenc_jax.base import targets


@dataclasses.dataclass(frozen=True)
class Fold:
    """What a program instance computes from the blocks that it visits, one after the other.

    Attributes:
      start: (arrays of the encoding, own block) -> the first state.
      step: (arrays of the encoding, own block, the other block, state) -> the next state. If there
        are arrays for every visit, their `Pair` follows.
      end: (arrays of the encoding, own block, the last state) -> the results.
      back: the visits are in the opposite order.
      full: `step` of the last visits, whose tiles are full, and may be uniform; None if visits are
        not told apart.
      again: the last state of a query head -> the first one of the next head of its group, and the
        results are written behind each head; None if that is the same state.
    """

    start: Callable
    step: Callable
    end: Callable
    back: bool = False
    full: Callable | None = None
    again: Callable | None = None


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
        operate = Operations(plan.target)
        counts = q.shape[0], q.shape[1], k.shape[1]
        heads = Heads(*counts, operate.room, operate.held, operate.hold)
        pair = lambda arrays, size: [OfTokens.of(a, 'pair', size, heads) for a in arrays]
        return cls(
            plan,
            heads,
            (of_encoding(params, heads), of_encoding(constants, heads)),
            (*pair((q, *rows), plan.q.size), of_tokens(tq, plan.q.size, heads, queries=True)),
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
        group: int = 1,
    ) -> list:
        """Runs a kernel. Returns the arrays of `results` and of `found`.

        Args:
          visits: (order, count, masked) of the blocks of `others` that each own block meets, [#B,
            blocks, others] and [#B, blocks].
          fixed: arrays of the encoding; a program instance gets those of its head.
          own, others: arrays of tokens; an instance has one block of its own, and visits others.
          fold: what is computed.
          results: (leaf, dtype) for each result, which has the shape of a gradient of the leaf.
          known: arrays that a kernel of queries reads at every visit.
          found: arrays that a kernel of queries writes at every visit.
          group: how many query heads an instance goes through. The results for a leaf without an
            entry for each of them are sums over them.
        """
        on_grid = targets.of_tpu(self.plan.target)
        tables = [a.reshape(-1).astype(jnp.int32) for a in visits]
        which = Visits(*visits[0].shape, back=fold.back)
        trees = fixed, own, others, list(known)
        place = which.block_of_step if on_grid else None
        state = jax.eval_shape(fold.start, held(fixed), held(own)) if on_grid else None
        leaves = [leaf for leaf, _ in results]
        instance = _Instance(trees, fold, which, leaves, len(found), state, group)
        given = [leaf.array for leaf in jax.tree.leaves(trees)]
        specs = [
            *(leaf.spec() for leaf in jax.tree.leaves(fixed)),
            *(leaf.spec(lambda b, i, *_: i) for leaf in jax.tree.leaves(own)),
            *(leaf.spec(place) for leaf in jax.tree.leaves(others)),
            *(leaf.written(place)[1] for leaf in known),
        ]
        shapes = [leaf.sums(which.own, group) for leaf in leaves]
        shapes += [leaf.written(place) for leaf in found]
        dtypes = [dtype for _, dtype in results] + [leaf.dtype for leaf in found]
        outputs = [spec for _, spec in shapes]
        size = self.heads.rows, self.heads.queries // group, which.own
        if group > 1:
            part = lambda spec, leaf: of_group(spec, leaf.of_heads, group, on_grid)
            specs = [*map(part, specs, jax.tree.leaves(trees))]
            outputs = [*map(part, outputs, leaves)]
        if on_grid:
            kernel, scratch = instance.step, instance.scratch
            tile = jax.ShapeDtypeStruct((self.plan.q.size, self.plan.k.size), jnp.float32)
            dtypes_read = [a.dtype for a in given]
            check_memory([*specs, *outputs], [*dtypes_read, *dtypes], [*scratch, tile])
            check_scalars(which, tables)
            steps = jnp.maximum(visits[1].max(), 1)
            heads = (group,) if group > 1 else ()
            options = _on_grid((*size, *heads, steps), specs, outputs, scratch, self.plan.target)
        else:
            kernel = instance.loop
            numbers = [pl.BlockSpec(a.shape, lambda *_: (0,)) for a in tables]
            options = _in_a_loop(size, [*numbers, *specs], outputs, self.plan)
        return pl.pallas_call(
            kernel,
            name=name,
            out_shape=[jax.ShapeDtypeStruct(shape, d) for (shape, _), d in zip(shapes, dtypes)],
            **options,
        )(*tables, *given)


class _Refs(NamedTuple):
    """The references that a kernel gets, behind those to the tables of visits."""

    fixed: list
    own: list
    others: list
    known: list
    results: list
    found: list
    state: list
    turned: list


class _Instance:
    """What a program instance does.

    Args:
      trees: arrays of the encoding, own arrays, those of the others, and those of every visit.
      fold, visits: see `Call.run`.
      results: the leaves whose gradients the results are, or that look like them.
      found: how many arrays are written at every visit.
      state: shapes and dtypes of what is kept between visits that are steps of the grid.
      group: how many query heads it goes through.
    """

    def __init__(self, trees, fold: Fold, visits: Visits, results, found: int, state, group: int):
        self._fixed, self._own, self._others, self._known = trees
        self._fold, self._visits, self._group = fold, visits, group
        self._like, self._structure = jax.tree.flatten(state)
        self._leaves = [*map(jax.tree.leaves, trees), results]
        leaves = jax.tree.leaves(self._own)
        on_grid = state is not None
        self._turned = [n for n, leaf in enumerate(leaves) if on_grid and leaf.turned]
        self._sizes = [*map(len, self._leaves), found, len(self._like), len(self._turned)]
        # Own numbers of queries are turned at the first step, and kept with the state.
        self.scratch = scratch_of([*self._like, *(leaves[n].held for n in self._turned)])

    def loop(self, order, count, masked, *refs) -> None:
        """A kernel that has all blocks of the others, and all query heads of its group. Full tiles
        have a loop of their own.
        """
        refs, b, i = self._parts(refs), pl.program_id(0), pl.program_id(2)
        fold = self._fold

        def of_head(refs, state=None):
            given, total = self._given(refs), self._visits.total(b, i, count)

            def meet(step, visit, state):
                block = self._visits.block(b, i, visit, order, count)
                return self._meet(step, given, refs, state, block)

            state, first = fold.start(*given) if state is None else state, total
            if fold.full is not None:
                first = self._visits.masked(b, i, masked)
            state = jax.lax.fori_loop(0, first, functools.partial(meet, fold.step), state)
            if fold.full is not None:
                state = jax.lax.fori_loop(first, total, functools.partial(meet, fold.full), state)
            return given, state

        def of_number(head, state):
            own = self._of_head(refs, head)
            given, state = of_head(own, state)
            if fold.again is None:
                return state
            self._end(given, own, state)
            return fold.again(state)

        if self._group == 1:
            given, state = of_head(refs)
        else:
            given = self._given(self._of_head(refs, 0))
            state = jax.lax.fori_loop(0, self._group, of_number, fold.start(*given))
        # A result that is written in a loop costs registers.
        if fold.again is None:
            self._end(given, refs, state)

    def step(self, order, count, masked, *refs) -> None:
        """A kernel that has the block of one visit. The last steps of the grid may have none. Full
        tiles have a program of their own.
        """
        refs, of_steps = self._parts(refs), 3 if self._group == 1 else 4
        b, i, step = (pl.program_id(axis) for axis in (0, 2, of_steps))
        begins = step == 0
        if self._group > 1:
            begins &= pl.program_id(3) == 0

        def state():
            found = [from_scratch(ref, like) for ref, like in zip(refs.state, self._like)]
            return self._structure.unflatten(found)

        def keep(state):
            for ref, like, a in zip(refs.state, self._like, jax.tree.leaves(state), strict=True):
                if (a.shape, a.dtype) != (like.shape, like.dtype):
                    raise TypeError(f'the state of a kernel was {like} and becomes {a}')
                ref[...] = without_booleans(a).reshape(ref.shape)

        @pl.when(begins)
        def _():
            own = jax.tree.leaves(read(self._own, refs.own))
            for ref, n in zip(refs.turned, self._turned):
                ref[...] = without_booleans(own[n].array)
            keep(self._fold.start(*self._given(refs)))

        def meet(fold_step):
            keep(self._meet(fold_step, self._given(refs), refs, state()))

        total = first = self._visits.total(b, i, count)
        if self._fold.full is not None:
            first = self._visits.masked(b, i, masked)
            full = (step >= first) & (step < total)
            pl.when(full)(functools.partial(meet, self._fold.full))
        pl.when(step < first)(functools.partial(meet, self._fold.step))

        ends = step == pl.num_programs(of_steps) - 1
        if self._group > 1 and self._fold.again is None:
            ends &= pl.program_id(3) == self._group - 1

        @pl.when(ends)
        def _():
            self._end(self._given(refs), refs, state())
            if self._fold.again is not None:
                keep(self._fold.again(state()))

    def _parts(self, refs) -> _Refs:
        refs = iter(refs)
        return _Refs(*([next(refs) for _ in range(size)] for size in self._sizes))

    def _of_head(self, refs: _Refs, head) -> _Refs:
        """The references of a query head, from those of its group."""
        part = lambda leaf, ref: OfHead(ref, leaf.of_heads, head) if leaf.of_heads else ref
        parts = [[*map(part, *pair)] for pair in zip(self._leaves, refs)]
        return _Refs(*parts, *refs[len(parts) :])

    def _given(self, refs: _Refs):
        own, structure = jax.tree.flatten(read(self._own, refs.own))
        leaves = jax.tree.leaves(self._own)
        for ref, n in zip(refs.turned, self._turned):
            own[n] = dataclasses.replace(own[n], array=from_scratch(ref, leaves[n].held))
        return read(self._fixed, refs.fixed), structure.unflatten(own)

    def _meet(self, step, given, refs: _Refs, state, number=None):
        pair = Pair(number, (self._known, refs.known), refs.found)
        more = (pair,) if refs.known or refs.found else ()
        return step(*given, read(self._others, refs.others, number), state, *more)

    def _end(self, given, refs: _Refs, state):
        values = jax.tree.leaves(self._fold.end(*given, state))
        for ref, value in zip(refs.results, values, strict=True):
            ref[...] = release(value, ref.shape).astype(ref.dtype)


class Pair:
    """The entries of arrays for a visit: those of the own queries and of the block of keys.

    Args:
      number: of the block of keys, where the references have all of them; None where they have one.
      known: arrays that are read, and references to them.
      found: references to arrays that are written.
    """

    def __init__(self, number, known, found):
        self._number, self._known, self._found = number, known, found

    def known(self) -> list:
        return [leaf.at(ref, self._number) for leaf, ref in zip(*self._known)]

    def write(self, arrays) -> None:
        for ref, a in zip(self._found, arrays, strict=True):
            if self._number is None:
                ref[...] = release(a, ref.shape)
            else:
                ref[self._number] = release(a, ref.shape[1:])


def _in_a_loop(grid, in_specs, out_specs, plan) -> dict:
    """Options of `pallas_call` for a kernel that loops over its visits."""
    options = dict(grid=grid, in_specs=in_specs, out_specs=out_specs)
    if plan.target in targets.INTERPRETED:
        return options | dict(interpret=True)
    from jax.experimental.pallas import triton

    # With four warps a larger tile would have more numbers than registers.
    warps = 4 if plan.q.size * plan.k.size <= math.prod(GPU_TILES[0]) else 8
    return options | dict(compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2))


def _on_grid(grid, in_specs, out_specs, scratch, target: str) -> dict:
    """The same for a kernel whose visits are steps of the grid."""
    from jax.experimental.pallas import tpu

    return dict(
        grid_spec=tpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[tpu.VMEM(a.shape, a.dtype) for a in scratch],
        ),
        compiler_params=tpu.CompilerParams(
            dimension_semantics=('parallel',) * 3 + ('arbitrary',) * (len(grid) - 3)
        ),
        interpret=target in targets.INTERPRETED,
    )
