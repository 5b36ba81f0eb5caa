"""The platform for which programs are made: the one that runs here, or another one for a while."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

INTERPRETED = 'interpreter', 'tpu_interpreter'
_TARGET = contextvars.ContextVar[str | None]('what kernels are made for', default=None)
_DEVICE = contextvars.ContextVar[str | None]('the kind of device they are made for', default=None)
# The names that JAX has for kinds of TPUs.
TPUS = {
    'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5e': 'v5e', 'TPU v5': 'v5p', 'TPU v5p': 'v5p',
    'TPU v6 lite': 'v6e', 'TPU v6e': 'v6e',
}  # fmt: skip


@contextlib.contextmanager
def made_for(target: str, device: str | None = None) -> Iterator[None]:
    """A scope in which kernels are made for a target, whatever runs here.

    Args:
      target: 'cuda' or 'tpu'; 'interpreter', which interprets our kernels as they are made for a
        GPU, and splash attention; 'tpu_interpreter', which interprets our kernels as they are made
        for a TPU; or 'shapes', for which no program is made and no device is touched.
      device: the kind of device, as `device` names it; None for one that is not known.
    """
    before = _TARGET.set(target), _DEVICE.set(device)
    try:
        yield
    finally:
        _TARGET.reset(before[0])
        _DEVICE.reset(before[1])


def platform() -> str:
    """What kernels are made for: one of the targets of `made_for`, or a platform that has none."""
    found = _TARGET.get() or jax.default_backend()
    return 'cuda' if found in ('gpu', 'rocm') else found


def device() -> str | None:
    """The kind of device that kernels are made for: 'sm_90' for a GPU of NVIDIA with this compute
    capability, 'v5e' for a TPU v5e; None if it is not known.
    """
    if _TARGET.get() is not None:
        return _DEVICE.get()
    first = jax.devices()[0]
    if first.platform == 'gpu':
        return f'sm_{getattr(first, "compute_capability", "").replace(".", "")}'
    return TPUS.get(first.device_kind)


def of_tpu(target: str) -> bool:
    """Whether kernels for a target are those of a TPU."""
    return target in ('tpu', 'tpu_interpreter')


def device_kind() -> str | None:
    """The name that JAX has for the device that kernels are made for; None if it is not known."""
    return _DEVICE.get() if _TARGET.get() is not None else jax.devices()[0].device_kind


def float32_products(precision: str | None) -> str | None:
    """What JAX computes products of float32 in here where that is less than float32.

    Args:
      precision: as for `jax.default_matmul_precision`.
    """
    three = precision in ('high', 'tensorfloat32', 'bfloat16_3x')
    if not three and precision not in (None, 'default', 'fastest', 'bfloat16'):
        return None
    if platform() == 'cuda':
        old = device() in ('sm_60', 'sm_61', 'sm_70', 'sm_75')
        return None if old else 'TensorFloat-32, with 10 bits behind the point,'
    if platform() == 'tpu':
        return f'{"three products of " if three else ""}bfloat16, with 7 bits behind the point,'
    return None
