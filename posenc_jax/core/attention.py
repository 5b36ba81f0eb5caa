"""Softmax attention, written once, open at the doors of an `Encoding`.

Blocks of queries are mapped one after another; for each, blocks of keys are swept from near to far with an online
softmax, skipping blocks the mask cannot allow. The backward pass recomputes tiles, so memory is linear in the length for
every encoding, also those that carry something along the sweep: their carries are stored for one block of queries at a
time. 'dense' is the same code with one block.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.core.encoding import Encoding, Tokens, bounds
from posenc_jax.core.registry import check_choice

Implementation = Literal['dense', 'blocked']

# A float32 score tile above this leaves the cache of a CPU core (measured: 256 x 256 x 16 heads still pays).
_TILE_BYTES = 4 * 2**20
_MASKED = -1e30


def attend(
    encoding: Encoding,
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B S K H'],
    v: Float[Array, 'B S K H'],
    tq: Tokens,
    tk: Tokens,
    *,
    block: tuple[int, int] | int | None = None,
    implementation: Implementation | None = None,
    heads_first: bool = False,
) -> Float[Array, 'B T N H']:
    """Attention of projected queries over projected keys, with the pair-stage doors of `encoding`.

    Queries that see no key give zeros. Logits are float32; the result has the dtype of `v`.

    Args:
      encoding: opens `match`, `score`, `mask`, `collect`; `project` has already been applied.
      q, k, v: queries, keys, values; N must be a multiple of K.
      tq, tk: their tokens, ascending in `index`.
      block: queries and keys per tile; None chooses 256 or 128 by the number of heads and rows.
      implementation: 'dense' (one tile), 'blocked', or None for dense where a single tile is small.
      heads_first: k and v come as [B, K, S, H], the layout of the cache.

    Raises:
      ValueError: shapes that do not fit together, with the numbers.

    Example:
      >>> import jax, posenc_jax as pj
      >>> q = k = v = jax.random.normal(jax.random.key(0), (1, 8, 2, 4)); t = pj.Tokens.of(length=8)
      >>> pj.attend(pj.make('alibi()', heads=2, causal=True), q, k, v, t, t).shape
      (1, 8, 2, 4)
    """
    kv_axis, s_axis = (1, 2) if heads_first else (2, 1)
    (batch, queries, heads, width), keys, kv_heads = q.shape, k.shape[s_axis], k.shape[kv_axis]
    if v.shape[:-1] != k.shape[:-1] or k.shape[0] != batch or k.shape[-1] != width:
        raise ValueError(f'attend: shapes do not fit: q {q.shape}, k {k.shape}, v {v.shape} ({heads_first=})')
    if heads % kv_heads:
        raise ValueError(f'attend: {heads} query heads are not a multiple of {kv_heads} key heads')
    if tq.length != queries or tk.length != keys:
        raise ValueError(f'attend: tokens of length {tq.length}, {tk.length} for {queries} queries, {keys} keys')
    if implementation is not None:
        check_choice('implementation', implementation, ('dense', 'blocked'))
    dense_bytes = 4 * batch * heads * queries * keys
    if implementation == 'dense' or (implementation is None and block is None and dense_bytes <= _TILE_BYTES // 4):
        sizes = (queries, keys)
    elif block is None:
        side = 256 if 4 * batch * heads * 256 * 256 <= _TILE_BYTES else 128
        sizes = (side, side)
    else:
        sizes = (block, block) if isinstance(block, int) else tuple(block)
        if min(sizes) < 1:
            raise ValueError(f'attend: block sizes must be positive, got {block}')
    graphdef, state = nnx.split(encoding)
    plan = _Plan(graphdef, min(sizes[0], queries), min(sizes[1], keys))
    to_first = lambda a: a if heads_first else jnp.swapaxes(a, 1, 2)
    out = _attend(plan, state, jnp.swapaxes(q, 1, 2), to_first(k), to_first(v), tq, tk)
    return jnp.swapaxes(out, 1, 2)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is static: the structure of the encoding and the tile."""

    graphdef: Any
    block_q: int
    block_k: int


def _blocks(a, axis: int, size: int):
    """Cuts `axis` into blocks of `size`, zero padded at the end, and puts the block number first."""
    count = -(-a.shape[axis] // size)
    pad = count * size - a.shape[axis]
    if pad:
        a = jnp.pad(a, [(0, pad if i == axis else 0) for i in range(a.ndim)])
    a = a.reshape(*a.shape[:axis], count, size, *a.shape[axis + 1 :])
    return jnp.moveaxis(a, axis, 0)


def _unblocks(a, axis: int, length: int):
    """Inverse of `_blocks`."""
    a = jnp.moveaxis(a, 0, axis)
    a = a.reshape(*a.shape[:axis], -1, *a.shape[axis + 2 :])
    return jax.lax.slice_in_dim(a, 0, length, axis=axis)


def _block_tokens(tok: Tokens, size: int) -> Tokens:
    """Tokens cut into blocks; what fills the last block is not valid."""
    if tok.length % size and tok.valid is None:
        tok = dataclasses.replace(tok, valid=jnp.ones_like(tok.index, bool))
    return jax.tree.map(lambda a: _blocks(a, 1, size), tok)


def _floats(tree):
    """The differentiable leaves of a tree, and the function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    where = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def rebuild(floats):
        new = list(leaves)
        for i, leaf in zip(where, floats, strict=True):
            new[i] = leaf
        return jax.tree.unflatten(structure, new)

    return [leaves[i] for i in where], rebuild


def _cotangent(tree, floats):
    """A cotangent for `tree` with these float leaves; integer leaves get None's meaning, a float0 zero."""
    leaves, structure = jax.tree.flatten(tree)
    rest = iter(floats)
    return jax.tree.unflatten(
        structure,
        [
            next(rest).astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.inexact) else np.zeros(leaf.shape, jax.dtypes.float0)
            for leaf in leaves
        ],
    )


