"""Softmax attention, written once, which an `Encoding` changes through its doors.

Queries are taken block by block. For each block of queries, the blocks of keys are swept from near
to far with an online softmax; blocks that the mask hides entirely are skipped. The backward pass
recomputes tiles, so memory is linear in the length. If an encoding has a carry, its carries are
stored for one block of queries at a time. 'dense' is the same code with a single block.

The forms are those of `attention/blocked.py`, of `attention/kernels/` and of `attention/ring.py`;
`attention/library/` has the kernels that come with JAX.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from posenc_jax.attention import blocked, policy, ring
from posenc_jax.attention.arguments import (
    check_arrays,
    check_axis,
    check_doors,
    check_offset,
    missing_features,
)
from posenc_jax.attention.kernels import sizes as kernel_sizes
from posenc_jax.attention.library import choice as library
from posenc_jax.attention.tile_sizes import IMPLEMENTATIONS as IMPLEMENTATIONS
from posenc_jax.attention.tile_sizes import Implementation, tile_sizes
from posenc_jax.attention.tiles import Blocks, Plan
from posenc_jax.base import targets
from posenc_jax.base.derivatives import (
    at_precision,
    by_jax,
    forward_mode_refused,
    precision,
    reverse_mode_only,
    trace_gradients,
)
from posenc_jax.base.meshes import compiler_cuts, explicit_spec, vary, varying_axes, with_auto_axes
from posenc_jax.protocol.capabilities import prepared
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens


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
    depend on the tiles. Logits are float32; the result has the dtype of `v`. Products of float32
    have the precision of `jax.default_matmul_precision` where `attend` is called, forward and
    backward; by default a GPU computes them in TensorFloat-32. Gradients reach `q`,
    `k`, `v`, the float leaves of the tokens and every `nnx.Param` of the encoding; its other
    variables are constants.

    Args:
      encoding: `attend` calls its doors `logits`, `mask`, `collect` and `rescale`.
      q, k, v: queries, keys, values; N must be a multiple of K.
      tq, tk: tokens of the queries and of the keys, ascending in `index`.
      block: queries and keys per tile, one number or a pair; None chooses by the input sizes.
      implementation: 'dense' (one tile), 'blocked', 'kernel' (a Pallas kernel, on a GPU or a TPU),
        'hopper' (the same with another forward pass, for masks and biases on a GPU of type sm_90),
        or None for one tile if it is small. If this, `block`, `heads_first`, `return_lse` and
        `axis_name` have their defaults, the encoding's `fast_path` is tried first, and on a TPU or
        a GPU the kernel of JAX where it can serve (`attention/library/choice.py`). Where none
        serves, `attention/policy.py` says what is taken; a file of the user overrides it. 'fused'
        is None with 'kernel' for all encodings for which it is no error. Forward-mode derivatives
        exist for 'dense' alone.
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
        the index of the first; a kernel where it cannot run; a block with a part of the keys, or an
        `axis_name`, where an encoding `mixes_logits`; an `axis_name` outside of `jax.shard_map`, or
        an encoding with a door that reads the whole text and may have been called inside.

    Example:
      >>> import jax, posenc_jax as pj
      >>> q = k = v = jax.random.normal(jax.random.key(0), (1, 8, 2, 4))
      >>> t = pj.Tokens.of(length=8)
      >>> pj.attend(pj.make('alibi()', heads=2, causal=True), q, k, v, t, t).shape
      (1, 8, 2, 4)
    """
    options: dict[str, Any] = dict(
        block=block, implementation=implementation, heads_first=heads_first, return_lse=return_lse,
        axis_name=axis_name, applied=applied, applied_outside=applied_outside,
    )  # fmt: skip
    s_axis = 2 if heads_first else 1
    check_arrays(q, k, v, tq, tk, s_axis)
    # Blocks of tokens are no grids.
    tq, tk = (dataclasses.replace(tok, grid=None) for tok in (tq, tk))
    check_doors(encoding, applied)
    check_offset(encoding, tq, tk)
    check_axis(encoding, axis_name, applied_outside)
    arrays = q, k, v, tq, tk
    if (spec := explicit_spec(q)) is not None:
        return _placed_by_compiler(spec, encoding, arrays, options)
    encoding = prepared(encoding)
    chooses, whole = implementation in (None, 'fused'), None
    whole_rows = not (heads_first or return_lse)
    with missing_features(encoding):
        choice = policy.choose(encoding, arrays, options, _own_kernel)
        form, tile, otherwise = choice.implementation, choice.block, choice.words
        plan, variables = _planned(encoding, arrays, s_axis, tile, form, axis_name)
        sweep = functools.partial(_swept, plan, encoding, variables, arrays, return_lse)
        if chooses and whole_rows and (block is not None or axis_name is not None):
            cut = 'the sequence is cut over devices'
            reason = 'a block size is given' if axis_name is None else cut
            reason = library.refusal(encoding, q, k, v, tk) or reason
            library.note(f'{otherwise}, because {reason}')
        elif chooses and whole_rows and encoding.opens('fast_path'):
            quick: Any = encoding
            whole = quick.fast_path(*arrays, causal=False, sweep=sweep)
        elif chooses and whole_rows and choice.library:
            whole = library.attend(encoding, *arrays, sweep, otherwise)
        elif chooses and whole_rows:
            library.note(otherwise)
        return sweep() if whole is None else whole


