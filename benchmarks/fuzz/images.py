"""Folders of pictures, and single pictures: damaged PNG and JPEG headers, wrong and huge sizes, odd
names, and trees of other forms.
"""

import dataclasses
import pathlib
import random
import shutil
import struct
import warnings
import zlib
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz.damage import changed_bytes, file_name, odd_file, odd_tree
from benchmarks.fuzz.target import CANARY, Target
from posenc_jax.lab.config import defaults
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.lab.tasks.field_task import FieldTask
from posenc_jax.lab.tasks.task import SPLITS

ENDING = '.png'
# Name of a file -> mode of its pixels. All are 9 pixels wide and 7 high.
FORMATS = {'l.png': 'L', 'rgb.png': 'RGB', 'rgba.png': 'RGBA', 'p.png': 'P', 'one.png': '1',
    'deep.png': 'I;16', 'rgb.jpg': 'RGB', 'l.jpg': 'L', 'cmyk.jpg': 'CMYK', 'p.gif': 'P',
    'rgb.bmp': 'RGB', 'rgb.ppm': 'RGB', 'f.tiff': 'F', 'rgb.tif': 'RGB', 'i.tif': 'I',
    'rgb.webp': 'RGB'}  # fmt: skip
# Of whole pictures of one colour, which take some kB as a file.
HUGE = ((13_000, 13_000), (2, 60_000), (60_000, 2), (3000, 3000), (1, 1))
SIDES = (0, 1, 2, 7, 8, 255, 4000, 13_000, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
# Chunks that a PNG file may have, two of them with 16 MiB of zeros.
EXTRA = (
    (b'zTXt', b'a\0\0' + zlib.compress(bytes(2**24))),
    (b'iCCP', b'a\0\0' + zlib.compress(bytes(2**24))),
    (b'tRNS', bytes(999)),
    (b'PLTE', bytes(4)),
    (b'acTL', bytes(8)),
    (b'eXIf', b'II*\0' + bytes(9)),
    (b'XXXX', b'x'),
)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def blank_png(columns: int, rows: int) -> bytes:
    """A whole PNG file of black pixels."""
    packer, row = zlib.compressobj(1), bytes(1 + columns)
    pixels = b''.join(packer.compress(row) for _ in range(rows)) + packer.flush()
    size = struct.pack('>IIBBBBB', columns, rows, 8, 0, 0, 0, 0)
    parts = (b'IHDR', size), (b'IDAT', pixels), (b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def picture(mode: str) -> Image.Image:
    """A picture of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 4), np.uint8)
    if mode == 'I;16':
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    return (
        Image.fromarray(noise, 'RGBA')
        .convert('RGB')
        .convert('L' if mode in 'FI' else 'RGB')
        .convert(mode)
    )


def prepare(folder: pathlib.Path) -> None:
    for name in ('formats', 'huge'):
        (folder / name).mkdir()
    for name, mode in FORMATS.items():
        picture(mode).save(folder / 'formats' / name)
    for columns, rows in HUGE:
        (folder / 'huge' / f'{columns}x{rows}.png').write_bytes(blank_png(columns, rows))
    for label in ('cat', 'dog'):
        (folder / 'tree' / label).mkdir(parents=True)
        for number, name in enumerate(('l.png', 'rgb.jpg', 'rgb.png')):
            target = folder / 'tree' / label / f'{number}{pathlib.Path(name).suffix}'
            shutil.copy(folder / 'formats' / name, target)


def changed_png(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A PNG file with another size or kind of pixels, or with chunks that are missing, twice,
    moved, of other names or with other content; their checksums are right.
    """
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack('>I', data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return data, 'nothing'
    place, other = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    kind, content = chunks[place]
    match rng.randrange(9):
        case 0 | 1 | 2 if len(chunks[0][1]) >= 8:
            size = struct.pack('>II', rng.choice(SIDES), rng.choice(SIDES))
            chunks[0] = chunks[0][0], size + chunks[0][1][8:]
            what = f'size {struct.unpack(">II", size)}'
        case 3 if len(chunks[0][1]) == 13:
            kinds = [rng.choice((0, 1, 2, 3, 4, 6, 7, 16, 255)) for _ in range(5)]
            chunks[0] = chunks[0][0], chunks[0][1][:8] + bytes(kinds)
            what = f'kind of pixels {kinds}'
        case 4:
            del chunks[place]
            what = f'no {kind}'
        case 5:
            chunks[place], chunks[other] = chunks[other], chunks[place]
            what = f'{kind} at {other}'
        case 6:
            chunks.insert(place, chunks[other])
            what = f'{chunks[place][0]} twice'
        case 7:
            extra = rng.choice(EXTRA)
            chunks.insert(rng.randrange(1, len(chunks) + 1), extra)
            what = f'with {extra[0]}'
        case _:
            chunks[place] = kind, changed_bytes(rng, content)
            what = f'other {kind}'
    return data[:8] + b''.join(chunk(*part) for part in chunks), what


def changed_jpeg(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A JPEG file whose header of the frame says another size, precision or number of channels."""
    at = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2'))
    if at < 0 or len(data) < at + 10:
        return changed_bytes(rng, data, near=700), 'bytes'
    found, sides = bytearray(data), [rng.choice(SIDES) % 2**16 for _ in range(2)]
    match rng.randrange(4):
        case 0 | 1:
            found[at + 5 : at + 9] = struct.pack('>HH', *sides)
            return bytes(found), f'size {sides}'
        case 2:
            found[at + rng.choice((3, 4, 9))] = rng.choice((0, 1, 2, 4, 12, 255))
            return bytes(found), 'channels'
    found[at + 2 : at + 4] = struct.pack('>H', sides[0])
    return bytes(found), 'length of the frame'


def harm(rng: random.Random, path: pathlib.Path, good: pathlib.Path, beside: pathlib.Path) -> str:
    """Puts other content in the place of a picture; what was done."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 2**20:
        return 'nothing'
    data = path.read_bytes()
    match rng.randrange(20):
        case 0 | 1 | 2 | 3:
            other = good / 'formats' / rng.choice(sorted(FORMATS))
            data, what = other.read_bytes(), f'{other.name}, '
            if rng.random() < 0.6:
                data, what = changed_bytes(rng, data, near=100), f'{what}bytes'
        case 4:
            columns, rows = rng.choice(HUGE)
            path.unlink()
            path.symlink_to(good / 'huge' / f'{columns}x{rows}.png')
            return f'{columns} x {rows} pixels'
        case 5:
            return odd_file(rng, path, beside)
        case 6 | 7 | 8:
            data, what = changed_bytes(rng, data, near=100), 'bytes'
        case 9:
            data, what = (
                rng.choice(
                    (b'', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff', b'GIF89a', b'P6 9 9', b'<svg/>')
                ),
                'a beginning',
            )
        case _ if data[:2] == b'\xff\xd8':
            data, what = changed_jpeg(rng, data)
        case _:
            data, what = changed_png(rng, data)
    path.write_bytes(data)
    return what


@dataclasses.dataclass(frozen=True)
class Given:
    """The spec string of a task, what is read of it, and what was done to the files."""

    spec: str
    split: str
    side: int
    what: tuple[str, ...]


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> Given:
    canary, split = own.with_name(CANARY), rng.choice(SPLITS)
    if rng.random() < 0.4:  # one picture
        source = good / 'formats' / rng.choice(sorted(FORMATS))
        name = file_name(rng) if rng.random() < 0.2 else 'one'
        path = own / f'{name}{source.suffix}'
        shutil.copy(source, path)
        what = tuple(harm(rng, path, good, canary) for _ in range(rng.choice((0, 1, 1, 1, 2))))
        options = rng.choice(('', ', gray=True', ', bits=8', ', outside=0.2'))
        spec = f'picture(name={f"image:{path}"!r}{options})'
        spec = f'bit_planes(inner={spec})' if rng.random() < 0.2 else spec
        return Given(spec, split, rng.choice((1, 2, 4, 7, 8)), (path.name, *what))
    root = own / (file_name(rng) if rng.random() < 0.1 else 'pictures')
    what = odd_tree(rng, good / 'tree', root, ENDING, canary)
    files = sorted(path for path in root.rglob('*') if path.is_file()) if root.is_dir() else []
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4)) if files else 0):
        what += (harm(rng, rng.choice(files), good, canary),)
    options = rng.choice(('', '', ', grey=True', ', aspect=1.5'))
    return Given(
        f'folder(path={str(root)!r}{options})',
        split,
        rng.choice((1, 4, 8)),
        (root.name, options, *what),
    )


def read(given: Given) -> None:
    config = defaults.get_config().unlock()
    config.task = given.spec
    with warnings.catch_warnings():  # Pillow warns of what it passes over
        warnings.simplefilter('ignore')
        values = pixels(make_task(config), given)
    assert np.isfinite(values).all(), 'pixels were read that are not finite'


def pixels(task: Any, given: Given) -> np.ndarray:
    if isinstance(task, FieldTask):
        task.width(given.side)
        return task.evaluation_points(given.side).targets
    task.decode(np.arange(task.output_size))
    return task.dataset(length=given.side, batch_size=2, seed=0, split=given.split)[0]['image']


TARGET = Target(
    make=make,
    read=read,
    prepare=prepare,
    show=lambda given: f'{given.what}, {given.split}, {given.side}',
)
