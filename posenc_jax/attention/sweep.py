"""The sweep of one block of queries over blocks of keys, and its gradient.

A sweep can be interrupted: `advance` takes and returns its state, so the keys may come in several
arrays, one after the other, from near to far. `retreat` undoes one call of `advance`.
"""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.attention.tiles import pair_logits, sweep_order
from posenc_jax.base.meshes import vary
from posenc_jax.protocol.capabilities import first_carry
from posenc_jax.protocol.tokens import Tokens

# The logit of a masked key, and the initial running maximum. The latter is larger, so that a masked
# key has the weight exp(-huge) = 0 even in a row in which all keys are masked.
MASKED, LOWEST = -1e30, -1e29


def begin(encoding, q, tq, width: int):
    """The state of queries that have met no key: the running maximum of each row, the sum of its
    exponentials, its sum of values, and the carry. All arrays are [B, N, T, ...].
    """
    rows = q.shape[:3]
    return (
        jnp.full(rows, LOWEST, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros((*rows, width), jnp.float32),
        first_carry(encoding, q, tq),
    )


def advance(plan, encoding, q, k, v, tq, tk, state):
    """The state of a block of queries, heads first, behind all blocks of these keys."""
    order, length = sweep_order(plan, encoding, tq, tk)

    def k_block(step, state):
        high, total, out, carry = state
        j = order[step]
        tk_j = plan.k.tokens(tk, j)
        s, carry, seen = pair_logits(encoding, q, plan.k.read(k, j), tq, tk_j, carry, plan.full)
        new, w = _weigh(s, seen, high)
        shrink = jnp.exp(high - new)
        out = out * shrink[..., None] + encoding.collect(w, plan.k.read(v, j), tq, tk_j)
        return new, total * shrink + w.sum(-1), out, carry

    return plan.loop(length, _skipping(encoding, tq, k_block), state)()


def _skipping(encoding, tq, k_block):
    """`k_block`, which leaves its state as it is where no query needs keys beyond the carry."""
    if not encoding.opens('ended'):
        return k_block

    def skipping(step, state):
        ended = ended_queries(encoding, tq, state[-1]).all()
        return jax.lax.cond(ended, lambda step, state: state, k_block, step, state)

    return skipping


def ended_queries(encoding, tq, carry):
    """Which queries need no keys beyond the carry, [B, N, T]; padding needs none."""
    ended = encoding.ended(carry, tq)
    return ended if tq.valid is None else ended | ~tq.valid[:, None]


def finish(state):
    """The result, heads first, and the logarithm of each row's sum of exponentials."""
    high, total, out, _ = state
    total = jnp.where(total > 0, total, 1.0)
    return out / total[..., None], high + jnp.log(total)


def _weigh(s, seen, high):
    """The running maximum of each row after a tile of logits, and the weights of the tile relative
    to it.
    """

    def weigh(s, seen):
        new = jnp.maximum(high, s.max(-1))
        return new, jnp.exp(s - new[..., None])

    def masked(s, seen):
        return weigh(jnp.where(seen, s, MASKED), seen)

    # On CPU masking is an extra pass over the tile. Most tiles of a long sequence do not need it.
    return jax.lax.platform_dependent(
        s,
        seen,
        cpu=lambda s, seen: jax.lax.cond(seen.all(), weigh, masked, s, seen),
        default=masked,
    )


def zeros(tree):
    """Sums of gradients of a tree, at their start."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tree)


def add(*trees):
    """The sum of trees, in float32."""
    wide = lambda leaves: (leaf.astype(jnp.float32) for leaf in leaves)
    return jax.tree.map(lambda *leaves: functools.reduce(operator.add, wide(leaves)), *trees)


def partition(tok: Tokens) -> tuple[Tokens, Tokens]:
    """The float leaves, which have gradients, and the others; None marks a leaf that is missing."""
    is_float = jax.tree.map(lambda a: jnp.issubdtype(a.dtype, jnp.inexact), tok)
    pick = lambda wanted: jax.tree.map(
        lambda a, is_float: a if is_float == wanted else None, tok, is_float
    )
    return pick(True), pick(False)


def combine(floats: Tokens, others: Tokens) -> Tokens:
    """The tokens that `partition` took apart."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, floats, others, is_leaf=lambda a: a is None
    )


def begin_carry(plan, constants, others, params, q, floats):
    """The first carry of queries, as a function of all that has a gradient."""
    carry = first_carry(plan.encoding(params, constants), q, combine(floats, others))
    return vary(carry, plan.varying)


@dataclasses.dataclass(frozen=True)
class Rows:
    """A block of queries where gradients are computed, heads first.

    Attributes:
      q: the queries.
      floats, others: the leaves of their tokens, see `partition`.
      lse: the log-sum-exp of each row over all keys.
      d_out: the gradient of the result.
      delta: what the gradients of a row's weights have in common.
    """

    q: Any
    floats: Tokens
    others: Tokens
    lse: Any
    d_out: Any
    delta: Any

    @classmethod
    def read(cls, plan, i, q, tq, out, lse, d_out, d_lse) -> 'Rows':
        d_out_i = plan.q.read(d_out, i).astype(jnp.float32)
        lse_i, d_lse_i = (
            jax.lax.dynamic_slice_in_dim(a, i * plan.q.size, plan.q.size, 2) for a in (lse, d_lse)
        )
        delta = (d_out_i * plan.q.read(out, i)).sum(-1) - d_lse_i
        return cls(plan.q.read(q, i), *partition(plan.q.tokens(tq, i)), lse_i, d_out_i, delta)


