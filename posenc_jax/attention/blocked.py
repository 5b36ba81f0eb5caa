"""The blocked form of attention: every block of queries is swept over the keys. Its backward pass
is written by hand and recomputes tiles, so memory is linear in the length.

Keys and values are transposed to heads first before the sweep, since many blocks of queries read
the same block of keys. The sums of their gradients are transposed behind it. The other arrays are
read in the layout of the caller, and only single blocks of them are transposed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from posenc_jax.attention.sweep import (
    Rows,
    add,
    advance,
    begin,
    begin_carry,
    finish,
    gradients,
    partition,
    retreat,
    zeros,
)


def forward(plan, params, constants, q, k, v, tq, tk):
    """The result in the layout of `q`, and the logarithm of each row's sum of exponentials, [B, N,
    T].

    Args:
      plan: how the arrays are cut.
      params, constants: the variables of the encoding.
      q, k, v, tq, tk: as for `attend`, padded to whole blocks.
    """
    encoding = plan.encoding(params, constants)
    batch, queries, heads, _ = q.shape
    k, v = plan.k.swap(k), plan.k.swap(v)
    plan = dataclasses.replace(plan, k=plan.k.heads_first)

    def q_block(i, results):
        q_i, tq_i = plan.q.read(q, i), plan.q.tokens(tq, i)
        begun = begin(encoding, q_i, tq_i, v.shape[-1])
        out, lse = finish(advance(plan, encoding, q_i, k, v, tq_i, tk, begun))
        outs, lses = results
        lses = jax.lax.dynamic_update_slice_in_dim(lses, lse, i * plan.q.size, 2)
        return plan.q.write(outs, out, i), lses

    buffers = (
        jnp.zeros((batch, queries, heads, v.shape[-1]), v.dtype),
        jnp.zeros((batch, heads, queries), jnp.float32),
    )
    return plan.loop(queries // plan.q.size, q_block, buffers)()


tiles = jax.custom_vjp(forward, nondiff_argnums=(0,))


def _fwd(plan, *arrays):
    results = forward(plan, *arrays)
    return results, (*arrays, *results)


def backward(plan, residuals, cotangents):
    """The gradients as a `jax.custom_vjp` returns them.

    Args:
      residuals: (params, constants, q, k, v, tq, tk, result, log-sum-exp).
      cotangents: of the result and of the log-sum-exp.
    """
    params, constants, q, k, v, tq, tk, out, lse = residuals
    given = plan.k_backward
    k, v = given.swap(k), given.swap(v)
    plan = dataclasses.replace(plan, k=given.heads_first)

    def q_block(i, grads):
        of_keys, d_q, d_tq = grads
        rows = Rows.read(plan, i, q, tq, out, lse, *cotangents)
        carry, pull_begin = jax.vjp(
            functools.partial(begin_carry, plan, constants, rows.others),
            *(params, rows.q, rows.floats),
        )
        d_carry = jax.tree.map(jnp.zeros_like, carry)
        (d_params, *d_keys), g_q, g_tq, d_carry = retreat(
            plan, params, constants, rows, k, v, tk, (carry, d_carry), of_keys
        )
        h_params, h_q, h_tq = pull_begin(d_carry)
        return (
            (add(d_params, h_params), *d_keys),
            plan.q.write(d_q, g_q + h_q, i),
            jax.tree.map(lambda d, g: plan.q.add_tokens(d, g, i), d_tq, add(g_tq, h_tq)),
        )

    grads = (params, k, v, partition(tk)[0]), q, partition(tq)[0]
    blocks = q.shape[1] // plan.q.size
    of_keys, d_q, d_tq = plan.loop(blocks, q_block, jax.tree.map(zeros, grads))()
    d_params, d_k, d_v, d_tk = of_keys
    return gradients(residuals, (d_params, given.swap(d_k), given.swap(d_v), d_tk), d_q, d_tq)


tiles.defvjp(_fwd, backward)
