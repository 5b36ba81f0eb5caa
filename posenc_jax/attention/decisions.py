"""The file that says which form of attention is fastest on a kind of device.

`benchmarks/accelerator.py --decide` measures it and writes it, and `attend` reads it. It is JSON:

    {"version": 1,
     "devices": {"NVIDIA H100 80GB HBM3": {
       "measured": "2026-12-01, jax 0.10.2",
       "decisions": [{"class": "bias", "width": 128, "dtype": "bfloat16",
                      "form": "kernel", "block": [128, 64], "library": true}]}}}

A decision is for a class of encodings (`attention/policy.py`), a width of heads and a dtype of the
queries. `form` is 'kernel', 'hopper' (the kernel for GPUs of Hopper) or 'blocked', `block` the tile
of a kernel, and `library` whether a kernel of JAX is taken where one can serve.
"""

import dataclasses
import functools
import json
import os
import pathlib
import warnings
from collections.abc import Callable
from typing import Any

from posenc_jax.protocol.errors import check_choice, is_size, nearest, quoted

VERSION = 1
VARIABLE = 'POSENC_JAX_ATTENTION'
CLASSES = 'none', 'bias', 'products', 'look-up', 'carry'
FORMS = 'kernel', 'hopper', 'blocked'
_ANEW = f'write it anew by benchmarks/accelerator.py --decide, or set {VARIABLE}= for none'


@dataclasses.dataclass(frozen=True)
class Decision:
    """How attention of a class of encodings is computed; the module says what the fields mean."""

    encodings: str
    width: int
    dtype: str
    form: str
    block: tuple[int, int] | None = None
    library: bool = True


Devices = dict[str, dict[str, Any]]  # what the file has, by the kind of device


def path() -> pathlib.Path | None:
    """Where the file lies: what the environment variable `POSENC_JAX_ATTENTION` says, by default
    `posenc_jax/attention.json` in the folder of the user's settings. None if the variable is empty,
    for no file.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return pathlib.Path(given).expanduser() if given else None
    settings = os.environ.get('XDG_CONFIG_HOME') or '~/.config'
    return pathlib.Path(settings, 'posenc_jax', 'attention.json').expanduser()


def decision(
    kind: str | None, what: Callable[[], tuple[str, int, str]]
) -> tuple[Decision | None, str]:
    """The decision of the file, or None; and one line where it does not know the device, or ''.

    Args:
      kind: of the device; None if it is not known.
      what: gives the class of encodings, the width of the heads and the dtype of the queries.

    Raises:
      ValueError: one line: the file cannot be read, or the variable names one that does not exist.
    """
    place = path()
    if kind is None or place is None:
        return None, ''
    if not place.exists():
        if os.environ.get(VARIABLE):
            raise ValueError(f'{place}, which {VARIABLE} names, does not exist; {_ANEW}')
        return None, ''
    stat = place.stat()
    found = _read_once(place, stat.st_mtime_ns, stat.st_size)
    if isinstance(found, str):
        raise ValueError(found)
    if kind not in found:
        return None, f'{place} knows no device {kind!r}; {nearest(kind, found)}'
    own = what()
    same = lambda one: (one.encodings, one.width, one.dtype) == own
    return next(filter(same, found[kind]['decisions']), None), ''


@functools.lru_cache(maxsize=8)
def _read_once(place: pathlib.Path, *_: int) -> Devices | str:
    try:
        return read(place)
    except ValueError as error:
        warnings.warn(f'attend: {error}', stacklevel=2)
        return str(error)


def read(place: pathlib.Path) -> Devices:
    """What the file has, with its decisions as `Decision`s.

    Raises:
      ValueError: one line: it cannot be read, is of another version, or has something else than a
        decision where one belongs.
    """
    try:
        found = json.loads(place.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f'{place} cannot be read ({str(error).splitlines()[0]}); {_ANEW}'
        ) from None
    try:
        version = found.get('version') if isinstance(found, dict) else None
        if type(version) is not int or version != VERSION:
            raise ValueError(f'version must be {VERSION}, got {quoted(version)}')
        devices = _of(found, 'devices', dict, 'the file')
        return {kind: _device(kind, device) for kind, device in devices.items()}
    except ValueError as error:
        raise ValueError(f'{place}: {error}; {_ANEW}') from None


def _of(holder: Any, name: str, kind: type, where: str) -> Any:
    found = holder.get(name) if isinstance(holder, dict) else None
    if type(found) is not kind:
        names = {dict: 'an object', list: 'a list', str: 'a text', int: 'a number'}
        raise ValueError(f'{where} needs {names[kind]} {name!r}, got {quoted(found)}')
    return found


def _device(kind: str, device: Any) -> dict[str, Any]:
    where = f'the device {quoted(kind)}'
    listed = _of(device, 'decisions', list, where)
    decisions = [_decision(one, f'decision {n} of {where}') for n, one in enumerate(listed, 1)]
    return {'measured': _of(device, 'measured', str, where), 'decisions': decisions}


def _decision(one: Any, where: str) -> Decision:
    encodings, dtype, form = (_of(one, name, str, where) for name in ('class', 'dtype', 'form'))
    check_choice(f'class of {where}', encodings, CLASSES)
    check_choice(f'form of {where}', form, FORMS)
    block, library = one.get('block'), one.get('library', True)
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(map(is_size, block))
    ):
        raise ValueError(f'block of {where} must be two sizes or null, got {quoted(block)}')
    if not isinstance(library, bool):
        raise ValueError(f'library of {where} must be true or false, got {quoted(library)}')
    width = _of(one, 'width', int, where)
    tile = None if block is None else (block[0], block[1])
    return Decision(encodings, width, dtype, form, tile, library)
