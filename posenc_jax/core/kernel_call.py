"""A call of a Pallas kernel of attention: its grid, and what a program instance reads and writes.

A program instance has one row of the batch, one head and one block of its own, and visits blocks of
the other side.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from posenc_jax.core.kernel_arrays import (
    Heads,
    OfEncoding,
    OfPairs,
    OfTokens,
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
        body: Callable,
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
          body: (fixed, own, fold) -> the values of `results`. `fold(step, state)` is the state
            behind all visits. A step takes a block of others, the state and, if there are `known`
            or `found` ones, their `Pair`. With `back=True` the visits are in the opposite order.
          results: (leaf, dtype) for each result, which has the shape of a gradient of the leaf.
          known: arrays that a kernel of queries reads at every visit.
          found: arrays that a kernel of queries writes at every visit.
        """
        order, count = visits
        rows, blocks, number = order.shape
        trees = fixed, own, others, list(known)
        sizes = [len(jax.tree.leaves(tree)) for tree in trees]
        leaves = jax.tree.leaves(trees[:3])
        shapes = [leaf.sums(blocks) for leaf, _ in results] + [leaf.written() for leaf in found]
        dtypes = [dtype for _, dtype in results] + [leaf.dtype for leaf in found]

        def kernel(order, count, *refs):
            refs = iter(refs)
            given, mine, met, ready = ([next(refs) for _ in range(size)] for size in sizes)
            written = list(refs)
            start = pl.program_id(2) + (pl.program_id(0) * blocks if rows > 1 else 0)
            total = count[start]

            def fold(step, state, back=False):
                def visit(n, state):
                    other = order[start * number + (total - 1 - n if back else n)]
                    pair = Pair(other, (known, ready), (found, written[len(results) :]))
                    more = (pair,) if known or found else ()
                    return step(read(others, met, other), state, *more)

                return jax.lax.fori_loop(0, total, visit, state)

            values = jax.tree.leaves(body(read(fixed, given), read(own, mine), fold))
            for ref, value in zip(written[: len(results)], values, strict=True):
                ref[...] = value.reshape(ref.shape).astype(ref.dtype)

        specs = [
            *(leaf.spec(n < sizes[0] + sizes[1]) for n, leaf in enumerate(leaves)),
            *(leaf.written()[1] for leaf in known),
        ]
        dtypes_read = [leaf.array.dtype for leaf in (*leaves, *known)]
        if self.plan.target == 'tpu':
            _check_memory([*specs, *(spec for _, spec in shapes)], [*dtypes_read, *dtypes])
        tables = [a.reshape(-1).astype(jnp.int32) for a in visits]
        scalars, options = _options(self.plan.target)
        return pl.pallas_call(
            kernel,
            name=name,
            grid=(self.heads.rows, self.heads.queries, blocks),
            in_specs=[
                *(pl.BlockSpec(a.shape, lambda b, n, i: (0,), **scalars) for a in tables),
                *specs,
            ],
            out_specs=[spec for _, spec in shapes],
            out_shape=[
                jax.ShapeDtypeStruct(shape, dtype) for (shape, _), dtype in zip(shapes, dtypes)
            ],
            **options,
        )(*tables, *(leaf.array for leaf in (*leaves, *known)))


class Pair:
    """The entries of arrays for a visit: those of the own queries and of the block of keys."""

    def __init__(self, number, known, found):
        self._number, self._known, self._found = number, known, found

    def known(self) -> list:
        return [leaf.at(ref, self._number) for leaf, ref in zip(*self._known)]

    def write(self, arrays) -> None:
        for a, ref in zip(arrays, self._found[1], strict=True):
            ref[self._number] = a.reshape(ref.shape[1:])


def _check_memory(specs: Sequence[pl.BlockSpec], dtypes: Sequence[Any]) -> None:
    """Refuses parts of a program instance that the memory of a TPU core does not hold twice: the
    parts of the next instance come while one is computed.
    """
    needed = 0
    for spec, dtype in zip(specs, dtypes, strict=True):
        shape = [n for n in spec.block_shape or () if isinstance(n, int)]
        *front, rows, lanes = [1, 1, *shape]
        tile = -(-rows // 8) * 8 * -(-lanes // 128) * 128  # a TPU stores tiles of 8 x 128
        needed += 2 * math.prod(front) * tile * jnp.dtype(dtype).itemsize
    if needed > _TPU_BYTES:
        raise NoKernelError(
            f"attend: implementation='kernel' would need {readable(needed)} of the memory of a TPU "
            f'core, which has {readable(_TPU_BYTES)}, because it holds all keys of a head; cut the '
            f'sequence (mesh.sequence), or {USE_BLOCKED}'
        )


def _options(target: str) -> tuple[dict, dict]:
    """Options of the inputs that are read as scalars, and options of `pallas_call`."""
    if target == 'cuda':
        from jax.experimental.pallas import triton

        return {}, dict(compiler_params=triton.CompilerParams(num_warps=4, num_stages=2))
    if target == 'tpu':
        from jax.experimental.pallas import tpu

        return dict(memory_space=tpu.SMEM), {}
    return {}, dict(interpret=True)


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
