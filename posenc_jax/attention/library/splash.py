"""Splash attention, the kernel for TPUs that comes with JAX; `attention/library/choice.py` says
when it is taken.
"""

from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.attention.library.plain_masks import Masks
from posenc_jax.base import targets
from posenc_jax.base.derivatives import precision
from posenc_jax.base.meshes import compiler_cuts

_LANES = 128


def refusal(masks: Masks, q, k, v) -> str | None:
    """Why the kernel cannot compute attention of these shapes with these masks; None if it can."""
    if {a.dtype.name for a in (q, k, v)} not in ({'float32'}, {'bfloat16'}):
        return f'it takes float32 or bfloat16, not {q.dtype}, {k.dtype} and {v.dtype}'
    for name, size, unit in (
        ('queries', q.shape[1], _LANES),
        ('keys', k.shape[1], _LANES),
        ('head width', q.shape[3], 64),
        ('width of values', v.shape[3], 64),
    ):
        if size % unit:
            return f'{name} must be a multiple of {unit}, got {size}'
    if q.dtype.name == 'float32' and precision() not in (None, 'default'):
        return f'its gradients would not have the precision {precision()!r} that is set'
    if compiler_cuts():
        return 'the compiler cannot cut a kernel, so several devices need jax.shard_map'
    return None


def demands(groups) -> list:
    """What must also be true of the groups of tokens: nothing."""
    return []


def attend(masks: Masks, q, k, v, groups) -> Any:
    """The result of attention whose queries are its keys.

    Args:
      groups: [B, L] integers, the same where a query may see a key; None if it may see all.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    _, queries, heads, width = q.shape
    block = lambda length: next(n for n in (512, 256, _LANES) if length % n == 0)
    own, other = block(queries), block(k.shape[1])
    run = kernel.make_splash_mha(
        _mask(masks, heads, queries, k.shape[1]),
        block_sizes=kernel.BlockSizes(
            block_q=own, block_kv=other, block_q_dkv=own, block_kv_dkv=other, block_q_dq=own,
            block_kv_dq=other,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=targets.platform() == 'interpreter',
    )  # fmt: skip
    scaled = (q.astype(jnp.float32) * width**-0.5).astype(q.dtype)
    arrays = [jnp.swapaxes(a, 1, 2) for a in (scaled, k, v)]
    segments = None if groups is None else kernel.SegmentIds(groups, groups)
    out: Any = jax.vmap(lambda *row: run(*row))(*arrays, segments)
    return jnp.swapaxes(out, 1, 2)


def _mask(masks: Masks, heads: int, queries: int, keys: int) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as library

    class OfPlaces(library.Mask):
        """The masks as splash attention reads them, block by block."""

        @property
        def shape(self):
            return queries, keys

        def __getitem__(self, idx):
            rows, columns = (range(*part.indices(n)) for part, n in zip(idx, self.shape))
            return masks.seen(rows, columns)

    if not masks.others:
        plain = library.CausalMask if masks.causal else library.FullMask
        one = plain((queries, keys))
    else:
        one = OfPlaces()
    return library.MultiHeadMask([one] * heads)
