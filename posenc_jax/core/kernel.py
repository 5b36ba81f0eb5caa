"""Attention as Pallas kernels, whose tile is the one that the doors of the pair stage see.

A program instance has one row of the batch, one query head and one block of queries. It meets the
blocks of keys from near to far, as `sweep.advance` does, and computes each of them by the same
function. An encoding is cut to the head by the rules of `model/sharding.py`, so its doors see tiles
[1, 1, T, S]; what is a constant inside them becomes an input (`core/program.py`).

The backward pass is two kernels. One has a block of queries and sums the gradients of the queries,
of the float leaves of their tokens, and of parameters. One has a block of keys and sums the
gradients of keys, values and the leaves of their tokens. Both recompute tiles by `sweep.pull_tile`.
An encoding with a carry has one kernel more in front, which keeps the carry before every tile. The
kernel of queries goes from far to near and keeps the gradient of the carry behind every tile, so
that the kernel of keys has both.

Inputs are copied to a layout with heads first.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from posenc_jax.core.kernel_arrays import OfPairs, OfTokens, examples
from posenc_jax.core.kernel_call import Call, visits_of_keys, visits_of_queries
from posenc_jax.core.kernel_sizes import USE_BLOCKED
from posenc_jax.core.program import Program
from posenc_jax.core.sweep import (
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
from posenc_jax.core.tiles import OneBlock, pair_logits


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
            f'or {USE_BLOCKED}'
        )
    before, structure = jax.tree.flatten(state)
    call = Call.of(plan, params, constants, q, k, v, tq, tk, *before)
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
            f'{plan.encoding(params, constants)} does not take; {USE_BLOCKED}'
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
        # A ring with a carry has the backward pass of the blocked form, which recomputes the same
        # tiles.
        visits_of_queries(plan, plan.encoding(params, constants), tq, tk, together=carries),
        (call.encoding, call.constants(begun, met)),
        call.queries,
        call.keys,
        body,
        results,
    )
    return [leaf.joined(a) for (leaf, _), a in zip(results, found)]


# Times the size of the queries: what a backward pass may keep of carries.
_MOST_CARRIES = 8


def keeps_carries(plan, params, constants, q, k, tq) -> bool:
    """Whether the carries of all tiles are few enough for `backward` to keep them."""
    carry = jax.eval_shape(
        lambda *variables: plan.encoding(*variables).init_carry(plan.q.swap(q), tq),
        params, constants,
    )  # fmt: skip
    blocks = k.shape[plan.k.axis] // plan.k.size
    return blocks * sum(a.size for a in jax.tree.leaves(carry)) <= _MOST_CARRIES * q.size


def backward(plan, residuals, cotangents):
    """The gradients as a `jax.custom_vjp` returns them.

    Args:
      plan: as for `forward`.
      residuals: (params, constants, q, k, v, tq, tk, result, log-sum-exp).
      cotangents: of the result and of the log-sum-exp.
    """
    return gradients(residuals, *pull(plan, residuals, cotangents))


def pull(plan, residuals, cotangents):
    """The gradients, in float32, of (params, k, v, float leaves of tk), of q, and of the float
    leaves of tq. In a ring, for encodings without a carry, these keys are only some; the result and
    the log-sum-exp are those of all keys, and the gradients are the share of these keys.
    """
    params, constants, q, k, v, tq, tk, out, lse = residuals
    d_out, d_lse = (a.astype(jnp.float32) for a in cotangents)
    delta = plan.q.swap(d_out * out).sum(-1) - d_lse
    arrays = params, constants, q, k, v, tq, tk
    call = Call.of(plan, *arrays, plan.q.swap(d_out), lse, delta)
    shown = [examples(tree) for tree in (call.encoding, call.queries, call.keys)]
    start, enter, leave = (functools.partial(step, plan) for step in (_start, _enter, _leave))
    started = Program(plan.target, start, *shown[:2])
    carry = started.result
    entered = Program(plan.target, enter, *shown, carry)
    left = Program(plan.target, leave, *shown[:2], carry)
    tile = functools.partial(_tile, plan)
    of_queries, of_keys = (
        Program(plan.target, lambda *a, side=side: tile(*a)[side], *shown, carry, carry)
        for side in range(2)
    )
    has_carry = bool(jax.tree.leaves(carry))
    visits = visits_of_queries(plan, plan.encoding(params, constants), tq, tk, together=has_carry)
    pairs = lambda arrays=None: [
        OfPairs(
            None if arrays is None else arrays[n], a.shape[3:], 'pair', plan.q.size, a.dtype,
            call.heads, k.shape[plan.k.axis] // plan.k.size, q.shape[plan.q.axis]
        )
        for n, a in enumerate(jax.tree.leaves(carry))
    ]  # fmt: skip
    like_carry = jax.tree.structure(carry).unflatten

    # The carry in front of every tile.
    def keep(fixed, own, fold):
        variables, (of_start, of_enter) = fixed

        def step(keys, carry, pair):
            pair.write(jax.tree.leaves(carry))
            return entered(of_enter, variables, own, keys, carry)

        fold(step, started(of_start, variables, own))
        return ()

    before = []
    if has_carry:
        fixed = call.encoding, call.constants(started, entered)
        before = call.run(
            'attention_carries', visits, fixed, call.queries, call.keys, keep, (), found=pairs()
        )

    # The gradients of queries and parameters, and that of the carry behind every tile.
    leaves = [*jax.tree.leaves(call.encoding[0]), call.queries[0], *_floats(call.queries)]
    structure = jax.tree.structure(left.result)
    count = len(jax.tree.leaves(params))
    # Most parameters act before the pair stage, and their gradients here are zero.
    reads = [a or b for a, b in zip(of_queries.reads[:count], left.reads[:count])]
    used = reads + [True] * (len(leaves) - count)
    left.keep(used)
    of_queries.keep(used + [True] * len(jax.tree.leaves(carry)))
    kept = sum(used)

    def sum_queries(fixed, own, fold):
        variables, (of_tile, of_left) = fixed

        def step(keys, loop, *pair):
            sums, behind = loop
            now = like_carry(pair[0].known() if pair else [])
            if pair:
                pair[0].write(jax.tree.leaves(behind))
            found = of_queries(of_tile, variables, own, keys, now, behind)
            return add(sums, found[:kept]), like_carry(found[kept:])

        nothing = like_carry(of_queries.zeros()[kept:])
        sums, d_carry = fold(step, (left.zeros(), nothing), back=True)
        return add(sums, left(of_left, variables, own, d_carry)) if has_carry else sums

    fixed = call.encoding, call.constants(of_queries, left)
    results = [(leaf, jnp.float32) for leaf, use in zip(leaves, used) if use]
    found = call.run(
        'attention_backward_queries', visits, fixed, call.queries, call.keys, sum_queries, results,
        known=pairs(before) if has_carry else (), found=pairs(),
    )  # fmt: skip
    sums, behind = iter(found[:kept]), found[kept:]
    d_params, d_q, d_tq = structure.unflatten(
        [leaf.gradient(next(sums)) if use else leaf.zero() for leaf, use in zip(leaves, used)]
    )

    # The gradients of keys and values.
    leaves = [*call.keys[:2], *_floats(call.keys)]

    def sum_keys(fixed, own, fold):
        variables, (constants,) = fixed

        def step(other, sums):
            queries, *carries = other
            return add(sums, of_keys(constants, variables, queries, own, *map(like_carry, carries)))

        return fold(step, of_keys.zeros())

    fixed = call.encoding, call.constants(of_keys)
    others = (call.queries, pairs(before), pairs(behind)) if has_carry else (call.queries, [], [])
    sums = call.run(
        'attention_backward_keys', visits_of_keys(visits), fixed, call.keys, others, sum_keys,
        [(leaf, jnp.float32) for leaf in leaves],
    )  # fmt: skip
    found = [leaf.gradient(a) for leaf, a in zip(leaves, sums)]
    d_k, d_v, d_tk = jax.tree.unflatten(jax.tree.structure(of_keys.result), found)
    return (d_params, plan.k.swap(d_k), plan.k.swap(d_v), d_tk), plan.q.swap(d_q), d_tq


def _floats(queries_or_keys) -> list:
    return jax.tree.leaves(partition(queries_or_keys[-1])[0])


def _start(plan, variables, queries):
    """The first carry."""
    return plan.encoding(*variables).init_carry(queries[0], queries[-1])


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


def _tile(plan, variables, queries, keys, carry, d_carry):
    """The gradients of a tile on the side of the queries, with that of the carry in front of it,
    and on the side of the keys.
    """
    (q, d_out, lse, delta, tq), (k, v, tk) = queries, keys
    rows, (params, constants) = Rows(q, *partition(tq), lse, d_out, delta), variables
    of_logits, of_sum = pull_tile(plan, params, constants, rows, k, v, tk, carry, d_carry)
    h_params, g_q, g_k, h_tq, h_tk, d_carry = of_logits
    g_params, g_v, g_tq, g_tk = of_sum
    return (
        (add(g_params, h_params), add(g_q), add(g_tq, h_tq), d_carry),
        (add(g_k), add(g_v), add(g_tk, h_tk)),
    )
