"""Lock files: `training.lock`, `reading.lock` and those of searches and claims, with damaged
content, as links, pipes, folders and devices, held by another process or by none.
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import pathlib
import random
from collections.abc import Callable

from benchmarks.fuzz.damage import TEXTS, changed_bytes, changed_json, odd, odd_file
from benchmarks.fuzz.programs import check_printed
from benchmarks.fuzz.target import CANARY, Target
from posenc_jax.lab.files import lock
from posenc_jax.lab.runs.checkpoint import READERS
from posenc_jax.lab.train import loop

NOTES = b'These notes have the name of a lock.\n'
# One that lives, and numbers that no process has.
PROCESSES = (1, 2**22 + 1, 0, -1, 2**31, 2**64, 10**400, 1.5, True, None, '1', 'x', [1], {})


def _trained(path: pathlib.Path) -> None:
    with contextlib.ExitStack() as until:
        loop._hold(path.parent, until)


def _searched(path: pathlib.Path) -> None:
    with lock.hold(path, f'{path.name} is being searched', 'choose another --out'):
        pass


def _shared(path: pathlib.Path) -> None:
    with lock.sharing(path):
        pass


def _removed(path: pathlib.Path) -> None:
    with lock.alone(path):
        pass


# Use -> name of the file, and what is done. The first two refuse a lock that is held.
USES: dict[str, tuple[str, Callable[[pathlib.Path], None]]] = {
    'train': (loop.LOCK, _trained),
    'search': ('search.json.lock', _searched),
    'claims': ('claims.lock', _searched),
    'share': (READERS, _shared),
    'remove': (READERS, _removed),
    'offer': (READERS, lock.offer),
}
REFUSING = ('train', 'search', 'claims')


@dataclasses.dataclass(frozen=True)
class Given:
    """A lock file, what is done with it, what it is, whether another holds it, and whether its
    content must stay.
    """

    path: pathlib.Path
    use: str
    what: str
    held: bool
    kept: bool


def content(rng: random.Random) -> tuple[bytes, str]:
    """What a lock file holds, and what was done to it."""
    found: object = {
        'process': rng.choice(PROCESSES),
        'host': rng.choice(('a-host', *TEXTS)),
        'since': rng.choice(('2026-01-02 03:04:05+00:00', *TEXTS)),
    }
    match rng.randrange(8):
        case 0:
            found = changed_json(rng, found)
        case 1:
            return b'[' * rng.choice((500, 5000, 100_000)), 'brackets'
        case 2:
            return b'x' * rng.choice((1, 4096, 2**20)), 'letters'
        case 3:
            found = odd(rng)
        case 4:
            return NOTES, 'notes'
        case 5:
            return changed_bytes(rng, json.dumps({**found, 'process': 1}).encode()), 'bytes'
    return json.dumps(found, default=str).encode(), 'fields'


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> Given:
    use = rng.choice(sorted(USES))
    path = own / 'run' / USES[use][0]
    path.parent.mkdir()
    canary = own.with_name(CANARY)
    match rng.randrange(8):
        case 0 | 1:
            what = odd_file(rng, path, canary)
        case 2:
            os.link(canary, path)
            what = 'another name of a file'
        case 3:
            return Given(path, use, 'no file', False, False)
        case _:
            written, what = content(rng)
            path.write_bytes(written)
    regular = path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1
    held = regular and use != 'share' and rng.random() < 0.5
    return Given(path, use, what, held, what == 'notes')


def read(given: Given) -> None:
    with contextlib.ExitStack() as until, contextlib.redirect_stdout(io.StringIO()) as said:
        if given.held:
            holder = until.enter_context(given.path.open('rb'))
            fcntl.flock(holder, fcntl.LOCK_EX if given.use in REFUSING else fcntl.LOCK_SH)
        USES[given.use][1](given.path)
        assert not (given.held and given.use in REFUSING), 'a lock was taken that another holds'
    check_printed(said.getvalue())
    if given.kept:
        assert given.path.read_bytes() == NOTES, 'a file that is no lock was emptied'


TARGET = Target(
    make=make, read=read, show=lambda given: f'{given.use}: {given.what}, {given.held=}'
)
