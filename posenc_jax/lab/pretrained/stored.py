"""The places of tensors in a file, checked against the size of the file, and safetensors files."""

import dataclasses
import math
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from posenc_jax.lab.pretrained.fields import (
    LARGEST_JSON,
    OBJECT,
    PretrainedError,
    check,
    is_file,
    one_of,
    parse_json,
    several,
    whole,
)


@dataclasses.dataclass(frozen=True)
class Stored:
    """The place of a tensor in a file.

    Attributes:
      kind: type of the numbers, in the terms of the format.
      shape: shape of the tensor.
      begin, end: first byte, and the byte behind the last one.
    """

    kind: Any
    shape: tuple[int, ...]
    begin: int
    end: int


LARGEST_SIDE = 2**40  # of a tensor; the size of the file is the stricter bound
SHAPE = several(whole(0, LARGEST_SIDE), 8)


def check_layout(
    tensors: Mapping[str, Stored], begin: int, file: pathlib.Path, *, alignment: int = 1
) -> int:
    """Checks that the tensors fill the file from `begin` on, one after the other without holes. A
    hole means that the header does not belong to these bytes.

    Args:
      tensors: name -> place of the tensor.
      begin: the byte behind the header, a multiple of the alignment.
      file: the file.
      alignment: every tensor begins at a multiple of this number of bytes.

    Returns:
      The byte behind the last tensor.

    Raises:
      PretrainedError: names the tensor, its place and the expected place.
    """
    size, end, last = file.stat().st_size, begin, 'the header'
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        place = f'{file}: the tensor {name[:200]!r} lies at bytes {tensor.begin} to {tensor.end}'
        if tensor.begin != (expected := -(-end // alignment) * alignment):
            raise PretrainedError(f'{place}, expected it at byte {expected}, where {last} ends')
        if tensor.end > size:
            raise PretrainedError(f'{place}, expected it within the {size} bytes of the file')
        end, last = tensor.end, f'{name[:200]!r}'
    return end


def read_bytes(file: pathlib.Path, tensor: Stored) -> np.ndarray:
    """A copy of the bytes of a tensor, so that later changes of the file have no effect."""
    found = np.fromfile(file, np.uint8, tensor.end - tensor.begin, offset=tensor.begin)
    if len(found) != tensor.end - tensor.begin:
        raise PretrainedError(f'{file} became shorter while it was read')
    return found


# NumPy types by their names in safetensors.
DTYPES = {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'F8_E4M3': ml_dtypes.float8_e4m3fn,
    'F8_E5M2': ml_dtypes.float8_e5m2,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U64': np.uint64,
    'U32': np.uint32,
    'U16': np.uint16,
    'U8': np.uint8,
    'BOOL': np.bool_,
}


class Safetensors:
    """A safetensors file: a JSON header, followed by the tensors.

    Attributes:
      tensors: name -> place of the tensor; its `kind` is a key of `DTYPES`.
    """

    def __init__(self, file: pathlib.Path):
        self._file, self.tensors = file, {}
        header, begin = _header(file)
        for name, entry in header.items():
            if name == '__metadata__':
                continue
            field = f'the tensor {name[:200]!r}'
            check(entry, OBJECT, file, field)
            kind = check(entry.get('dtype'), one_of(*DTYPES), file, f'{field}, dtype')
            shape = tuple(check(entry.get('shape'), SHAPE, file, f'{field}, shape'))
            ends = check(
                entry.get('data_offsets'),
                several(whole(0, 2**62), 2),
                file,
                f'{field}, data_offsets',
            )
            needed = math.prod(shape) * np.dtype(DTYPES[kind]).itemsize
            if len(ends) != 2 or ends[1] - ends[0] != needed:
                raise PretrainedError(
                    f'{file}: {field}, data_offsets={ends}, expected {needed} bytes for {kind} '
                    f'{shape}'
                )
            self.tensors[name] = Stored(kind, shape, begin + ends[0], begin + ends[1])
        if (end := check_layout(self.tensors, begin, file)) != (size := file.stat().st_size):
            raise PretrainedError(
                f'{file} has {size} bytes, expected {end}, where the last tensor ends'
            )

    def read(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        return read_bytes(self._file, tensor).view(DTYPES[tensor.kind]).reshape(tensor.shape)


def _header(file: pathlib.Path) -> tuple[dict[str, Any], int]:
    """The header, and the byte at which the tensors begin."""
    if not is_file(file):
        raise FileNotFoundError(f'{file} is missing: {file.parent} is not complete')
    try:
        size = file.stat().st_size
        with file.open('rb') as opened:
            first = opened.read(8)
            (length,) = struct.unpack('<Q', first) if len(first) == 8 else (0,)
            if not 2 <= length <= min(size - 8, LARGEST_JSON):
                raise PretrainedError(
                    f'{file} is damaged or not a safetensors file ({size} bytes): its header '
                    f'would have {length} bytes, expected '
                    f'2 to {min(max(size - 8, 2), LARGEST_JSON)}'
                )
            return parse_json(opened.read(length), f'{file}: the header'), 8 + length
    except OSError as error:
        raise PretrainedError(f'{file} cannot be read: {error.strerror}') from None