def _placed_by_compiler(spec: PartitionSpec, encoding: Encoding, arrays, options) -> Any:
    """`attend` of arrays on a mesh with Explicit axes, of which `spec` cuts the queries."""
    graphdef, state = nnx.split(encoding)
    run = lambda state, *arrays: attend(nnx.merge(graphdef, state), *arrays, **options)
    specs = (spec, PartitionSpec(*spec[:3])) if options['return_lse'] else spec
    return with_auto_axes(run, specs, state, *arrays)


def _own_kernel(encoding: Encoding, arrays, options) -> tuple[Implementation | None, str]:
    """'kernel', or 'hopper' where the options say so, if that kernel of this library can compute
    attention with its gradients, else None; and what computes it, for `library.note`. What the
    compiler refuses is not known here.
    """
    q, k, v, *tokens = arrays
    form: Implementation = 'hopper' if options['implementation'] == 'hopper' else 'kernel'
    options, ours = {**options, 'implementation': form}, policy.OURS
    s_axis = 2 if options['heads_first'] else 1
    if targets.platform() == 'tpu' and compiler_cuts():
        return None, f'in blocks ({ours} needs jax.shard_map on several devices)'
    try:
        how = options['block'], form, options['axis_name']
        _planned(encoding, arrays, s_axis, *how, fused=True)
        trace_gradients(lambda *qkv: attend(encoding, *qkv, *tokens, **options), q, k, v)
    except kernel_sizes.NoKernelError as error:
        return None, f'in blocks ({ours} {error.reason})'
    return form, f'in {ours}'


