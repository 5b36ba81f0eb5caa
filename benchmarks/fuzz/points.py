"""Folders of clouds of points: NumPy files with damaged headers, dtypes, shapes and numbers, and
trees of other forms.
"""

import dataclasses
import io
import os
import pathlib
import pickle
import random
import struct

import numpy as np

from benchmarks.fuzz.damage import SIZES, changed_bytes, file_name, odd_file, odd_tree
from benchmarks.fuzz.target import CANARY, Target
from posenc_jax.lab.config import defaults
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.lab.tasks.task import SPLITS

ENDING = '.npy'
DTYPES = ('f2', '<f4', '>f8', 'f8', 'f8', 'f8', 'f16', 'i1', 'u8', '>i4', '?', 'c8', 'c16', 'S3',
    'U2', 'V5', 'M8[s]', 'm8[D]', 'O', [('x', 'f8'), ('y', 'f8')])  # fmt: skip
SHAPES = ((6, 3), (6, 3), (6, 3), (3, 6), (6, 2), (18,), (), (0, 3), (6, 0), (6, 3, 1), (2, 3),
    (1, 1, 6, 3), (1,) * 32)  # fmt: skip
NUMBERS = (float('nan'), float('inf'), float('-inf'), 1e308, -1e308, 1e-310, 1e20, 0.0, 2.0**63)
WORDS = ("'descr'", "'fortran_order'", "'shape'", "'<f8'", 'False', '(6, 3)', '3', "'", ',', '{',
    '}', ': ')  # fmt: skip
INSTEAD = ('(1000000000000, 3)', '(-1, 3)', '(6, -3)', '(6, 3.0)', '(True, 3)', '(10**20, 3)', '()',
    '[6, 3]', "'6'", 'None', 'True', '1', "'O'", "'|O'", "'f4'", "'<f999'", "'<i7'",
    "'<U2147483647'", "[('x', '<f8')]", '(' * 5000, '-' * 5000, ' ' * 60_000, '\\', '\0', '\n', '#',
    'é', '10' * 3000, "__import__('os')", '')  # fmt: skip


class Marking:
    """Makes a file when it is read from a pickle."""

    def __init__(self, mark: pathlib.Path):
        self._mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self._mark,)


@dataclasses.dataclass(frozen=True)
class Given:
    """The spec string of a task, what is read of it, the folder that code in a file would make, and
    what was done to the files.
    """

    spec: str
    split: str
    length: int
    mark: pathlib.Path
    what: tuple[str, ...]


def prepare(folder: pathlib.Path) -> None:
    for name in ('cube', 'ball'):
        for number in range(3):
            (folder / name).mkdir(exist_ok=True)
            np.save(folder / name / f'{number}.npy', points(np.random.default_rng(number)))


def points(rng: np.random.Generator, shape: tuple[int, ...] = (6, 3)) -> np.ndarray:
    return rng.normal(size=shape)


def array(rng: random.Random, mark: pathlib.Path) -> tuple[bytes, str]:
    """A whole file of an array that a cloud may not be."""
    shape, kind = rng.choice(SHAPES), rng.choice(DTYPES)
    drawn = points(np.random.default_rng(rng.randrange(100)), shape)
    number = rng.choice(NUMBERS)
    if rng.random() < 0.5:
        flat = np.array(drawn).reshape(-1)
        flat[: rng.choice((1, 3, 1000))] = number
        kind, found = 'f8', flat.reshape(shape)
    elif kind == 'O':
        found = np.full(shape, Marking(mark), object)
    else:
        with np.errstate(all='ignore'):
            found = np.zeros(shape, kind) if isinstance(kind, list) else (9 * drawn).astype(kind)
    file = io.BytesIO()
    np.save(file, np.asfortranarray(found) if rng.random() < 0.2 else found)
    return file.getvalue(), f'{kind} {shape} {number}'


def header(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A file whose header has other words, or another version or length."""
    size = struct.unpack('<H', data[8:10])[0]
    text, body, version = data[10 : 10 + size].decode('latin1'), data[10 + size :], b'\x01\0'
    what = ''
    for _ in range(rng.choice((1, 1, 2))):
        word, new = rng.choice(WORDS), rng.choice(INSTEAD)
        text, what = text.replace(word, new, 1), f'{what}{word} is {new[:20]!r}, '
    coded = text.encode('latin1', 'replace')
    if rng.random() < 0.2 or len(coded) >= 2**16:
        version = rng.choice((b'\x02\0', b'\x03\0', b'\x02\0', b'\0\0', b'\xff\xff'))
        coded = text.encode('utf-8') if version == b'\x03\0' else coded
    length = len(coded) if rng.random() < 0.9 else rng.choice(SIZES)
    long = version[0] >= 2
    packed = struct.pack('<I' if long else '<H', length % (2**32 if long else 2**16))
    return data[:6] + version + packed + coded + body, what


def harm(rng: random.Random, path: pathlib.Path, mark: pathlib.Path, beside: pathlib.Path) -> str:
    """Puts other content in the place of a file; what was done."""
    data = path.read_bytes() if path.is_file() and path.stat().st_size < 2**20 else b''
    match rng.randrange(10):
        case 0 | 1 | 2:
            data, what = array(rng, mark)
        case 3 | 4 | 5 if len(data) > 10:
            data, what = header(rng, data)
        case 6:
            return odd_file(rng, path, beside)
        case 7:
            data, what = pickle.dumps(Marking(mark)), 'a pickle'
        case _:
            data, what = changed_bytes(rng, data, near=100), 'bytes'
    if path.is_symlink() or not path.is_file():
        return 'nothing'
    path.write_bytes(data)
    if rng.random() < 0.03:
        os.truncate(path, 2**42)
        what += ', and terabytes of zeros'
    return what


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> Given:
    root = own / (file_name(rng) if rng.random() < 0.1 else 'clouds')
    canary = own.with_name(CANARY)
    what = odd_tree(rng, good, root, ENDING, canary)
    files = sorted(path for path in root.rglob('*') if path.is_file()) if root.is_dir() else []
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4)) if files else 0):
        what += (harm(rng, rng.choice(files), own / 'mark', canary),)
    options = rng.choice(
        ('', '', ', centred=False', ", order='hilbert'", ", order='z'", ', size=1e-300')
    )
    spec = f'points_folder(path={str(root)!r}{options})'
    split, length = rng.choice(SPLITS), rng.choice((4, 4, 4, 1, 6, 7, 2**20))
    return Given(spec, split, length, own / 'mark', (root.name, options, *what))


def read(given: Given) -> None:
    try:
        config = defaults.get_config().unlock()
        config.task = given.spec
        task = make_task(config)
        data = task.dataset(length=given.length, batch_size=2, seed=0, split=given.split)
        assert np.isfinite(data[0]['vectors']).all(), 'numbers were read that are not finite'
    finally:
        assert not given.mark.exists(), 'code that was in a file was executed'


TARGET = Target(
    make=make,
    read=read,
    prepare=prepare,
    show=lambda given: f'{given.what}, {given.split}, {given.length}',
)
