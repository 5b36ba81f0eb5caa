"""Writes the file that `posenc_jax/attention/decisions.py` reads."""

import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any

from posenc_jax.attention import decisions
from posenc_jax.attention.decisions import Decision


def _plain(one: Decision) -> dict[str, Any]:
    found = dataclasses.asdict(one)
    return {'class': found.pop('encodings'), **found}


def write(place: pathlib.Path, kind: str, measured: str, made: list[Decision]) -> str:
    """Writes decisions for a kind of device. Those for other kinds, classes, widths and dtypes
    stay. A file that cannot be read, such as one of another version, gets another name.

    Returns:
      A sentence that says where a file that cannot be read lies now, or ''.

    Raises:
      OSError: the file cannot be written.
    """
    devices, said = {}, ''
    try:
        devices = decisions.read(place) if place.exists() else {}
    except ValueError as error:
        names = (place.with_name(f'{place.name}.bak{n or ""}') for n in itertools.count())
        kept = next(name for name in names if not name.exists())
        place.replace(kept)
        said = f'{str(error).partition("; write it anew")[0]}, so it lies at {kept} now.'
    of = lambda one: (one.encodings, one.width, one.dtype)
    before = devices.get(kind, {'decisions': []})['decisions']
    kept = [one for one in before if of(one) not in map(of, made)]
    devices[kind] = {'measured': measured, 'decisions': kept + made}
    plain = {
        name: {**device, 'decisions': [_plain(one) for one in device['decisions']]}
        for name, device in devices.items()
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f'{place.name}.{os.getpid()}')
    text = json.dumps({'version': decisions.VERSION, 'devices': plain}, indent=1)
    part.write_text(text + '\n', encoding='utf-8')
    part.replace(place)  # a training that starts reads the file before or the one after
    return said
