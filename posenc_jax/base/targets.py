"""What programs are made for: the platform that runs here, or another one for a while."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

INTERPRETED = 'interpreter', 'tpu_interpreter'
_TARGET = contextvars.ContextVar[str | None]('what kernels are made for', default=None)


@contextlib.contextmanager
def made_for(target: str) -> Iterator[None]:
    """A scope in which kernels are made for a target, whatever runs here.

    Args:
      target: 'cuda' or 'tpu'; 'interpreter', which interprets our kernels as they are made for a
        GPU, and splash attention; 'tpu_interpreter', which interprets our kernels as they are made
        for a TPU; or 'shapes', for which no program is made and no device is touched.
    """
    before = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(before)


def platform() -> str:
    """What kernels are made for: one of the targets of `made_for`, or a platform that has none."""
    found = _TARGET.get() or jax.default_backend()
    return 'cuda' if found in ('gpu', 'rocm') else found


def of_tpu(target: str) -> bool:
    """Whether kernels for a target are those of a TPU."""
    return target in ('tpu', 'tpu_interpreter')