def _seen(encoding, tq, tk):
    seen = encoding.mask(tq, tk)
    if tk.valid is not None:
        valid = tk.valid[:, None, None, :]
        seen = valid if seen is None else seen & valid
    if seen is None:
        seen = jnp.ones((1, 1, tq.length, tk.length), bool)
    return seen


def _logits(encoding, q, k, tq, tk, carry):
    """One tile: masked float32 logits, the carry for the next block, and the mask."""
    seen = _seen(encoding, tq, tk)
    s, carry = encoding.match(q, k, tq, tk, seen, carry)
    s, carry = encoding.score(s, tq, tk, seen, carry)
    return jnp.where(seen, s, _MASKED), carry, seen


def _visible_order(encoding, tq, k_bounds, count):
    """Key blocks that may hold a visible key, from near to far, and how many they are."""
    visible = jax.vmap(lambda kb: jnp.asarray(encoding.may_see(bounds(tq), kb)) & (kb.index_low <= kb.index_high))(k_bounds)
    number = jnp.arange(count)
    return jnp.argsort(jnp.where(visible, -number, count)), visible.sum()


def _sweep(order, length, count, body, init):
    """`body(block number, step, carry)` over the visible key blocks; straight through when there is only one block."""
    if count == 1:
        return body(jnp.zeros((), jnp.int32), 0, init)
    return jax.lax.fori_loop(0, length, lambda i, c: body(order[i], i, c), init)


def _over_queries(body, init, xs, count):
    """`lax.scan`, without the loop when there is one block of queries."""
    if count > 1:
        return jax.lax.scan(body, init, xs)
    carry, out = body(init, jax.tree.map(lambda a: a[0], xs))
    return carry, jax.tree.map(lambda a: a[None], out)


def _forward(plan, state, q, k, v, tq, tk):
    encoding = nnx.merge(plan.graphdef, state)
    queries, keys = q.shape[2], k.shape[2]
    qs, ks, vs = _blocks(q, 2, plan.block_q), _blocks(k, 2, plan.block_k), _blocks(v, 2, plan.block_k)
    tqs, tks = _block_tokens(tq, plan.block_q), _block_tokens(tk, plan.block_k)
    n_q, n_k = qs.shape[0], ks.shape[0]
    k_bounds = jax.vmap(bounds)(tks)

    def one(_, block):
        q, tq = block
        order, length = _visible_order(encoding, tq, k_bounds, n_k)

        def body(number, step, state):
            high, total, out, carry = state
            k, v, tk = jax.tree.map(lambda a: a[number], (ks, vs, tks))
            s, carry, seen = _logits(encoding, q, k, tq, tk, carry)
            new = jnp.maximum(high, s.max(-1))
            w = jnp.where(seen, jnp.exp(s - new[..., None]), 0.0)
            shrink = jnp.exp(high - new)
            out = out * shrink[..., None] + encoding.collect(w, v, tq, tk)
            return new, total * shrink + w.sum(-1), out, carry

        rows = q.shape[:3]
        init = (
            jnp.full(rows, _MASKED, jnp.float32),
            jnp.zeros(rows, jnp.float32),
            jnp.zeros((*rows, v.shape[-1]), jnp.float32),
            encoding.open(q, tq),
        )
        high, total, out, _ = _sweep(order, length, n_k, body, init)
        safe = jnp.where(total > 0, total, 1.0)
        return None, ((out / safe[..., None]).astype(v.dtype), high + jnp.log(safe))

    _, (out, lse) = _over_queries(one, None, (qs, tqs), n_q)
    return _unblocks(out, 2, queries), _unblocks(lse, 2, queries)


def _attend_impl(plan, state, q, k, v, tq, tk):
    return _forward(plan, state, q, k, v, tq, tk)[0]


_attend = jax.custom_vjp(_attend_impl, nondiff_argnums=(0,))


def _attend_fwd(plan, state, q, k, v, tq, tk):
    out, lse = _forward(plan, state, q, k, v, tq, tk)
    return out, (state, q, k, v, tq, tk, out, lse)


