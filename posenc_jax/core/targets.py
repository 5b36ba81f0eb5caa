"""What programs are made for: the platform that runs here, or another one for a while."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET = contextvars.ContextVar[str | None]('what kernels are made for', default=None)


@contextlib.contextmanager
def made_for(target: str) -> Iterator[None]:
    """A scope in which kernels are made for 'interpreter', 'cuda' or 'tpu', whatever runs here. In
    a scope for 'shapes' no program is made, and no device is touched.
    """
    before = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(before)


def platform() -> str:
    """What kernels are made for: 'interpreter', 'cuda', 'tpu', 'shapes', or a platform that has
    none.
    """
    found = _TARGET.get() or jax.default_backend()
    return 'cuda' if found in ('gpu', 'rocm') else found
