"""The attention of cuDNN, the kernel for CUDA GPUs that comes with JAX;
`attention/library/choice.py` says when it is taken.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.attention.library.plain_masks import PADDING, Masks
from posenc_jax.base.derivatives import trace_gradients
from posenc_jax.protocol.composite import name_of

_MASK_BYTES = 2**28  # the largest mask of all pairs, which has two bytes for each


def refusal(masks: Masks, q, k, v) -> str | None:
    """Why cuDNN cannot compute attention of these shapes with these masks; None if it can."""
    if len(masks.others) > 1:
        return 'cuDNN knows one window or one prefix'
    for mask in masks.others:
        if mask.shown_first is not None:
            if masks.causal:
                return 'a prefix decides itself what is causal'
        elif mask.band is None:
            return f'cuDNN has no mask such as {name_of(mask)}'
        elif not masks.causal:
            return 'a window of cuDNN is causal'
    if q.shape[1] == 1:
        return 'one query, as in decoding, is faster in one tile'
    return _error(functools.partial(_shown, masks), q, k, v)


def _error(run: Callable, *arrays) -> str | None:
    """Why cuDNN refuses `run` or its gradients for arrays of these shapes; None if it does not."""
    try:  # JAX knows which dtypes, widths and versions of cuDNN fit.
        trace_gradients(run, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


def demands(groups) -> list:
    """What must also be true of the groups of tokens: one document, with padding behind or in front
    of it.
    """
    real = groups != PADDING
    begins = real & jnp.pad(~real[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    document = jnp.where(begins, groups, PADDING).max(1, keepdims=True)
    return [begins.sum(1) <= 1, ~real | (groups == document)]


def attend(masks: Masks, q, k, v, groups) -> Any:
    """The result of attention whose queries are its keys.

    Args:
      groups: [B, L] integers, for which `demands` holds; None if a query may see all keys.
    """
    if groups is None:
        return _shown(masks, q, k, v)
    real = groups != PADDING
    # cuDNN takes padding behind a text, so texts begin at the first place.
    first, places = real.argmax(1), jnp.arange(groups.shape[1])

    def rolled(by):
        place = ((places + by[:, None]) % len(places))[..., None, None]
        move = lambda a: jnp.take_along_axis(a, place, axis=1)
        return lambda a: jax.lax.cond((first > 0).any(), move, lambda a: a, a)

    lengths = real.sum(1, dtype=jnp.int32)
    q, k, v = map(rolled(first), (q, k, v))
    out = rolled(-first)(_shown(masks, q, k, v, lengths))
    return jnp.where(real[..., None, None], out, 0)


def takes_documents(masks: Masks, q, k, v, groups) -> bool:
    """Whether `attend_documents` can compute rows of several documents: its mask of all pairs is
    small, and there is no prefix, which cuDNN cannot begin anew in every document.
    """
    if any(mask.shown_first for mask in masks.others):
        return False
    if 2 * len(q) * q.shape[1] * k.shape[1] > _MASK_BYTES:
        return False
    run = lambda groups, q, k, v: attend_documents(masks, q, k, v, groups)
    return _error(run, groups, q, k, v) is None


def attend_documents(masks: Masks, q, k, v, groups) -> Any:
    """The result of attention whose queries are its keys, in rows of several documents.

    Args:
      groups: [B, L] integers, the same where a query may see a key.
    """

    def run(q, k, v, groups):
        shown = groups[:, None, :, None] == groups[:, None, None, :]
        return _attend(masks, q, k, v, mask=shown)

    # The backward pass makes the mask again instead of keeping it.
    out = jax.checkpoint(run)(q, k, v, groups)
    return jnp.where((groups != PADDING)[..., None, None], out, 0)


def _shown(masks: Masks, q, k, v, lengths=None):
    """Attention with one mask. Where a prefix is shown, its queries see all of it, and the others
    see what a causal query sees.
    """
    prefix = next((mask.shown_first for mask in masks.others if mask.shown_first), 0)
    if not prefix:
        return _attend(masks, q, k, v, lengths)
    plain = dataclasses.replace(masks, others=(), causal=True)
    whole = dataclasses.replace(plain, causal=False)
    shorter = None if lengths is None else jnp.minimum(lengths, prefix)
    behind = _attend(plain, q, k, v, lengths)[:, prefix:]
    own = _attend(whole, q[:, :prefix], k[:, :prefix], v[:, :prefix], shorter)
    return jnp.concatenate([own, behind], axis=1)


def _attend(masks: Masks, q, k, v, lengths=None, mask=None, implementation: Any = 'cudnn'):
    bands = [mask.band for mask in masks.others if mask.band is not None]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=masks.causal,
        query_seq_lengths=lengths, key_value_seq_lengths=lengths,
        local_window_size=(bands[0] - 1, 0) if bands else None,
        implementation=implementation,
    )  # fmt: skip
