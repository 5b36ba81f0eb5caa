"""Softmax attention, written once, which an `Encoding` changes through its doors.

Queries are taken block by block. For each block of queries, the blocks of keys are swept from near
to far with an online softmax; blocks that the mask hides entirely are skipped. The backward pass
recomputes tiles, so memory is linear in the length. If an encoding has a carry, its carries are
stored for one block of queries at a time. 'dense' is the same code with a single block.

No whole input is copied: blocks are read from arrays in the layout of the caller, and gradients are
added to such arrays. Only single blocks are transposed to heads first.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from posenc_jax.core.arguments import check_arrays, check_doors, check_offset, missing_features
from posenc_jax.core.derivatives import by_jax, forward_mode_refused, reverse_mode_only
from posenc_jax.core.encoding import Encoding
from posenc_jax.core.meshes import explicit_spec, vary, varying_axes, with_auto_axes
from posenc_jax.core.registry import check_choice
from posenc_jax.core.tiles import Blocks, Plan, pair_logits, sweep_order
from posenc_jax.core.tokens import Tokens

Implementation = Literal['dense', 'blocked']
IMPLEMENTATIONS = get_args(Implementation)

# Sizes of float32 logits. Up to the first size all logits are one tile; beyond it, a tile has about
# the second size at most. Wide products save more time than cache misses cost
# (benchmarks/attention.py), and such a tile is small beside the keys of a long sequence.
_ONE_TILE_BYTES, _TILE_BYTES = 2**20, 2**25
# The logit of a masked key, and the initial running maximum. The latter is larger, so that a masked
# key has the weight exp(-huge) = 0 even in a row in which all keys are masked.
_MASKED, _LOWEST = -1e30, -1e29


def attend(
    encoding: Encoding,
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B S K H'],
    v: Float[Array, 'B S K V'],
    tq: Tokens,
    tk: Tokens,
    *,
    block: tuple[int, int] | int | None = None,
    implementation: Implementation | None = None,
    heads_first: bool = False,
    return_lse: bool = False,
    applied: Collection[str] = (),
) -> Any:
    """Attention of projected queries over projected keys, with the pair-stage doors of `encoding`.

    A query that sees no key gives zeros. Rows of queries that are not valid have no meaning and
    depend on the tiles. Logits are float32; the result has the dtype of `v`. Gradients reach `q`,
    `k`, `v`, the float leaves of the tokens and every `nnx.Param` of the encoding; its other
    variables are constants.

    Args:
      encoding: `attend` calls its doors of the pair stage, `match`, `score`, `mask` and `collect`.
      q, k, v: queries, keys, values; N must be a multiple of K.
      tq, tk: tokens of the queries and of the keys, ascending in `index`.
      block: queries and keys per tile, one number or a pair; None chooses by the input sizes.
      implementation: 'dense' (one tile), 'blocked', or None for one tile if it is small. If this,
        `block`, `heads_first` and `return_lse` have their defaults, the encoding's `fast_path` is
        tried first. Forward-mode derivatives exist for 'dense' alone.
      heads_first: k and v come as [B, K, S, H], the layout of the cache.
      return_lse: also returns the logarithm of each row's sum of exponentials. With it two
        attentions over different keys can be merged into one.
      applied: the doors of the token stage that the caller has called: 'place', 'embed', 'qkv',
        'project'. An encoding that opens one of the others is an error, since its effect would be
        missing.

    Returns:
      The result, [B, T, N, V]; with `return_lse` a pair of it and the log-sum-exp, [B, T, N] in
      float32, which is below -1e28 where a query sees no key.

    Raises:
      ValueError: shapes that do not fit together, with the numbers; a door that was skipped, or the
        feature of a token that it attaches; causal queries that are the last of a sequence but have
        the index of the first.

    Example:
      >>> import jax, posenc_jax as pj
      >>> q = k = v = jax.random.normal(jax.random.key(0), (1, 8, 2, 4))
      >>> t = pj.Tokens.of(length=8)
      >>> pj.attend(pj.make('alibi()', heads=2, causal=True), q, k, v, t, t).shape
      (1, 8, 2, 4)
    """
    options: dict[str, Any] = dict(
        block=block, implementation=implementation, heads_first=heads_first, return_lse=return_lse
    )
    kv_axis, s_axis = (1, 2) if heads_first else (2, 1)
    check_arrays(q, k, v, tq, tk, kv_axis, s_axis)
    # Blocks of tokens are no grids.
    tq, tk = (dataclasses.replace(tok, grid=None) for tok in (tq, tk))
    check_doors(encoding, applied)
    check_offset(encoding, tq, tk)
    if (spec := explicit_spec(q)) is not None:
        graphdef, state = nnx.split(encoding)
        return with_auto_axes(
            lambda state, *arrays: attend(
                nnx.merge(graphdef, state), *arrays, applied=applied, **options
            ),
            (spec, PartitionSpec(*spec[:3])) if return_lse else spec,
            *(state, q, k, v, tq, tk),
        )
    queries, keys = q.shape[1], k.shape[s_axis]
    sizes = _sizes(encoding, q.shape, keys, block, implementation)
    graphdef, params, constants = nnx.split(encoding, nnx.Param, ...)
    blocks = Blocks(sizes[0], 1), Blocks(sizes[1], s_axis), Blocks(sizes[-1], s_axis)
    arguments = params, constants, q, k, v, tq, tk
    plan = Plan(graphdef, *blocks, varying_axes(arguments))
    params, constants, *qkv, of_q, of_k = vary(arguments, plan.varying)

    def sweep() -> Any:
        arrays = (
            *(cut.pad(a) for cut, a in zip((plan.q, plan.k, plan.k), qkv)),
            *(plan.q.pad_tokens(of_q), plan.k.pad_tokens(of_k)),
        )
        # JAX itself differentiates the dense form, also in forward mode.
        run = _dense if implementation == 'dense' else _tiled
        result: Any = run(plan, params, constants, *arrays)
        out, lse = result[0][:, :queries], result[1]
        return (out, jnp.swapaxes(lse, 1, 2)[:, :queries]) if return_lse else out

    free = block is None and implementation is None and not heads_first and not return_lse
    with missing_features(encoding):
        if free and encoding.opens('fast_path'):
            whole = encoding.fast_path(q, k, v, tq, tk, causal=False, sweep=sweep)
            return sweep() if whole is None else whole
        return sweep()


def _sizes(encoding, shape, keys, block, implementation) -> tuple[int, ...]:
    """Queries per tile, keys per tile, and keys per tile of the backward pass."""
    batch, queries, heads, _ = shape
    if implementation is not None:
        check_choice('implementation', implementation, IMPLEMENTATIONS)
    if block is not None:
        sizes = (block, block) if isinstance(block, int) else tuple(block)
        if len(sizes) != 2 or not all(isinstance(n, int) and n >= 1 for n in sizes):
            raise ValueError(
                f'attend: block is one or two integers and must be positive, got {block!r}'
            )
    if implementation == 'dense' or not all(isinstance(n, int) for n in (batch, queries, keys)):
        return queries, keys, keys  # lengths may be symbolic, as in `jax.export`
    if block is None:
        carries, blocked = encoding.opens('init_carry'), implementation == 'blocked'
        sizes = _tile(batch * heads, queries, keys, carries, blocked)
    return min(sizes[0], queries), min(sizes[1], keys), min(sizes[-1], keys)


def _tile(rows: int, queries: int, keys: int, carries: bool, blocked: bool) -> tuple[int, int, int]:
    """Queries per tile, keys per tile, and keys per tile of the backward pass, for `rows` = batch x
    heads.
    """
    if queries == 1 and not carries and not blocked:
        # Decoding: logits are small beside the cache, which one tile reads without copying.
        return 1, keys, keys
    if 4 * rows * queries * keys <= _ONE_TILE_BYTES and not blocked:
        return queries, keys, keys
    # Short sequences gain more from skipping blocks than from wide products.
    side = 64 if keys <= 512 else 256
    while side > 64 and 4 * rows * 2 * side**2 > _TILE_BYTES:
        side //= 2
    # More queries make products wide, fewer keys let more tiles be skipped. A carry is stored for
    # every block of keys, so its tiles are square.
    if carries:
        return side, side, side
    # The backward pass holds several tiles at a time; the forward pass can afford wider ones.
    wide = 2 * side if keys >= 2048 and 4 * rows * (2 * side) ** 2 <= _TILE_BYTES // 2 else side
    return 2 * side, wide, side


def _weigh(s, seen, high):
    """The running maximum of each row after a tile of logits, and the weights of the tile relative
    to it.
    """

    def weigh(s, seen):
        new = jnp.maximum(high, s.max(-1))
        return new, jnp.exp(s - new[..., None])

    def masked(s, seen):
        return weigh(jnp.where(seen, s, _MASKED), seen)

    # On CPU masking is an extra pass over the tile. Most tiles of a long sequence do not need it.
    return jax.lax.platform_dependent(
        s,
        seen,
        cpu=lambda s, seen: jax.lax.cond(seen.all(), weigh, masked, s, seen),
        default=masked,
    )


def _forward(plan, params, constants, q, k, v, tq, tk):
    """The result in the layout of `q`, and the logarithm of each row's sum of exponentials, [B, N,
    T].
    """
    encoding = plan.encoding(params, constants)
    batch, queries, heads, _ = q.shape

    def q_block(i, results):
        q_i, tq_i = plan.q.read(q, i), plan.q.tokens(tq, i)
        order, length = sweep_order(plan, encoding, tq_i, tk)

        def k_block(step, state):
            high, total, out, carry = state
            j = order[step]
            tk_j = plan.k.tokens(tk, j)
            s, carry, seen = pair_logits(encoding, q_i, plan.k.read(k, j), tq_i, tk_j, carry)
            new, w = _weigh(s, seen, high)
            shrink = jnp.exp(high - new)
            out = out * shrink[..., None] + encoding.collect(w, plan.k.read(v, j), tq_i, tk_j)
            return new, total * shrink + w.sum(-1), out, carry

        rows = q_i.shape[:3]
        high, total, out, _ = plan.fold(
            length,
            k_block,
            (
                jnp.full(rows, _LOWEST, jnp.float32),
                jnp.zeros(rows, jnp.float32),
                jnp.zeros((*rows, v.shape[-1]), jnp.float32),
                encoding.init_carry(q_i, tq_i),
            ),
        )
        total = jnp.where(total > 0, total, 1.0)
        outs, lses = results
        lse = jax.lax.dynamic_update_slice_in_dim(lses, high + jnp.log(total), i * plan.q.size, 2)
        return plan.q.write(outs, out / total[..., None], i), lse

    buffers = (
        jnp.zeros((batch, queries, heads, v.shape[-1]), v.dtype),
        jnp.zeros((batch, heads, queries), jnp.float32),
    )
    return plan.fold(queries // plan.q.size, q_block, buffers)


def _dense(plan, params, constants, *arrays):
    with by_jax():
        return _forward(plan, params, jax.lax.stop_gradient(constants), *arrays)


def _tiled(plan, *arrays):
    with forward_mode_refused():
        return _attend_tiles(plan, *reverse_mode_only(arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_tiles(plan, params, constants, q, k, v, tq, tk):
    return _forward(plan, params, constants, q, k, v, tq, tk)


def _attend_fwd(plan, params, constants, q, k, v, tq, tk):
    out, lse = _forward(plan, params, constants, q, k, v, tq, tk)
    return (out, lse), (params, constants, q, k, v, tq, tk, out, lse)


def _zeros(tree):
    return jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), tree)


def _add(*trees):
    return jax.tree.map(lambda *leaves: sum(leaf.astype(jnp.float32) for leaf in leaves), *trees)


def _partition(tok: Tokens) -> tuple[Tokens, Tokens]:
    """The float leaves, which have gradients, and the others; None marks a leaf that is missing."""
    is_float = jax.tree.map(lambda a: jnp.issubdtype(a.dtype, jnp.inexact), tok)
    pick = lambda wanted: jax.tree.map(
        lambda a, is_float: a if is_float == wanted else None, tok, is_float
    )
    return pick(True), pick(False)


def _combine(floats: Tokens, others: Tokens) -> Tokens:
    return jax.tree.map(
        lambda a, b: b if a is None else a, floats, others, is_leaf=lambda a: a is None
    )


def _attend_bwd(plan, residuals, cotangents):
    d_out, d_lse = cotangents
    params, constants, q, k, v, tq, tk, out, lse = residuals
    plan = dataclasses.replace(plan, k=plan.k_backward)
    encoding = plan.encoding(params, constants)
    tk_floats = _partition(tk)[0]

    def q_block(i, grads):
        d_params, d_k, d_v, d_tk, d_q, d_tq = grads
        q_i, tq_i = plan.q.read(q, i), plan.q.tokens(tq, i)
        d_out_i = plan.q.read(d_out, i).astype(jnp.float32)
        lse_i, d_lse_i = (
            jax.lax.dynamic_slice_in_dim(a, i * plan.q.size, plan.q.size, 2) for a in (lse, d_lse)
        )
        delta = (d_out_i * plan.q.read(out, i)).sum(-1) - d_lse_i
        tq_floats, tq_others = _partition(tq_i)
        order, length = sweep_order(plan, encoding, tq_i, tk)

        def opened(params, q, tqf):
            carry = plan.encoding(params, constants).init_carry(q, _combine(tqf, tq_others))
            return vary(carry, plan.varying)

        carry, pull_open = jax.vjp(opened, params, q_i, tq_floats)

        # The carry at the start of each block of keys. Without a carry nothing is computed.
        def enter(step, loop):
            carry, stored = loop
            stored = jax.tree.map(lambda buffer, c: buffer.at[step].set(c), stored, carry)
            j = order[step]
            _, carry, _ = pair_logits(
                encoding, q_i, plan.k.read(k, j), tq_i, plan.k.tokens(tk, j), carry
            )
            return carry, stored

        stored = jax.tree.map(lambda c: jnp.zeros((len(order), *c.shape), c.dtype), carry)
        if jax.tree.leaves(carry):
            _, stored = plan.fold(length, enter, (carry, stored))

        def k_block(step, loop):
            d_params, d_k, d_v, d_tk, d_q, d_tq, d_carry = loop
            step = length - 1 - step
            j = order[step]
            k_j, v_j = plan.k.read(k, j), plan.k.read(v, j)
            tk_floats_j, tk_others_j = _partition(plan.k.tokens(tk, j))

            def logits(params, q, k, tqf, tkf, carry):
                tq, tk = _combine(tqf, tq_others), _combine(tkf, tk_others_j)
                s, carry, seen = pair_logits(plan.encoding(params, constants), q, k, tq, tk, carry)
                return (s, carry), seen

            def collect(params, w, v, tqf, tkf):
                tq, tk = _combine(tqf, tq_others), _combine(tkf, tk_others_j)
                return plan.encoding(params, constants).collect(w, v, tq, tk)

            entered = jax.tree.map(lambda buffer: buffer[step], stored)
            (s, _), pull_logits, seen = jax.vjp(
                logits, params, q_i, k_j, tq_floats, tk_floats_j, entered, has_aux=True
            )
            w = jnp.exp(jnp.where(seen, s, _MASKED) - lse_i[..., None])
            _, pull_collect = jax.vjp(collect, params, w, v_j, tq_floats, tk_floats_j)
            g_params, g_w, g_v, g_tq, g_tk = pull_collect(d_out_i)
            h_params, g_q, g_k, h_tq, h_tk, d_carry = pull_logits(
                (w * (g_w - delta[..., None]), d_carry)
            )
            return (
                _add(d_params, g_params, h_params),
                plan.k.add(d_k, g_k, j),
                plan.k.add(d_v, g_v, j),
                jax.tree.map(lambda d, g: plan.k.add_tokens(d, g, j), d_tk, _add(g_tk, h_tk)),
                _add(d_q, g_q),
                _add(d_tq, g_tq, h_tq),
                d_carry,
            )

        loop = (
            d_params,
            d_k,
            d_v,
            d_tk,
            _zeros(q_i),
            _zeros(tq_floats),
            jax.tree.map(jnp.zeros_like, carry),
        )
        d_params, d_k, d_v, d_tk, g_q, g_tq, d_carry = plan.fold(length, k_block, loop)
        h_params, h_q, h_tq = pull_open(d_carry)
        return (
            _add(d_params, h_params),
            d_k,
            d_v,
            d_tk,
            plan.q.write(d_q, g_q + h_q, i),
            jax.tree.map(lambda d, g: plan.q.add_tokens(d, g, i), d_tq, _add(g_tq, h_tq)),
        )

    tq_floats = _partition(tq)[0]
    grads = jax.tree.map(_zeros, (params, k, v, tk_floats, q, tq_floats))
    d_params, d_k, d_v, d_tk, d_q, d_tq = plan.fold(q.shape[1] // plan.q.size, q_block, grads)
    like = lambda grads, leaves: jax.tree.map(lambda g, a: g.astype(a.dtype), grads, leaves)
    return (
        like(d_params, params),
        None,  # the constants
        *like((d_q, d_k, d_v), (q, k, v)),
        like(d_tq, tq_floats),
        like(d_tk, tk_floats),
    )


_attend_tiles.defvjp(_attend_fwd, _attend_bwd)
