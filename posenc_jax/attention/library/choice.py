"""Attention by the kernels that come with JAX, where nothing but masks acts in the pair stage:
splash attention on a TPU (`attention/library/splash.py`), cuDNN on a CUDA GPU
(`attention/library/cudnn.py`).

Their masks know places, and ours know the index of a token and its document. They agree where
queries and keys are the same tokens, one after the other. Then every query also sees a key, itself.
Whether they are the same is known when the program runs, so the program chooses between the kernel
and the sweep.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.attention.library import cudnn, splash
from posenc_jax.attention.library.plain_masks import PADDING, Masks, masks_of
from posenc_jax.base import targets
from posenc_jax.base.derivatives import forward_mode_refused, reverse_mode_only
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens

_KERNELS = {'tpu': splash, 'interpreter': splash, 'cuda': cudnn}
_NAMES = {splash: 'splash attention', cudnn: 'cuDNN'}
_TAKEN = contextvars.ContextVar[dict[str, None] | None]('what computes attention', default=None)


@contextlib.contextmanager
def taken() -> Iterator[dict[str, None]]:
    """A scope that collects what computes the attention of the programs that are traced in it, as
    the keys of a dict: the name of a kernel, or why there is none. It stays empty where JAX has no
    kernel for the platform, and where `implementation` is neither None nor 'fused'.
    """
    before = _TAKEN.set(found := {})
    try:
        yield found
    finally:
        _TAKEN.reset(before)


def note(words: str) -> None:
    """Adds to what `taken` collects."""
    if (noted := _TAKEN.get()) is not None and targets.platform() in _KERNELS:
        noted[words] = None


def refusal(encoding: Encoding, q, k, v, tk: Tokens) -> str | None:
    """Why no kernel of JAX computes this call of `attend` here; None if one does."""
    found = _choice(encoding, q, k, v, tk)
    return found if isinstance(found, str) else None


def _choice(encoding, q, k, v, tk) -> tuple[Any, Masks] | str:
    kernel = _KERNELS.get(targets.platform())
    if kernel is None:
        return f'JAX has no kernel for the platform {targets.platform()!r}'
    masks = masks_of(encoding)
    if isinstance(masks, str):
        return masks
    sizes = q.shape[1], k.shape[1]
    if not all(isinstance(n, int) for n in sizes):
        return f'it needs lengths that are numbers, got {sizes}'
    if sizes[0] != sizes[1] and (masks.causal or masks.others or _has_groups(masks, tk)):
        return f'its masks need queries that are the keys, got {sizes[0]} and {sizes[1]}'
    if not masks.show_each_itself(sizes[0]):
        return 'its masks hide a token from itself'
    return kernel.refusal(masks, q, k, v) or (kernel, masks)


def attend(
    encoding: Encoding, q, k, v, tq: Tokens, tk: Tokens, sweep: Callable, otherwise: str
) -> Any | None:
    """The result of `attend` by a kernel of JAX; None if there is a `refusal`. Where only values
    decide, the program also holds `sweep`, which evaluates the pair stage by tiles; `otherwise`
    says how.
    """
    found = _choice(encoding, q, k, v, tk)
    if isinstance(found, str):
        note(f'{otherwise}, because {found}')
        return None
    kernel, masks = found
    groups = _groups(masks, tq, tk, len(q))
    own = None if groups is None else groups[1]
    demands = [] if own is None else kernel.demands(own)
    documents = bool(demands) and kernel.takes_documents(masks, q, k, v, own)
    others = 'with a mask of all pairs' if documents else otherwise
    where = f' where every row is one document with padding at its ends, else {others}'
    note(_NAMES[kernel] + (where if demands else ''))
    same = [] if groups is None else [groups[0] == groups[1]]
    if masks.causal or masks.others:
        place = tq.index - tq.index[:, :1]
        same += [tq.index == tk.index, place == jnp.arange(tq.length)]
        if masks.read_rank:
            same += [tok.rank == place for tok in (tq, tk)]
    q, k, v = reverse_mode_only((q, k, v))

    def by(attention):
        run = lambda: attention(masks, q, k, v, own)
        platform = targets.platform()
        if platform == 'interpreter':
            return run()
        # The program may also be made for another platform, e.g. for arrays on the CPU.
        return jax.lax.platform_dependent(**{platform: run}, default=sweep)

    whole = lambda: by(kernel.attend)
    several = (lambda: by(kernel.attend_documents)) if documents else sweep
    with forward_mode_refused():
        return _where(same, lambda: _where(demands, whole, several), sweep)


def _where(conditions, run: Callable, otherwise: Callable) -> Any:
    """The result of `run` if all entries of all conditions are true, else of `otherwise`."""
    if not conditions:
        return run()
    return jax.lax.cond(jnp.stack([a.all() for a in conditions]).all(), run, otherwise)


def _groups(masks: Masks, tq: Tokens, tk: Tokens, batch: int):
    """Numbers for queries and keys, [B, L], which are the same where a query may see a key by its
    document and by padding; None if it may see all.
    """
    if not _has_groups(masks, tk):
        return None

    def of(tok):
        found = tok.segment if masks.documents else None
        found = jnp.zeros_like(tok.index) if found is None else found
        if tok.valid is not None:
            found = jnp.where(tok.valid, found, PADDING)
        return jnp.broadcast_to(found, (batch, tok.length)).astype(jnp.int32)

    return of(tq), of(tk)


def _has_groups(masks: Masks, tk: Tokens) -> bool:
    return tk.valid is not None or (masks.documents and tk.segment is not None)
