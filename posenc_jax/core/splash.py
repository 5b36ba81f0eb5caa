"""Attention by splash attention, the kernel for TPUs that JAX has, where nothing but plain masks
acts in the pair stage.

Its masks know places, and ours know the index of a token. They agree where queries and keys are the
same tokens, whose index ascends. Then every query also sees a key, itself. Whether they are the
same is known when the program runs, so the program chooses between the kernel and the sweep.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from posenc_jax.core.composite import name_of, parts_of
from posenc_jax.core.derivatives import forward_mode_refused, reverse_mode_only
from posenc_jax.core.masks import Causal, Document, Full
from posenc_jax.core.tokens import Tokens

_DOORS = 'init_carry', 'match', 'score', 'mask', 'collect', 'fast_path'
_LANES = 128


def refusal(encoding, q, k, v, tk: Tokens) -> str | None:
    """Why the kernel cannot compute this call of `attend`; None if it can."""
    for part in parts_of(encoding):
        plain = isinstance(part, Causal | Full | Document)
        opened = [door for door in _DOORS if part.opens(door)]
        if opened and not plain:
            return f'{name_of(part)} opens the door {opened[0]!r}'
    if {a.dtype.name for a in (q, k, v)} not in ({'float32'}, {'bfloat16'}):
        return f'it takes float32 or bfloat16, not {q.dtype}, {k.dtype} and {v.dtype}'
    queries, keys = q.shape[1], k.shape[1]
    for name, size, unit in (
        ('queries', queries, _LANES),
        ('keys', keys, _LANES),
        ('head width', q.shape[3], 64),
        ('width of values', v.shape[3], 64),
    ):
        if not isinstance(size, int) or size % unit:
            return f'{name} must be a multiple of {unit}, got {size}'
    if queries != keys and (_is_causal(encoding) or _has_groups(encoding, tk)):
        return f'its masks need queries that are the keys, got {queries} and {keys}'
    kinds = jax.sharding.get_abstract_mesh().axis_types or ()
    if jax.device_count() > 1 and not (kinds and set(kinds) == {AxisType.Manual}):
        return 'the compiler cannot cut a kernel, so several devices need jax.shard_map'
    return None


def _is_causal(encoding) -> bool:
    return any(isinstance(part, Causal) for part in parts_of(encoding))


def attend(encoding, q, k, v, tq: Tokens, tk: Tokens, sweep: Callable, *, interpret: bool) -> Any:
    """The result of `attend`, of a call for which there is no `refusal`.

    Args:
      sweep: evaluates the pair stage by tiles.
      interpret: whether the kernel is interpreted.
    """
    groups = _groups(encoding, tq, tk, len(q))
    same = [] if groups is None else [groups[0] == groups[1]]
    if _is_causal(encoding):
        same.append(tq.index == tk.index)
    q, k, v = reverse_mode_only((q, k, v))
    whole = lambda: _kernel(encoding, q, k, v, groups, interpret)
    with forward_mode_refused():
        if not same:
            return whole()
        return jax.lax.cond(jnp.stack([a.all() for a in same]).all(), whole, sweep)


def _kernel(encoding, q, k, v, groups, interpret):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, queries, heads, width = q.shape
    mask = masks.CausalMask if _is_causal(encoding) else masks.FullMask
    block = lambda length: next(n for n in (512, 256, _LANES) if length % n == 0)
    own, other = block(queries), block(k.shape[1])
    run = kernel.make_splash_mha(
        masks.MultiHeadMask([mask((queries, k.shape[1]))] * heads),
        block_sizes=kernel.BlockSizes(
            block_q=own, block_kv=other, block_q_dkv=own, block_kv_dkv=other, block_q_dq=own,
            block_kv_dq=other,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )  # fmt: skip
    scaled = (q.astype(jnp.float32) * width**-0.5).astype(q.dtype)
    arrays = [jnp.swapaxes(a, 1, 2) for a in (scaled, k, v)]
    segments = None if groups is None else kernel.SegmentIds(*groups)
    out: Any = jax.vmap(lambda *row: run(*row))(*arrays, segments)
    return jnp.swapaxes(out, 1, 2)


def _groups(encoding, tq: Tokens, tk: Tokens, batch: int):
    """Numbers for queries and keys, [B, L], which are the same where a query may see a key; None if
    it may see all.
    """
    if not _has_groups(encoding, tk):
        return None
    documents = _sees_documents(encoding)

    def of(tok):
        found = tok.segment if documents and tok.segment is not None else jnp.zeros_like(tok.index)
        if tok.valid is not None:
            found = jnp.where(tok.valid, found, jnp.iinfo(jnp.int32).min)
        return jnp.broadcast_to(found, (batch, tok.length)).astype(jnp.int32)

    return of(tq), of(tk)


def _has_groups(encoding, tk: Tokens) -> bool:
    return tk.valid is not None or (_sees_documents(encoding) and tk.segment is not None)


def _sees_documents(encoding) -> bool:
    return any(isinstance(part, Document) for part in parts_of(encoding))
