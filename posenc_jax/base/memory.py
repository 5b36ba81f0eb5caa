"""Memory that arrays would take, computed from their shapes before anything is allocated."""

import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

_UNITS = ('bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')


def bytes_of(tree: Any) -> int:
    """The bytes of all arrays of a pytree; a `jax.ShapeDtypeStruct` counts as its array.

    Example:
      >>> bytes_of({'a': jax.ShapeDtypeStruct((3, 5), 'float32')})
      60
    """
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, 'dtype')
    )


def readable(count: int) -> str:
    """A number of bytes in binary units.

    Example:
      >>> readable(60), readable(3 * 2**29), readable(2**20 - 1), readable(10**30)
      ('60 bytes', '1.5 GiB', '1020 KiB', 'more than 1024 EiB')
    """
    power = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    if count >= 2**70:
        return f'more than 1024 {_UNITS[-1]}'
    if not power:
        return f'{count} bytes'
    three_digits = float(f'{count / 2 ** (10 * power):.3g}')  # of 1020, '.3g' writes 1.02e+03
    return f'{three_digits:g} {_UNITS[power]}'


def main_memory() -> int:
    """Bytes of main memory of this machine, in use or free; `sys.maxsize` if the system does not
    report them.
    """
    if not hasattr(os, 'sysconf'):  # Windows
        return sys.maxsize
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def check_data(what: str, needed: int, instead: str) -> None:
    """Checks that data of a user fit, before they are read. They may take half of the main memory:
    on the way to a batch they are copied once, and a model needs memory too.

    Args:
      what: the data, for the message.
      needed: bytes that a task holds of all of them together.
      instead: what the user can do.

    Raises:
      ValueError: they need more.

    Example:
      >>> check_data('books/*.txt: 2 files', 2**20, 'name fewer files')
      >>> check_data('books/*.txt: 2 files', 2**80, 'name fewer files')
      Traceback (most recent call last):
        ...
      ValueError: books/*.txt: 2 files would take more than 1024 EiB of memory; data may take...
    """
    if needed > (limit := main_memory() // 2):
        raise ValueError(
            f'{what} would take {readable(needed)} of memory; data may take half of the main '
            f'memory, {readable(limit)} on this machine; {instead}'
        )


def device_memory(
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> int:
    """Bytes of memory of each of these devices (default: all of this process). CPU devices share
    the main memory in equal parts.
    """
    devices = jax.local_devices() if devices is None else devices
    return (devices[0].memory_stats() or {}).get('bytes_limit') or main_memory() // len(devices)