def _planned(
    encoding, arrays, s_axis, block, implementation, axis_name, fused=False
) -> tuple[Plan, list]:
    """How the arrays are cut, and the variables of the encoding: its parameters and all others.
    With `fused` a kernel that is slow is refused, and not only one that does not fit.
    """
    q, k, v, tq, tk = arrays
    in_ring = axis_name is not None
    halves = in_ring and implementation != 'dense' and ring.gains_by_halves(encoding, tq, tk)
    parts = 2 if halves else 1
    batch, queries, heads, width = q.shape
    shape, keys = (batch, queries // parts, heads, width), k.shape[s_axis] // parts
    forced, on_hopper = implementation in kernel_sizes.KERNELS, implementation == 'hopper'
    named = dict(queries=q, keys=k, values=v)
    target = kernel_sizes.target(implementation, **named) if forced else None
    if on_hopper:
        _check_hopper(encoding, q, k, v, tq, tk, s_axis)
    widths = width, v.shape[-1]
    if forced and block is None:
        block = kernel_sizes.best_tile(encoding, max(widths), q.dtype.name)
    sizes = tile_sizes(encoding, shape, keys, block, implementation, target, widths)
    if forced:
        tile = sizes[0], sizes[1]
        kernel_sizes.check_compiled(encoding, min(widths), q.dtype.name, tile, fused)
    graphdef, *variables = nnx.split(encoding, nnx.Param, ...)
    blocks = Blocks(sizes[0], 1), Blocks(sizes[1], s_axis), Blocks(sizes[-1], s_axis)
    nodes = 2 if halves and encoding.opens('first_carry') else 1
    known = None, 'default', 'fastest', 'bfloat16', 'highest', 'float32'
    exact = 'float32' in {a.dtype.name for a in (q, k, v)}
    if target == 'tpu' and exact and precision() not in known:
        raise kernel_sizes.NoKernelError(
            "computes products of float32 on a TPU with the precision 'default' or 'highest', got "
            f'{precision()!r}',
            "use jax.default_matmul_precision('highest')",
        )
    varying = varying_axes((variables, arrays))
    is_dense = implementation == 'dense'
    return (
        Plan(graphdef, *blocks, varying, axis_name, target, on_hopper, halves, nodes, is_dense),
        variables,
    )


def _check_hopper(encoding, q, k, v, tq, tk, s_axis: int) -> None:
    """Refuses classes of encodings that the kernel for Hopper does not compute."""
    k, v = (a if s_axis == 1 else jnp.swapaxes(a, 1, 2) for a in (k, v))
    if (found := policy.class_of(encoding, q, k, v, tq, tk)) not in policy.SIMPLE:
        reason = f'is for the classes none and bias, and {encoding} is of the class {found}'
        raise kernel_sizes.NoKernelError(reason, form='hopper')


def _swept(plan: Plan, encoding: Encoding, variables, arrays, return_lse: bool) -> Any:
    """The result by tiles, [B, T, N, V]; with `return_lse` also the log-sum-exp, [B, T, N]."""
    queries, tq = arrays[0].shape[1], arrays[3]
    params, constants, *arrays = vary((*variables, *arrays), plan.varying)
    ring_axis: Any = plan.ring
    if plan.halves:
        axes = 1, plan.k.axis, plan.k.axis, 1, 1
        arrays = [ring.deal(a, ring_axis, axis) for a, axis in zip(arrays, axes)]
    arrays = plan.pad(*arrays)
    if plan.dense:  # JAX itself differentiates this form, also in forward mode
        run: Any = ring.forward if plan.ring else blocked.forward
        with by_jax():
            out, lse = run(plan, params, jax.lax.stop_gradient(constants), *arrays)
    else:
        run = ring.tiles if plan.ring else _kernel() if plan.target else blocked.tiles
        with forward_mode_refused():
            own = reverse_mode_only((params, constants, *arrays))
            out, lse = at_precision(run)(precision(), plan, *own)
    rescales = encoding.opens('rescale') and not return_lse
    found: Any = plan.q.unpad(out, queries, plan.nodes)
    if return_lse or rescales:
        found = found, plan.q.unpad(jnp.swapaxes(lse, 1, 2), queries, plan.nodes)
    if plan.halves:
        found = ring.deal(found, ring_axis, 1, back=True)
    if not rescales:
        return found
    out, lse = found
    return encoding.rescale(out, lse, tq)


@functools.cache
def _kernel() -> Any:
    """Attention by the kernels of this library, which few programs use: it takes a third of a
    second to import Pallas. In a program for another platform than theirs, such as one of arrays on
    the CPU of a machine with a GPU, the blocked form computes the same.
    """
    from posenc_jax.attention.kernels import passes

    def here_or_there(kernel, blocks):
        def run(plan, *arrays):
            if plan.target in targets.INTERPRETED:
                return kernel(plan, *arrays)
            here = {plan.target: functools.partial(kernel, plan)}
            there = functools.partial(blocks, plan)
            return jax.lax.platform_dependent(*arrays, **here, default=there)

        return run

    def forward_and_kept(plan, *arrays):
        results = forward(plan, *arrays)
        return results, (*arrays, *results)

    ours: Any = passes.attention
    others: Any = blocked.tiles
    forward = here_or_there(ours.fun, others.fun)
    attention = jax.custom_vjp(forward, nondiff_argnums=(0,))
    attention.defvjp(forward_and_kept, here_or_there(ours.bwd, others.bwd))
    return attention
