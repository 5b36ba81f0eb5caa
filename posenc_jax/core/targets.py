"""What programs are made for: the platform that runs here, or another one for a while."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

INTERPRETED = 'interpreter', 'tpu_interpreter'
_TARGET = contextvars.ContextVar[str | None]('what kernels are made for', default=None)


@contextlib.contextmanager
def made_for(target: str) -> Iterator[None]:
    """A scope in which kernels are made for 'cuda' or 'tpu', whatever runs here. 'interpreter' runs
    those of JAX, and our kernels as they are made for a GPU, on any platform; 'tpu_interpreter'
    runs our kernels as they are made for a TPU. In a scope for 'shapes' no program is made, and no
    device is touched.
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