def _attend_bwd(plan, residuals, d_out):
    state, q, k, v, tq, tk, out, lse = residuals
    queries, keys = q.shape[2], k.shape[2]
    qs, ks, vs = _blocks(q, 2, plan.block_q), _blocks(k, 2, plan.block_k), _blocks(v, 2, plan.block_k)
    tqs, tks = _block_tokens(tq, plan.block_q), _block_tokens(tk, plan.block_k)
    d_outs, lses = _blocks(d_out.astype(jnp.float32), 2, plan.block_q), _blocks(lse, 2, plan.block_q)
    deltas = _blocks((d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1), 2, plan.block_q)
    n_q, n_k = qs.shape[0], ks.shape[0]
    encoding = nnx.merge(plan.graphdef, state)
    state_floats, state_of = _floats(state)
    k_bounds = jax.vmap(bounds)(tks)
    tk_float_blocks, _ = _floats(tks)
    zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tree)
    add = lambda a, b: jax.tree.map(lambda x, y: x + y.astype(jnp.float32), a, b)

    def one(grads, block):
        q, tq, d_out, lse, delta = block
        tq_floats, tq_of = _floats(tq)
        order, length = _visible_order(encoding, tq, k_bounds, n_k)
        opened = lambda sf, q, tqf: nnx.merge(plan.graphdef, state_of(sf)).open(q, tq_of(tqf))
        carry0, open_vjp = jax.vjp(opened, state_floats, q, tq_floats)
        carries = jax.tree.leaves(carry0)

        def key_block(number):
            return jax.tree.map(lambda a: a[number], (ks, vs, tks))

        def logits(sf, q, k, tqf, tkf, carry, tk_of):
            s, carry, seen = _logits(nnx.merge(plan.graphdef, state_of(sf)), q, k, tq_of(tqf), tk_of(tkf), carry)
            return (s, carry), seen

        stored = None
        if carries:  # what each block of keys was entered with

            def record(number, step, loop):
                carry, stored = loop
                stored = jax.tree.map(lambda buffer, c: buffer.at[step].set(c), stored, carry)
                k, _, tk = key_block(number)
                return _logits(encoding, q, k, tq, tk, carry)[1], stored

            stored = jax.tree.map(lambda c: jnp.zeros((n_k, *c.shape), c.dtype), carry0)
            _, stored = _sweep(order, length, n_k, record, (carry0, stored))

        def body(step, loop):
            d_state, d_k, d_v, d_tk, d_q, d_tq, d_carry = loop
            number = order[step] if n_k > 1 else step
            k, v, tk = key_block(number)
            tk_floats, tk_of = _floats(tk)
            carry = carry0 if stored is None else jax.tree.map(lambda buffer: buffer[step], stored)
            (s, _), pull_logits, seen = jax.vjp(
                lambda *a: logits(*a, tk_of), state_floats, q, k, tq_floats, tk_floats, carry, has_aux=True
            )
            w = jnp.where(seen, jnp.exp(s - lse[..., None]), 0.0)
            collect = lambda sf, w, v, tqf, tkf: nnx.merge(plan.graphdef, state_of(sf)).collect(w, v, tq_of(tqf), tk_of(tkf))
            _, pull_collect = jax.vjp(collect, state_floats, w, v, tq_floats, tk_floats)
            g_state, g_w, g_v, g_tq, g_tk = pull_collect(d_out)
            g_s = w * (g_w - delta[..., None])
            h_state, g_q, g_k, h_tq, h_tk, d_carry = pull_logits((g_s, d_carry))
            at = lambda buffer, g: buffer.at[number].add(g.astype(jnp.float32))
            return (
                add(add(d_state, g_state), h_state),
                at(d_k, g_k),
                at(d_v, g_v),
                [at(at(buffer, a), b) for buffer, a, b in zip(d_tk, g_tk, h_tk)],
                add(d_q, g_q),
                add(add(d_tq, g_tq), h_tq),
                d_carry,
            )

        loop = (*grads, zeros(q), zeros(tq_floats), jax.tree.map(jnp.zeros_like, carry0))
        if n_k == 1:
            loop = body(0, loop)
        else:
            loop = jax.lax.fori_loop(0, length, lambda i, c: body(length - 1 - i, c), loop)
        d_state, d_k, d_v, d_tk, d_q, d_tq, d_carry = loop
        g_state, g_q, g_tq = open_vjp(d_carry)
        return (add(d_state, g_state), d_k, d_v, d_tk), (add(d_q, g_q), add(d_tq, g_tq))

    grads, (d_q, d_tq) = _over_queries(
        one, (zeros(state_floats), zeros(ks), zeros(vs), zeros(tk_float_blocks)), (qs, tqs, d_outs, lses, deltas), n_q
    )
    d_state, d_k, d_v, d_tk = grads
    return (
        _cotangent(state, d_state),
        _unblocks(d_q, 2, queries).astype(q.dtype),
        _unblocks(d_k, 2, keys).astype(k.dtype),
        _unblocks(d_v, 2, keys).astype(v.dtype),
        _cotangent(tq, [_unblocks(g, 1, queries) for g in d_tq]),
        _cotangent(tk, [_unblocks(g, 1, keys) for g in d_tk]),
    )


_attend.defvjp(_attend_fwd, _attend_bwd)
