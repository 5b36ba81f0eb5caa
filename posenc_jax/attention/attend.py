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
from collections.abc import Callable, Collection
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from posenc_jax.attention import ring
from posenc_jax.attention.arguments import (
    check_arrays,
    check_axis,
    check_doors,
    check_offset,
    missing_features,
)
from posenc_jax.attention.kernels import sizes as kernel_sizes
from posenc_jax.attention.library import choice as library
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
from posenc_jax.attention.tiles import Blocks, Plan
from posenc_jax.base import targets
from posenc_jax.base.derivatives import (
    by_jax,
    forward_mode_refused,
    reverse_mode_only,
    trace_gradients,
)
from posenc_jax.base.meshes import compiler_cuts, explicit_spec, vary, varying_axes, with_auto_axes
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.tokens import Tokens

Implementation = Literal['dense', 'blocked', 'kernel', 'fused']
IMPLEMENTATIONS = get_args(Implementation)

# Sizes of float32 logits. Up to the first size all logits are one tile; beyond it, a tile has about
# the second size at most. Wide products save more time than cache misses cost
# (benchmarks/attention.py), and such a tile is small beside the keys of a long sequence.
_ONE_TILE_BYTES, _TILE_BYTES = 2**20, 2**25


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
    axis_name: str | None = None,
    applied: Collection[str] = (),
    applied_outside: bool = False,
) -> Any:
    """Attention of projected queries over projected keys, with the pair-stage doors of `encoding`.

    A query that sees no key gives zeros. Rows of queries that are not valid have no meaning and
    depend on the tiles. Logits are float32; the result has the dtype of `v`. Gradients reach `q`,
    `k`, `v`, the float leaves of the tokens and every `nnx.Param` of the encoding; its other
    variables are constants.

    Args:
      encoding: `attend` calls its doors `logits`, `mask`, `collect` and `rescale`.
      q, k, v: queries, keys, values; N must be a multiple of K.
      tq, tk: tokens of the queries and of the keys, ascending in `index`.
      block: queries and keys per tile, one number or a pair; None chooses by the input sizes.
      implementation: 'dense' (one tile), 'blocked', 'kernel' (a Pallas kernel, on a GPU or a TPU),
        or None for one tile if it is small. If this, `block`, `heads_first`, `return_lse` and
        `axis_name` have their defaults, the encoding's `fast_path` is tried first, and on a TPU or
        a GPU the kernel of JAX where it can serve (`attention/library/choice.py`). 'fused' is None
        with one choice more: where no kernel of JAX serves, 'kernel' if it is no error.
        Forward-mode derivatives exist for 'dense' alone.
      heads_first: k and v come as [B, K, S, H], the layout of the cache.
      return_lse: also returns the logarithm of each row's sum of exponentials. With it two
        attentions over different keys can be merged into one. The door `rescale` is then left to
        the caller, who calls it on what was merged.
      axis_name: inside `jax.shard_map`, a mesh axis along which the sequence is cut into contiguous
        parts of one length. All arguments are the parts of this device. Keys, values and their
        tokens then travel round the devices, so that each query meets all of them.
      applied: the doors of the token stage that the caller has called: 'place', 'embed', 'qkv',
        'project'. An encoding that opens one of the others is an error, since its effect would be
        missing.
      applied_outside: with `axis_name`, whether these doors were called outside of that
        `jax.shard_map`, on whole texts. Where one of them reads the whole text, as `project` of
        `dynamic_ntk` or `place` of `reverse_pe`, they must have been.

    Returns:
      The result, [B, T, N, V]; with `return_lse` a pair of it and the log-sum-exp, [B, T, N] in
      float32, which is below -1e28 where a query sees no key.

    Raises:
      ValueError: shapes that do not fit together, with the numbers; a door that was skipped, or the
        feature of a token that it attaches; causal queries that are the last of a sequence but have
        the index of the first; a kernel where it cannot run; an `axis_name` outside of
        `jax.shard_map`, or an encoding with a door that reads the whole text and may have been
        called inside.

    Example:
      >>> import jax, posenc_jax as pj
      >>> q = k = v = jax.random.normal(jax.random.key(0), (1, 8, 2, 4))
      >>> t = pj.Tokens.of(length=8)
      >>> pj.attend(pj.make('alibi()', heads=2, causal=True), q, k, v, t, t).shape
      (1, 8, 2, 4)
    """
    options: dict[str, Any] = dict(
        block=block, implementation=implementation, heads_first=heads_first, return_lse=return_lse,
        axis_name=axis_name, applied_outside=applied_outside,
    )  # fmt: skip
    kv_axis, s_axis = (1, 2) if heads_first else (2, 1)
    check_arrays(q, k, v, tq, tk, kv_axis, s_axis)
    # Blocks of tokens are no grids.
    tq, tk = (dataclasses.replace(tok, grid=None) for tok in (tq, tk))
    check_doors(encoding, applied)
    check_offset(encoding, tq, tk)
    check_axis(encoding, axis_name, applied_outside)
    if (spec := explicit_spec(q)) is not None:
        graphdef, state = nnx.split(encoding)
        return with_auto_axes(
            lambda state, *arrays: attend(
                nnx.merge(graphdef, state), *arrays, applied=applied, **options
            ),
            (spec, PartitionSpec(*spec[:3])) if return_lse else spec,
            *(state, q, k, v, tq, tk),
        )
    chooses = implementation in (None, 'fused')
    otherwise = 'in blocks'
    if implementation == 'fused':
        by_kernel: dict[str, Any] = {**options, 'implementation': 'kernel'}
        run = lambda q, k, v: attend(encoding, q, k, v, tq, tk, applied=applied, **by_kernel)
        reason = _refusal(run, q, k, v)
        implementation = None if reason else 'kernel'
        ours = 'a kernel of this library'
        otherwise = f'in blocks ({ours} {reason})' if reason else f'in {ours}'
    queries, keys = q.shape[1], k.shape[s_axis]
    in_ring = axis_name is not None
    gains = in_ring and implementation != 'dense' and ring.gains_by_halves(encoding, tq, tk)
    dealt = axis_name if gains else None  # the mesh axis along which halves are exchanged
    parts = 2 if dealt else 1
    shape = q.shape[0], queries // parts, *q.shape[2:]
    forced = implementation == 'kernel'
    target = kernel_sizes.target(queries=q, keys=k, values=v) if forced else None
    widths = q.shape[-1], v.shape[-1]
    sizes = _sizes(encoding, shape, keys // parts, block, implementation, target, widths)
    graphdef, params, constants = nnx.split(encoding, nnx.Param, ...)
    blocks = Blocks(sizes[0], 1), Blocks(sizes[1], s_axis), Blocks(sizes[-1], s_axis)
    arguments = params, constants, q, k, v, tq, tk
    nodes = 2 if dealt and encoding.opens('first_carry') else 1
    plan = Plan(graphdef, *blocks, varying_axes(arguments), axis_name, target, nodes)
    params, constants, *qkv, of_q, of_k = vary(arguments, plan.varying)

    def sweep() -> Any:
        arrays, axes = (*qkv, of_q, of_k), (1, s_axis, s_axis, 1, 1)
        if dealt:
            arrays = [ring.deal(a, dealt, axis) for a, axis in zip(arrays, axes)]
        cuts = plan.q.pad, plan.k.pad, plan.k.pad, plan.q.pad_tokens, plan.k.pad_tokens
        arrays = [pad(a, nodes) for pad, a in zip(cuts, arrays)]
        # JAX itself differentiates the dense form, also in forward mode.
        if implementation == 'dense':
            result: Any = _dense(plan, params, constants, *arrays)
        else:
            run = ring.tiles if in_ring else _attend_kernel if target else _attend_tiles
            with forward_mode_refused():
                result = run(plan, *reverse_mode_only((params, constants, *arrays)))
        cut = lambda a: plan.q.unpad(a, queries, nodes)
        found: Any = cut(result[0])
        if return_lse or encoding.opens('rescale'):
            found = found, cut(jnp.swapaxes(result[1], 1, 2))
        found = ring.deal(found, dealt, 1, back=True) if dealt else found
        if return_lse or not encoding.opens('rescale'):
            return found
        out, lse = found
        return encoding.rescale(out, lse, tq)

    free = block is None and chooses and not (heads_first or return_lse or in_ring)
    with missing_features(encoding):
        if free and encoding.opens('fast_path'):
            quick: Any = encoding
            whole = quick.fast_path(q, k, v, tq, tk, causal=False, sweep=sweep)
            return sweep() if whole is None else whole
        if free:
            return library.attend(encoding, q, k, v, tq, tk, sweep, otherwise)
        if chooses and not (heads_first or return_lse):
            reason = 'the sequence is cut over devices' if in_ring else 'a block size is given'
            reason = library.refusal(encoding, q, k, v, tk) or reason
            library.note(f'{otherwise}, because {reason}')
        return sweep()


def _refusal(run: Callable, *qkv) -> str | None:
    """Why no kernel of this library can compute `run`, which is attention by such kernels, with its
    gradients; None if they can. What the compiler refuses is not known here.
    """
    if targets.platform() == 'tpu' and compiler_cuts():
        return 'needs jax.shard_map on several devices'
    try:
        trace_gradients(run, *qkv)
    except kernel_sizes.NoKernelError as error:
        return error.reason
    return None


def _sizes(encoding, shape, keys, block, implementation, target=None, widths=()) -> tuple[int, ...]:
    """Queries per tile, keys per tile, and keys per tile of the backward pass; of a kernel for
    `target` if that is given, with the widths of heads and of values.
    """
    batch, queries, heads, _ = shape
    if implementation is not None:
        check_choice('implementation', implementation, IMPLEMENTATIONS)
    if block is not None:
        sizes = (block, block) if isinstance(block, int) else tuple(block)
        if len(sizes) != 2 or not all(isinstance(n, int) and n >= 1 for n in sizes):
            raise ValueError(
                f'attend: block is one or two integers and must be positive, got {block!r}'
            )
    if target is not None:
        sides = None if block is None else sizes
        return kernel_sizes.sizes(target, widths, batch, queries, keys, sides)
    if implementation == 'dense' or not all(isinstance(n, int) for n in (batch, queries, keys)):
        return queries, keys, keys  # lengths may be symbolic, as in `jax.export`
    if block is None:
        carries, blocked = encoding.opens('first_carry'), implementation == 'blocked'
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


def _forward(plan, params, constants, q, k, v, tq, tk):
    """The result in the layout of `q`, and the logarithm of each row's sum of exponentials, [B, N,
    T].
    """
    encoding = plan.encoding(params, constants)
    batch, queries, heads, _ = q.shape

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
    return plan.fold(queries // plan.q.size, q_block, buffers)


def _dense(plan, params, constants, *arrays):
    forward = _forward if plan.ring is None else ring.forward
    with by_jax():
        return forward(plan, params, jax.lax.stop_gradient(constants), *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_tiles(plan, params, constants, q, k, v, tq, tk):
    return _forward(plan, params, constants, q, k, v, tq, tk)


def _attend_fwd(plan, params, constants, q, k, v, tq, tk):
    out, lse = _forward(plan, params, constants, q, k, v, tq, tk)
    return (out, lse), (params, constants, q, k, v, tq, tk, out, lse)


def _attend_bwd(plan, residuals, cotangents):
    params, constants, q, k, v, tq, tk, out, lse = residuals
    plan = dataclasses.replace(plan, k=plan.k_backward)

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
    grads = plan.fold(q.shape[1] // plan.q.size, q_block, jax.tree.map(zeros, grads))
    return gradients(residuals, *grads)


_attend_tiles.defvjp(_attend_fwd, _attend_bwd)


def _kernel():
    """`attention/kernels/passes.py`, which few programs use: it takes a third of a second to import
    Pallas.
    """
    from posenc_jax.attention.kernels import passes as kernel

    return kernel


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_kernel(plan, *arrays):
    return _kernel().forward(plan, *arrays)


def _kernel_fwd(plan, *arrays):
    results = _kernel().forward(plan, *arrays)
    return results, (*arrays, *results)


def _kernel_bwd(plan, residuals, cotangents):
    params, constants, q, k, _, tq, *_ = residuals
    kept = _kernel().keeps_carries(plan, params, constants, q, k, tq)
    return (_kernel().backward if kept else _attend_bwd)(plan, residuals, cotangents)


_attend_kernel.defvjp(_kernel_fwd, _kernel_bwd)
