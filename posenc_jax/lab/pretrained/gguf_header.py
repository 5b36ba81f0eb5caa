"""The header of a GGUF file: its fields, and the places of its tensors."""

import math
import pathlib
import struct
from typing import Any

import numpy as np

from posenc_jax.base import extras
from posenc_jax.lab.pretrained.fields import LARGEST_JSON, Kind, PretrainedError, check, whole
from posenc_jax.lab.pretrained.stored import SHAPE, Stored, check_layout

# NumPy types of the numbers and truth values, by their type number in the format.
_SCALARS = {
    0: 'u1',
    1: 'i1',
    2: '<u2',
    3: '<i2',
    4: '<u4',
    5: '<i4',
    6: '<f4',
    7: '?',
    10: '<u8',
    11: '<i8',
    12: '<f8',
}
_TEXT, _ARRAY = 8, 9
ALIGNMENT = Kind(
    'a power of two up to 65536',
    lambda value: whole(1, 2**16).holds(value) and value & (value - 1) == 0,
)
_LONGEST_NAME = 1000  # bytes of the name of a field or tensor
_MOST = 2**16  # fields, and tensors


class Header:
    """Reads the header of a file, little-endian, of version 2 or 3.

    Attributes:
      fields: key -> number, text, truth value or list of one of these.
      tensors: name -> place of the tensor; its shape has the rows first.

    Raises:
      PretrainedError: the header is damaged; the message names the field or tensor.
    """

    def __init__(self, file: pathlib.Path):
        try:
            self._size = file.stat().st_size
            with file.open('rb') as opened:
                self._data = opened.read(LARGEST_JSON)
        except OSError as error:
            raise PretrainedError(f'{file} cannot be read: {error.strerror}') from None
        self._file, self._at, self._what = file, 0, 'the first 24 bytes'
        magic, version = self._take(4), self._number('<u4')
        if magic != b'GGUF':
            raise PretrainedError(
                f'{file} is damaged or not a GGUF file ({self._size} bytes): it begins with '
                f'{magic!r}'
            )
        if version not in (2, 3):
            big = int.from_bytes(version.to_bytes(4, 'little'), 'big') in (2, 3)
            raise PretrainedError(
                f'{file}: version {version}{" (big-endian)" if big else ""}, expected 2 or 3, '
                'little-endian'
            )
        counts = {name: self._number('<u8') for name in ('tensors', 'fields')}
        for name, count in counts.items():
            if count > _MOST:
                raise PretrainedError(
                    f'{file}: the header counts {count} {name}, expected at most {_MOST}'
                )
        self.fields = {}
        for number in range(counts['fields']):
            key = self._name(f'field {number}')
            if key in self.fields:
                raise PretrainedError(f'{file} has the field {key!r} twice')
            self.fields[key] = self._value(self._number('<u4'))
        self.tensors = self._tensors(counts['tensors'])
        del self._data

    def _tensors(self, count: int) -> dict[str, Stored]:
        with extras.explained():
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        alignment = check(
            self.fields.get('general.alignment', 32), ALIGNMENT, self._file, 'general.alignment'
        )
        found = {}
        for number in range(count):
            name = self._name(f'tensor {number}')
            sides = self._number('<u4')
            if not 1 <= sides <= 4:
                raise PretrainedError(
                    f'{self._file}: {self._what} has {sides} dimensions, expected 1 to 4'
                )
            shape = tuple(
                check(
                    [self._number('<u8') for _ in range(sides)],
                    SHAPE,
                    self._file,
                    f'{self._what}, shape',
                )
            )[::-1]
            kind, offset = self._number('<u4'), self._number('<u8')
            if name in found:
                raise PretrainedError(f'{self._file} has {self._what} twice')
            try:
                kind = GGMLQuantizationType(kind)
                block, size = GGML_QUANT_SIZES[kind]
            except (ValueError, KeyError):
                raise PretrainedError(
                    f'{self._file}: {self._what} is of type {kind}, expected a known one, e.g. 0 '
                    '(F32)'
                ) from None
            if shape and shape[-1] % block:
                raise PretrainedError(
                    f'{self._file}: {self._what} has rows of {shape[-1]}, expected a multiple of '
                    f'{block} for {kind.name}'
                )
            found[name] = Stored(kind, shape, offset, offset + math.prod(shape) * size // block)
        begin = -(-self._at // alignment) * alignment
        moved = lambda t: Stored(t.kind, t.shape, begin + t.begin, begin + t.end)
        found = {name: moved(tensor) for name, tensor in found.items()}
        check_layout(found, begin, self._file, alignment=alignment)
        return found

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            known = (
                f'{len(self._data)} bytes that a header may have'
                if len(self._data) < self._size
                else f'{self._size} bytes of the file'
            )
            raise PretrainedError(
                f'{self._file} is damaged: {self._what} would end at byte {end}, behind the {known}'
            )
        found, self._at = self._data[self._at : end], end
        return found

    def _number(self, dtype: str) -> Any:
        return np.frombuffer(self._take(np.dtype(dtype).itemsize), dtype)[0].item()

    def _text(self, most: int) -> str:
        (length,) = struct.unpack('<Q', self._take(8))
        if length > most:
            raise PretrainedError(
                f'{self._file} is damaged: {self._what} has a text of {length} bytes, expected '
                f'at most {most}'
            )
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise PretrainedError(
                f'{self._file} is damaged: {self._what} has a text that is not UTF-8: '
                f'{error.reason}'
            ) from None

    def _name(self, what: str) -> str:
        self._what = f'the name of {what}'
        name = self._text(_LONGEST_NAME)
        if not name.isprintable():
            raise PretrainedError(
                f'{self._file} is damaged: {self._what} is {name[:200]!r}, expected printable '
                'letters'
            )
        self._what = f'the {what.split()[0]} {name[:200]!r}'
        return name

    def _value(self, kind: int, *, inside: bool = False) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _TEXT:
            return self._text(LARGEST_JSON)
        if kind != _ARRAY or inside:
            raise PretrainedError(
                f'{self._file}: {self._what} is of type {kind}, expected 0 to 12, and no array '
                'within an array'
            )
        of, count = self._number('<u4'), self._number('<u8')
        if of in _SCALARS:
            return np.frombuffer(
                self._take(count * np.dtype(_SCALARS[of]).itemsize), _SCALARS[of]
            ).tolist()
        if count * 8 > len(self._data) - self._at:
            raise PretrainedError(
                f'{self._file} is damaged: {self._what} has {count} texts, expected at most '
                'those the file has room for'
            )
        return [self._value(of, inside=True) for _ in range(count)]
