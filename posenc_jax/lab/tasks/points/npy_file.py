"""NumPy files of points: what their header says is checked before anything else is read."""

import os
import pathlib

import numpy as np

from posenc_jax.base.programs import printable
from posenc_jax.protocol.errors import quoted, shortened

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
MOST = 10_000  # bytes of a header; that of an array [M, 3] has 118


def count_points(file: pathlib.Path) -> int:
    """The number M of points in an `.npy` file of an array [M, 3]; only its header is read.

    Raises:
      OSError: the file cannot be read.
      ValueError: a file that is no NumPy file, a header that cannot be read or has more than
        `MOST` bytes, another shape, numbers that are not real, or a file that is shorter than its
        header says.
    """
    with file.open('rb') as opened:
        shape, kind = _header(opened)
        left = os.fstat(opened.fileno()).st_size - opened.tell()
    if kind.kind not in 'iuf':
        raise ValueError(f'coordinates are real numbers, got {quoted(kind.str)}')
    if len(shape) != 2 or shape[1] != 3 or type(shape[0]) is not int or shape[0] < 0:
        raise ValueError(f'expected coordinates [N, 3], got an array {quoted(shape)}')
    if (needed := kind.itemsize * 3 * shape[0]) > left:
        raise ValueError(
            f'its header says {quoted(shape)}, which takes {quoted(needed)} bytes, and the file '
            f'has {left} behind the header'
        )
    return shape[0]


def _header(opened) -> tuple[tuple, np.dtype]:
    try:
        version = np.lib.format.read_magic(opened)
        if version not in HEADERS:
            raise ValueError(f'format version {version}, expected (1, 0) or (2, 0)')
        shape, _, kind = HEADERS[version](opened, max_header_size=MOST)
    # The parser of NumPy raises TokenError, RecursionError and more; its messages may have lines.
    except Exception as error:
        said = printable(shortened(str(error).partition('\n')[0], 160))
        raise ValueError(
            f'its header cannot be read: {type(error).__name__}: {said}; expected a file of '
            f'numpy.save, with a header of at most {MOST} bytes'
        ) from None
    return shape, kind
