"""The attention of cuDNN, the kernel for CUDA GPUs that comes with JAX; `core/library.py` says when
it is taken.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.core.composite import name_of
from posenc_jax.core.places import PADDING, Masks


def refusal(masks: Masks, q, k, v) -> str | None:
    """Why cuDNN cannot compute attention of these shapes with these masks; None if it can."""
    if len(masks.others) > 1:
        return 'cuDNN knows one window'
    for mask in masks.others:
        if mask.band is None:
            return f'cuDNN has no mask such as {name_of(mask)}'
        if not masks.causal:
            return 'a window of cuDNN is causal'
    if q.shape[1] == 1:
        return 'one query, as in decoding, is faster in one tile'

    def gradients(q, k, v):
        out, pull = jax.vjp(functools.partial(_attend, masks), q, k, v)
        return pull(out)

    try:  # JAX knows which dtypes, widths and versions of cuDNN fit.
        jax.eval_shape(gradients, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (q, k, v)))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


def demands(groups) -> list:
    """What must also be true of the groups of tokens: one document, with padding behind it."""
    real = groups != PADDING
    in_front = jnp.arange(groups.shape[1]) < real.sum(1, keepdims=True)
    return [real == in_front, ~real | (groups == groups[:, :1])]


def attend(masks: Masks, q, k, v, groups) -> Any:
    """The result of attention whose queries are its keys.

    Args:
      groups: [B, L] integers, for which `demands` holds; None if a query may see all keys.
    """
    if groups is None:
        return _attend(masks, q, k, v)
    real = groups != PADDING
    out = _attend(masks, q, k, v, real.sum(1, dtype=jnp.int32))
    return jnp.where(real[..., None, None], out, 0)


def _attend(masks: Masks, q, k, v, lengths=None, implementation: Any = 'cudnn'):
    bands = [mask.band for mask in masks.others if mask.band is not None]
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=masks.causal,
        query_seq_lengths=lengths, key_value_seq_lengths=lengths,
        local_window_size=(bands[0] - 1, 0) if bands else None,
        implementation=implementation,
    )  # fmt: skip