def retreat(plan, params, constants, rows: Rows, k, v, tk, carries, grads):
    """The gradients of one `advance` of a block of queries.

    Args:
      carries: the carry in front of these keys, and the gradient of the carry behind them.
      grads: the sums so far of the gradients of (params, k, v, float leaves of tk).

    Returns:
      `grads` with those of this sweep, the gradients of the queries and of the float leaves of
      their tokens, and that of the carry in front.
    """
    encoding = plan.encoding(params, constants)
    carry, d_carry = carries
    tq = combine(rows.floats, rows.others)
    order, length = sweep_order(plan, encoding, tq, tk)

    # The carry at the start of each block of keys. Without a carry nothing is computed.
    def enter(step, loop):
        carry, stored = loop
        stored = jax.tree.map(lambda buffer, c: buffer.at[step].set(c), stored, carry)
        j = order[step]
        tk_j = plan.k.tokens(tk, j)
        _, carry, _ = pair_logits(encoding, rows.q, plan.k.read(k, j), tq, tk_j, carry)
        return carry, stored

    stored = jax.tree.map(lambda c: jnp.zeros((len(order), *c.shape), c.dtype), carry)
    if jax.tree.leaves(carry):
        _, stored = plan.loop(length, enter, (carry, stored))()

    def k_block(step, loop):
        (d_params, d_k, d_v, d_tk), d_q, d_tq, d_carry = loop
        step = length - 1 - step
        j = order[step]
        k_j, v_j, tk_j = plan.k.read(k, j), plan.k.read(v, j), plan.k.tokens(tk, j)
        entered = jax.tree.map(lambda buffer: buffer[step], stored)
        of_logits, of_sum = pull_tile(
            plan, params, constants, rows, k_j, v_j, tk_j, entered, d_carry
        )
        h_params, g_q, g_k, h_tq, h_tk, d_carry = of_logits
        g_params, g_v, g_tq, g_tk = of_sum
        grads = (
            add(d_params, g_params, h_params),
            plan.k.add(d_k, g_k, j),
            plan.k.add(d_v, g_v, j),
            jax.tree.map(lambda d, g: plan.k.add_tokens(d, g, j), d_tk, add(g_tk, h_tk)),
        )
        return grads, add(d_q, g_q), add(d_tq, g_tq, h_tq), d_carry

    return plan.loop(length, k_block, (grads, zeros(rows.q), zeros(rows.floats), d_carry))()


def pull_tile(plan, params, constants, rows: Rows, k, v, tk, carry, d_carry):
    """The gradients of one tile.

    Args:
      k, v, tk: one block of keys, heads first, and of values, and their tokens.
      carry, d_carry: the carry in front of the tile, and the gradient of the carry behind it.

    Returns:
      Two tuples. Through the logits, the gradients of (params, q, k, float leaves of tq, float
      leaves of tk, carry); through the sum of values, those of (params, v, float leaves of tq,
      float leaves of tk).
    """
    pull = functools.partial(_pull, plan, params, constants, rows, tk=tk)
    encoding, operands = plan.encoding(params, constants), (k, v, carry, d_carry)
    if not encoding.opens('ended'):
        return pull(*operands)

    def skip(*operands):
        like = lambda a: vary(jnp.zeros(a.shape, a.dtype), plan.varying)
        (*of_logits, _), of_sum = jax.tree.map(like, jax.eval_shape(pull, *operands))
        return (*of_logits, operands[-1]), of_sum

    ended = ended_queries(encoding, combine(rows.floats, rows.others), carry).all()
    return jax.lax.cond(ended, skip, pull, *operands)


def _pull(plan, params, constants, rows: Rows, k, v, carry, d_carry, tk):
    tk_floats, tk_others = partition(tk)

    def logits(params, q, k, tqf, tkf, carry):
        tq, tk = combine(tqf, rows.others), combine(tkf, tk_others)
        encoding = plan.encoding(params, constants)
        s, carry, seen = pair_logits(encoding, q, k, tq, tk, carry, plan.full)
        return (s, carry), seen

    def collect(params, w, v, tqf, tkf):
        tq, tk = combine(tqf, rows.others), combine(tkf, tk_others)
        return plan.encoding(params, constants).collect(w, v, tq, tk)

    (s, _), pull_logits, seen = jax.vjp(
        logits, params, rows.q, k, rows.floats, tk_floats, carry, has_aux=True
    )
    w = jnp.exp(jnp.where(seen, s, MASKED) - rows.lse[..., None])
    _, pull_collect = jax.vjp(collect, params, w, v, rows.floats, tk_floats)
    g_params, g_w, *of_sum = pull_collect(rows.d_out)
    of_logits = pull_logits((w * (g_w - rows.delta[..., None]), d_carry))
    return of_logits, (g_params, *of_sum)


def gradients(residuals, of_keys, d_q, d_tq):
    """The gradients as a `jax.custom_vjp` returns them: in the dtypes of its arguments (params,
    constants, q, k, v, tq, tk), with which `residuals` begin.
    """
    params, _, q, k, v, tq, tk, *_ = residuals
    d_params, d_k, d_v, d_tk = of_keys
    like = lambda grads, leaves: jax.tree.map(lambda g, a: g.astype(a.dtype), grads, leaves)
    return (
        like(d_params, params),
        None,  # the constants
        *like((d_q, d_k, d_v), (q, k, v)),
        like(d_tq, partition(tq)[0]),
        like(d_tk, partition(tk)[0]),
    )
