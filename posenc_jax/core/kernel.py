"""Attention as Pallas kernels, whose tile is the one that the doors of the pair stage see.

A program instance has one row of the batch, one query head and one block of queries. It meets the
blocks of keys from near to far, as `sweep.advance` does, and computes each of them by the same
function. An encoding is cut to the head by the rules of `model/sharding.py`, so its doors see tiles
[1, 1, T, S]; what is a constant inside them becomes an input (`core/program.py`).

The backward pass is two kernels. One has a block of queries and sums the gradients of the queries,
of the float leaves of their tokens, and of parameters. One has a block of keys and sums the
gradients of keys, values and the leaves of their tokens. Both recompute tiles by `sweep.pull_tile`.
An encoding with a carry takes the backward pass of the blocked form.

Inputs are copied to a layout with heads first.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from posenc_jax.core import targets
from posenc_jax.core.kernel_arrays import (
    Heads,
    OfEncoding,
    OfTokens,
    examples,
    of_encoding,
    of_tokens,
    read,
)
from posenc_jax.core.kernel_operations import Operations
from posenc_jax.core.kernel_padding import powers
from posenc_jax.core.program import Program
from posenc_jax.core.sweep import Rows, add, advance, begin, finish, gradients, partition, pull_tile
from posenc_jax.core.tiles import OneBlock, sweep_order
from posenc_jax.core.tokens import Tokens

_USE_BLOCKED = "use implementation='blocked'"


def target() -> str:
    """What kernels are made for.

    Raises:
      ValueError: the platform has no kernel.
    """
    platform = targets.platform()
    if platform == 'shapes':
        return 'interpreter'  # the shapes are the same everywhere
    if platform not in ('interpreter', 'cuda', 'tpu'):
        raise ValueError(
            f"attend: implementation='kernel' does not run on {platform}; {_USE_BLOCKED}"
        )
    return platform


def sizes(target: str, widths, queries: int, keys: int, block=None) -> tuple[int, int]:
    """Queries and keys per tile.

    Args:
      target: what the kernel is made for.
      widths: of a head, and of its values.
      queries, keys: how many there are.
      block: the choice of the caller, or None.

    Raises:
      ValueError: a tile or a width that these kernels cannot take, or a length that is not known.
    """
    what = "attend: implementation='kernel'"
    if not all(isinstance(n, int) for n in (queries, keys)):
        raise ValueError(f'{what} needs known lengths, got {queries} and {keys}; {_USE_BLOCKED}')
    if target == 'interpreter':
        found, enough = map(powers, (block or (16, 16), (queries, keys)))
        return min(found[0], enough[0]), min(found[1], enough[1])
    # The matrix units of a GPU take 16 rows or more; those of a TPU read whole lanes.
    power = lambda n: n >= 16 and n & (n - 1) == 0
    if target == 'cuda':
        of_width = of_block = 'a power of two of at least 16', power
        least, usual = 16, 64
    else:
        of_width = 'a multiple of 8', lambda n: n % 8 == 0
        of_block = 'a multiple of 128', lambda n: n % 128 == 0
        least, usual = 128, 256
    for name, n in zip(('head width', 'width of values'), widths):
        if not of_width[1](n):
            raise ValueError(
                f'{what} needs a {name} that is {of_width[0]}, got {n}; {_USE_BLOCKED}'
            )
    for n in block or ():
        if not of_block[1](n):
            raise ValueError(
                f'{what} needs a block that is {of_block[0]}, got {n}; give such a block, or '
                f'{_USE_BLOCKED}'
            )
    enough = [max(least, n) for n in powers((queries, keys))]
    found = block or (usual, usual)
    return min(found[0], enough[0]), min(found[1], enough[1])


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
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
    def of(cls, plan, params, constants, q, k, v, tq, tk, *rows) -> '_Call':
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

    def run(self, name: str, visits, fixed, own, others, body: Callable, results) -> list:
        """Runs a kernel.

        Args:
          visits: (order, count) of the blocks of `others` that each own block meets, [#B, blocks,
            others] and [#B, blocks].
          fixed: arrays of the encoding; a program instance gets those of its head.
          own, others: arrays of tokens; an instance has one block of its own, and visits others.
          body: (fixed, own, fold) -> the values of `results`. `fold(step, state)` is the state
            behind all visits; a step takes a block of others and the state.
          results: (leaf, dtype) for each result, which has the shape of a gradient of the leaf.
        """
        order, count = visits
        rows, blocks, number = order.shape
        sizes = [len(jax.tree.leaves(tree)) for tree in (fixed, own, others)]
        leaves = jax.tree.leaves((fixed, own, others))
        shapes = [leaf.sums(blocks) for leaf, _ in results]

        def kernel(order, count, *refs):
            given, rest = refs[: sizes[0]], refs[sizes[0] :]
            mine, rest = rest[: sizes[1]], rest[sizes[1] :]
            met, written = rest[: sizes[2]], rest[sizes[2] :]
            start = pl.program_id(2) + (pl.program_id(0) * blocks if rows > 1 else 0)

            def fold(step, state):
                visit = lambda n, state: step(read(others, met, order[start * number + n]), state)
                return jax.lax.fori_loop(0, count[start], visit, state)

            values = jax.tree.leaves(body(read(fixed, given), read(own, mine), fold))
            for ref, value in zip(written, values, strict=True):
                ref[...] = value.reshape(ref.shape).astype(ref.dtype)

        tables = [a.reshape(-1).astype(jnp.int32) for a in visits]
        scalars, options = _options(self.plan.target)
        return pl.pallas_call(
            kernel,
            name=name,
            grid=(self.heads.rows, self.heads.queries, blocks),
            in_specs=[
                *(pl.BlockSpec(a.shape, lambda b, n, i: (0,), **scalars) for a in tables),
                *(leaf.spec(n < sizes[0] + sizes[1]) for n, leaf in enumerate(leaves)),
            ],
            out_specs=[spec for _, spec in shapes],
            out_shape=[
                jax.ShapeDtypeStruct(shape, dtype)
                for (shape, _), (_, dtype) in zip(shapes, results)
            ],
            **options,
        )(*tables, *(leaf.array for leaf in leaves))


def _options(target: str) -> tuple[dict, dict]:
    """Options of the inputs that are read as scalars, and options of `pallas_call`."""
    if target == 'cuda':
        from jax.experimental.pallas import triton

        return {}, dict(compiler_params=triton.CompilerParams(num_warps=4, num_stages=2))
    if target == 'tpu':
        from jax.experimental.pallas import tpu

        return dict(memory_space=tpu.SMEM), {}
    return {}, dict(interpret=True)


def _visits(plan, encoding, tq: Tokens, tk: Tokens, together: bool = False):
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


def _visits_of_keys(visits):
    """The same for every block of keys, which meets blocks of queries."""
    order, count = visits
    meets = jnp.swapaxes(jnp.argsort(order, -1) < count[..., None], 1, 2)
    return jnp.argsort(~meets, -1), meets.sum(-1)


def forward(plan, params, constants, q, k, v, tq, tk):
    """The result in the layout of `q`, and the log-sum-exp of each row, [B, N, T].

    Args:
      plan: as for the blocked form.
      params, constants: the variables of the encoding.
      q, k, v, tq, tk: as for `attend`, padded to whole blocks.
    """
    out, lse = _sweep(plan, params, constants, q, k, v, tq, tk)
    return plan.q.swap(out), lse


def advance_all(plan, params, constants, q, k, v, tq, tk, state):
    """The state of all queries after these keys, as `sweep.advance` gives it for a block."""
    found = _sweep(plan, params, constants, q, k, v, tq, tk, state)
    return jax.tree.unflatten(jax.tree.structure(state), found)


def _sweep(plan, params, constants, q, k, v, tq, tk, state=None) -> list:
    """The arrays of the state after these keys, from the state before them. Without a state these
    are all keys, and the arrays are the result and the log-sum-exp. All are heads first.
    """
    if plan.varying:
        raise ValueError(
            "attend: implementation='kernel' inside jax.shard_map needs check_vma=False; give it, "
            f'or {_USE_BLOCKED}'
        )
    before, structure = jax.tree.flatten(state)
    call = _Call.of(plan, params, constants, q, k, v, tq, tk, *before)
    width, tile = v.shape[-1], dataclasses.replace(plan, k=OneBlock(plan.k.size, plan.k.axis))

    def start(variables, queries):
        q, *before, tq = queries
        if before:
            return structure.unflatten(before)
        return begin(plan.encoding(*variables), q, tq, width)

    def meet(variables, queries, keys, state):
        (q, *_, tq), (k, v, tk) = queries, keys
        return advance(tile, plan.encoding(*variables), q, k, v, tq, tk, state)

    variables, queries, keys = (examples(tree) for tree in (call.encoding, call.queries, call.keys))
    try:
        begun = Program(plan.target, start, variables, queries)
        met = Program(plan.target, meet, variables, queries, keys, begun.result)
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"attend: implementation='kernel' gives a door one head at a time, which "
            f'{plan.encoding(params, constants)} does not take; {_USE_BLOCKED}'
        ) from error
    carries = bool(jax.tree.leaves(begun.result[-1]))

    def body(fixed, own, fold):
        variables, (of_begun, of_met) = fixed
        step = lambda keys, state: met(of_met, variables, own, keys, state)
        behind = fold(step, begun(of_begun, variables, own))
        return behind if before else finish(behind)

    of_row = lambda *rest: OfTokens(None, rest, 'pair', plan.q.size, jnp.float32, call.heads)
    results = [(of_row(width), v.dtype), (of_row(), jnp.float32)]
    if before:
        results = [(of_row(*a.shape[3:]), a.dtype) for a in before]
    found = call.run(
        'attention',
        # A carry has the backward pass of the blocked form, which recomputes the same tiles.
        _visits(plan, plan.encoding(params, constants), tq, tk, together=carries),
        (call.encoding, call.constants(begun, met)),
        call.queries,
        call.keys,
        body,
        results,
    )
    return [leaf.joined(a) for (leaf, _), a in zip(results, found)]


def has_carry(plan, params, constants, q, tq) -> bool:
    """Whether the encoding has a carry, so that the backward pass is that of the blocked form."""
    carry = jax.eval_shape(
        lambda *variables: plan.encoding(*variables).init_carry(plan.q.swap(q), tq),
        params, constants,
    )  # fmt: skip
    return bool(jax.tree.leaves(carry))


def backward(plan, residuals, cotangents):
    """The gradients as a `jax.custom_vjp` returns them, of an encoding without a carry.

    Args:
      plan: as for `forward`.
      residuals: (params, constants, q, k, v, tq, tk, result, log-sum-exp).
      cotangents: of the result and of the log-sum-exp.
    """
    return gradients(residuals, *pull(plan, residuals, cotangents))


def pull(plan, residuals, cotangents):
    """The gradients, in float32, of (params, k, v, float leaves of tk), of q, and of the float
    leaves of tq. In a ring these keys are only some; the result and the log-sum-exp are those of
    all keys, and the gradients are the share of these keys.
    """
    params, constants, q, k, v, tq, tk, out, lse = residuals
    d_out, d_lse = (a.astype(jnp.float32) for a in cotangents)
    delta = plan.q.swap(d_out * out).sum(-1) - d_lse
    arrays = params, constants, q, k, v, tq, tk
    call = _Call.of(plan, *arrays, plan.q.swap(d_out), lse, delta)
    float_leaves = lambda tree: jax.tree.leaves(partition(tree[-1])[0])

    def tile(variables, queries, keys):
        (q, d_out, lse, delta, tq), (k, v, tk) = queries, keys
        rows = Rows(q, *partition(tq), lse, d_out, delta)
        carry = plan.encoding(*variables).init_carry(q, tq)  # has no arrays
        params, constants = variables
        of_logits, of_sum = pull_tile(plan, params, constants, rows, k, v, tk, carry, carry)
        h_params, g_q, g_k, h_tq, h_tk, _ = of_logits
        g_params, g_v, g_tq, g_tk = of_sum
        of_queries = add(g_params, h_params), add(g_q), add(g_tq, h_tq)
        return of_queries, (add(g_k), add(g_v), add(g_tk, h_tk))

    shown = [examples(tree) for tree in (call.encoding, call.queries, call.keys)]
    visits = _visits(plan, plan.encoding(params, constants), tq, tk)

    def sums(name, side, visits, own, others, leaves):
        program = Program(plan.target, lambda *arrays: tile(*arrays)[side], *shown)
        structure = jax.tree.structure(program.result)
        # Most parameters act before the pair stage, and their gradients here are zero.
        used = [True] * len(leaves)
        if side == 0:
            count = len(jax.tree.leaves(params))
            used[:count] = program.reads[:count]
        program.keep(used)

        def body(fixed, own, fold):
            variables, (constants,) = fixed

            def step(other, sums):
                sides = (own, other) if side == 0 else (other, own)
                return add(sums, program(constants, variables, *sides))

            return fold(step, program.zeros())

        fixed = call.encoding, call.constants(program)
        results = [(leaf, jnp.float32) for leaf, use in zip(leaves, used) if use]
        found = iter(call.run(name, visits, fixed, own, others, body, results))
        return structure.unflatten(
            [leaf.gradient(next(found)) if use else leaf.zero() for leaf, use in zip(leaves, used)]
        )

    leaves = [*jax.tree.leaves(call.encoding[0]), call.queries[0], *float_leaves(call.queries)]
    d_params, d_q, d_tq = sums(
        'attention_backward_queries', 0, visits, call.queries, call.keys, leaves
    )
    leaves = [*call.keys[:2], *float_leaves(call.keys)]
    d_k, d_v, d_tk = sums(
        'attention_backward_keys', 1, _visits_of_keys(visits), call.keys, call.queries, leaves
    )
    of_keys = d_params, plan.k.swap(d_k), plan.k.swap(d_v), d_tk
    return of_keys, plan.q.swap(d_q), d_tq
