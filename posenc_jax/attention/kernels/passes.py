"""Attention as Pallas kernels, whose tile is the one that the doors of the pair stage see.

A program instance has one row of the batch, one query head and one block of queries. It meets the
blocks of keys from near to far, as `sweep.advance` does, and computes each of them by the same
function. An encoding is cut to the head by the rules of `layer/sharding.py`, so its doors see tiles
[1, 1, T, S]; what is a constant inside them becomes an input (`attention/kernels/program.py`).

The backward pass is two kernels. One has a block of queries and sums the gradients of the queries,
of the float leaves of their tokens, and of parameters. One has a key head and a block of keys, goes
through the query heads of its group, and sums the gradients of keys, values and the leaves of their
tokens. Both recompute tiles by `sweep.pull_tile`. An encoding with a carry has one kernel more in
front, which keeps the carry before every tile. The kernel of queries goes from far to near and
keeps the gradient of the carry behind every tile, so that the kernel of keys has both.

Inputs are copied to a layout with heads first.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.attention import blocked
from posenc_jax.attention.kernels.arrays import OfPairs, OfTokens, examples
from posenc_jax.attention.kernels.call import Call, Fold
from posenc_jax.attention.kernels.groups import anew
from posenc_jax.attention.kernels.program import Program
from posenc_jax.attention.kernels.sizes import NoKernelError
from posenc_jax.attention.kernels.visits import plan_apart, visits_of_keys, visits_of_queries
from posenc_jax.attention.sweep import (
    Rows,
    add,
    advance,
    begin,
    begin_carry,
    finish,
    gradients,
    partition,
    pull_tile,
)
from posenc_jax.attention.tiles import OneBlock, pair_logits
from posenc_jax.protocol.capabilities import first_carry


def forward(plan, params, constants, q, k, v, tq, tk):
    """The result in the layout of `q`, and the log-sum-exp of each row, [B, N, T].

    Args:
      plan: as for the blocked form.
      params, constants: the variables of the encoding.
      q, k, v, tq, tk: as for `attend`, padded to whole blocks.
    """
    if plan.hopper:
        from posenc_jax.attention.kernels import hopper  # which imports the library of Mosaic

        return hopper.forward(plan, params, constants, q, k, v, tq, tk)
    out, lse = _sweep(plan, params, constants, q, k, v, tq, tk)
    return plan.q.swap(out), lse


attention = jax.custom_vjp(forward, nondiff_argnums=(0,))


def _fwd(plan, *arrays):
    results = forward(plan, *arrays)
    return results, (*arrays, *results)


def _bwd(plan, residuals, cotangents):
    params, constants, q, k, _, tq, *_ = residuals
    kept = _keeps_carries(plan, params, constants, q, k, tq)
    return (backward if kept else blocked.backward)(plan, residuals, cotangents)


attention.defvjp(_fwd, _bwd)


def advance_all(plan, params, constants, q, k, v, tq, tk, state):
    """The state of all queries after these keys, as `sweep.advance` gives it for a block."""
    found = _sweep(plan, params, constants, q, k, v, tq, tk, state)
    return jax.tree.unflatten(jax.tree.structure(state), found)


def _sweep(plan, params, constants, q, k, v, tq, tk, state=None) -> list:
    """The arrays of the state after these keys, from the state before them. Without a state these
    are all keys, and the arrays are the result and the log-sum-exp. All are heads first.
    """
    if plan.varying:
        raise NoKernelError('needs check_vma=False inside jax.shard_map', 'give it')
    before, structure = jax.tree.flatten(state)
    call = Call.of(plan, params, constants, q, k, v, tq, tk, *before)
    width, tile = v.shape[-1], dataclasses.replace(plan, k=OneBlock(plan.k.size, plan.k.axis))

    def start(variables, queries):
        q, *before, tq = queries
        if before:
            return structure.unflatten(before)
        return begin(plan.encoding(*variables), q, tq, width)

    def meet(tile, variables, queries, keys, state):
        (q, *_, tq), (k, v, tk) = queries, keys
        encoding = plan.encoding(*variables)
        return advance(tile, encoding, q, k, v, tile.placed(tq), tile.placed(tk), state)

    encoding = plan.encoding(params, constants)
    variables, queries, keys = (examples(tree) for tree in (call.encoding, call.queries, call.keys))
    try:
        begun = Program(plan.target, start, variables, queries)
        carries = bool(jax.tree.leaves(begun.result[-1]))
        apart = None if carries else _apart(tile, encoding, tq, tk, variables, queries, keys)
        tiles = [tile] if apart is None else [tile, apart]
        shown = variables, queries, keys, begun.result
        met = [Program(plan.target, functools.partial(meet, tile), *shown) for tile in tiles]
        ended = Program(plan.target, lambda state: state if before else finish(state), begun.result)
    except NoKernelError as error:
        raise NoKernelError(f'{error.reason}, as {encoding} does') from error
    except (TypeError, ZeroDivisionError) as error:
        raise NoKernelError(
            f'gives a door one head at a time, which {encoding} does not take'
        ) from error

    def first(fixed, own):
        variables, (of_begun, *_) = fixed
        return begun(of_begun, variables, own)

    def step(number):
        def run(fixed, own, keys, state):
            variables, (_, *of_met) = fixed
            return met[number](of_met[number], variables, own, keys, state)

        return run

    end = lambda fixed, own, state: ended(ended.constants, state)
    fold = Fold(first, step(0), end, full=None if apart is None else step(1))
    of_row = lambda *rest: OfTokens(None, rest, 'pair', plan.q.size, jnp.float32, call.heads)
    results = [(of_row(width), v.dtype), (of_row(), jnp.float32)]
    if before:
        results = [(of_row(*a.shape[3:]), a.dtype) for a in before]
    found = call.run(
        'attention',
        # A ring with a carry has the backward pass of the blocked form, which recomputes the same
        # tiles.
        visits_of_queries(plan, encoding, tq, tk, carries, apart),
        (call.encoding, call.constants(begun, *met)),
        call.queries,
        call.keys,
        fold,
        results,
    )
    return [leaf.joined(a) for (leaf, _), a in zip(results, found)]


def _apart(plan, encoding, tq, tk, *shown) -> Any:
    """The plan of the tiles that have a loop of their own, or None. They are full, and also uniform
    where the encoding can say which tiles are. Beside a look-up that is a loop in every tile there
    is none: a mask is little work there, and a second loop would double a large kernel.
    """
    apart = plan_apart(plan, encoding, tq, tk)
    if apart is None or apart.uniform:
        return apart

    def tile(variables, queries, keys):
        (q, *_, tq), (k, v, tk) = queries, keys
        encoding = plan.encoding(*variables)
        return encoding.collect(pair_logits(encoding, q, k, tq, tk)[0], v, tq, tk)

    return None if Program(plan.target, tile, *shown).loops else apart


# A backward pass keeps carries of up to this many times the size of the queries.
_MOST_CARRIES = 8


def _keeps_carries(plan, params, constants, q, k, tq) -> bool:
    """Whether the carries of all tiles are few enough for `backward` to keep them."""
    carry = jax.eval_shape(
        lambda *variables: first_carry(plan.encoding(*variables), plan.q.swap(q), tq),
        params, constants,
    )  # fmt: skip
    blocks = k.shape[plan.k.axis] // plan.k.size
    return blocks * sum(a.size for a in jax.tree.leaves(carry)) <= _MOST_CARRIES * q.size


def backward(plan, residuals, cotangents):
    """The gradients as `blocked.backward` returns them."""
    return gradients(residuals, *pull(plan, residuals, cotangents))


def pull(plan, residuals, cotangents):
    """The gradients, in float32, of (params, k, v, float leaves of tk), of q, and of the float
    leaves of tq. In a ring, for encodings without a carry, these keys are only some; the result and
    the log-sum-exp are those of all keys, and the gradients are the share of these keys.
    """
    params, constants, q, k, v, tq, tk, out, lse = residuals
    d_out, d_lse = (a.astype(jnp.float32) for a in cotangents)
    delta = plan.q.swap(d_out * out).sum(-1) - d_lse
    call = Call.of(plan, params, constants, q, k, v, tq, tk, plan.q.swap(d_out), lse, delta)
    shown = [examples(tree) for tree in (call.encoding, call.queries, call.keys)]
    start = Program(plan.target, functools.partial(_start, plan), *shown[:2])
    has_carry = bool(jax.tree.leaves(start.result))
    encoding = plan.encoding(params, constants)
    apart = None if has_carry else _apart(plan, encoding, tq, tk, *shown)
    visits = visits_of_queries(plan, encoding, tq, tk, has_carry, apart)
    kernels = _Kernels(call, shown, start, visits, q.shape[plan.q.axis], apart)
    before = kernels.carries() if has_carry else []
    (d_params, d_q, d_tq), behind = kernels.of_queries(before)
    d_k, d_v, d_tk = kernels.of_keys(before, behind)
    return (d_params, plan.k.swap(d_k), plan.k.swap(d_v), d_tk), plan.q.swap(d_q), d_tq


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """The kernels of the backward pass.

    Attributes:
      call: the arrays.
      shown: what doors see of the encoding, the queries and the keys.
      start: the program of the first carry.
      visits: which blocks of keys every block of queries meets.
      length: how many queries there are.
      apart: the plan of the tiles that have a loop of their own, or None.
    """

    call: Call
    shown: list
    start: Program
    visits: Any
    length: int
    apart: Any

    def _program(self, function: Callable, *examples, plan=None) -> Program:
        plan = plan or self.call.plan
        return Program(plan.target, functools.partial(function, plan), *examples)

    def _tiles(self, function: Callable) -> list[Program]:
        """A function of a tile; and the same for the tiles that have a loop of their own."""
        carry = self.start.result
        plans = [self.call.plan] if self.apart is None else [self.call.plan, self.apart]
        return [self._program(function, *self.shown, carry, carry, plan=plan) for plan in plans]

    def _like_carry(self, arrays) -> Any:
        return jax.tree.structure(self.start.result).unflatten(arrays)

    def _pairs(self, arrays=None) -> list[OfPairs]:
        """The arrays of carries for all tiles, or how they look."""
        leaves = jax.tree.leaves(self.start.result)
        arrays = [None] * len(leaves) if arrays is None else arrays
        blocks, size = self.visits[0].shape[-1], self.call.plan.q.size
        return [
            OfPairs(
                a, leaf.shape[3:], 'pair', size, leaf.dtype, self.call.heads, blocks, self.length
            )
            for a, leaf in zip(arrays, leaves, strict=True)
        ]

    def carries(self) -> list:
        """The carry in front of every tile."""
        call, start, shown = self.call, self.start, self.shown
        enter = self._program(_enter, *shown, start.result)

        def first(fixed, own):
            variables, (of_start, _) = fixed
            return start(of_start, variables, own)

        def step(fixed, own, keys, carry, pair):
            variables, (_, of_enter) = fixed
            pair.write(jax.tree.leaves(carry))
            return enter(of_enter, variables, own, keys, carry)

        fold = Fold(first, step, lambda fixed, own, carry: ())
        fixed = call.encoding, call.constants(start, enter)
        return call.run(
            'attention_carries', self.visits, fixed, call.queries, call.keys, fold, (),
            found=self._pairs(),
        )  # fmt: skip

    def of_queries(self, before: list):
        """The gradients of parameters, of queries and of the float leaves of their tokens; and that
        of the carry behind every tile.
        """
        call, carry = self.call, self.start.result
        tiles = self._tiles(_tile_of_queries)
        leave = self._program(_leave, *self.shown[:2], carry)
        params = jax.tree.leaves(call.encoding[0])
        leaves = [*params, call.queries[0], *jax.tree.leaves(partition(call.queries[-1])[0])]
        structure = jax.tree.structure(leave.result)
        # Most parameters act before the pair stage, and their gradients here are zero.
        used = [a or b for a, b in zip(tiles[0].reads[: len(params)], leave.reads[: len(params)])]
        used += [True] * (len(leaves) - len(params))
        leave.keep(used)
        for tile in tiles:
            tile.keep(used + [True] * len(jax.tree.leaves(carry)))
        kept = sum(used)

        def step(number):
            def run(fixed, own, keys, state, *pair):
                variables, (_, *of_tiles) = fixed
                sums, d_carry = state
                now = [a for entries in pair for a in entries.known()]
                for entries in pair:
                    entries.write(jax.tree.leaves(d_carry))
                arrays = variables, own, keys, self._like_carry(now), d_carry
                found = tiles[number](of_tiles[number], *arrays)
                return add(sums, found[:kept]), self._like_carry(found[kept:])

            return run

        def end(fixed, own, state):
            variables, (of_leave, *_) = fixed
            sums, d_carry = state
            return add(sums, leave(of_leave, variables, own, d_carry)) if before else sums

        nothing = lambda *_: (leave.zeros(), self._like_carry(tiles[0].zeros()[kept:]))
        full = step(1) if self.apart else None
        fold = Fold(nothing, step(0), end, back=not self.apart, full=full)
        fixed = call.encoding, call.constants(leave, *tiles)
        found = call.run(
            'attention_backward_queries', self.visits, fixed, call.queries, call.keys, fold,
            [(leaf, jnp.float32) for leaf, use in zip(leaves, used) if use],
            known=self._pairs(before), found=self._pairs(),
        )  # fmt: skip
        sums = iter(found[:kept])
        grads = [
            leaf.gradient(next(sums)) if use else leaf.zero() for leaf, use in zip(leaves, used)
        ]
        return structure.unflatten(grads), found[kept:]

    def of_keys(self, before: list, behind: list):
        """The gradients of keys, of values and of the float leaves of their tokens."""
        call, tiles = self.call, self._tiles(_tile_of_keys)

        def step(number):
            def run(fixed, own, other, sums):
                variables, of_tiles = fixed
                queries, *carries = other
                arrays = variables, queries, own, *map(self._like_carry, carries)
                return add(sums, tiles[number](of_tiles[number], *arrays))

            return run

        full = step(1) if self.apart else None
        leaves = [*call.keys[:2], *jax.tree.leaves(partition(call.keys[-1])[0])]
        apart = call.heads.group > 1 and any(leaf.of_heads for leaf in leaves)
        again = functools.partial(anew, leaves) if apart else None
        end = lambda fixed, own, sums: sums
        fold = Fold(lambda *_: tiles[0].zeros(), step(0), end, full=full, again=again)
        sums = call.run(
            'attention_backward_keys', visits_of_keys(self.visits),
            (call.encoding, call.constants(*tiles)), call.keys,
            (call.queries, self._pairs(before), self._pairs(behind)), fold,
            [(leaf, jnp.float32) for leaf in leaves], group=call.heads.group,
        )  # fmt: skip
        grads = [leaf.gradient(a) for leaf, a in zip(leaves, sums)]
        return jax.tree.unflatten(jax.tree.structure(tiles[0].result), grads)


def _start(plan, variables, queries):
    """The first carry."""
    return first_carry(plan.encoding(*variables), queries[0], queries[-1])


def _enter(plan, variables, queries, keys, carry):
    """The carry behind a tile."""
    (q, *_, tq), (k, _, tk) = queries, keys
    return pair_logits(plan.encoding(*variables), q, k, tq, tk, carry)[1]


def _leave(plan, variables, queries, d_carry):
    """The gradients of parameters, of queries and of the float leaves of their tokens by the first
    carry.
    """
    (params, constants), (q, *_, tq) = variables, queries
    floats, others = partition(tq)
    first = functools.partial(begin_carry, plan, constants, others)
    return tuple(map(add, jax.vjp(first, params, q, floats)[1](d_carry)))


def _tile_of_queries(plan, *arrays):
    """The gradients of a tile by parameters, queries, the float leaves of their tokens, and the
    carry in front of it.
    """
    (h_params, g_q, _, h_tq, _, d_carry), (g_params, _, g_tq, _) = _tile(plan, *arrays)
    return add(g_params, h_params), add(g_q), add(g_tq, h_tq), d_carry


def _tile_of_keys(plan, *arrays):
    """The gradients of a tile by keys, values and the float leaves of their tokens."""
    (_, _, g_k, _, h_tk, _), (_, g_v, _, g_tk) = _tile(plan, *arrays)
    return add(g_k), add(g_v), add(g_tk, h_tk)


def _tile(plan, variables, queries, keys, carry, d_carry):
    (q, d_out, lse, delta, tq), (k, v, tk) = queries, keys
    tq, tk = plan.placed(tq), plan.placed(tk)
    rows, (params, constants) = Rows(q, *partition(tq), lse, d_out, delta), variables
    return pull_tile(plan, params, constants, rows, k, v, tk, carry, d_carry)
