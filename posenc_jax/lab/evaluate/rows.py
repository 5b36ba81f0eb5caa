"""The rows of results.json, which others may have written: the types and ranges of their fields."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, get_args

from posenc_jax.lab.evaluate.measurement import BY_PLANE, Measurement, is_share
from posenc_jax.lab.evaluate.series import OWN, RunResult
from posenc_jax.protocol.errors import quoted

IN_A_ROW = tuple(f.name for f in dataclasses.fields(Measurement) if f.name != 'groups')
_KINDS = {
    f.name: get_args(f.type) or (f.type,)
    for owner, names in ((Measurement, IN_A_ROW), (RunResult, OWN))
    for f in dataclasses.fields(owner)
    if f.name in names
}
_ROUNDING = 1e-6
_AT_LEAST = {'length': 1, 'train_length': 1, 'tokens': 0, 'samples': 0, 'parameters': 0}


def checked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its fields, of which older versions wrote fewer; an infinite value is null there.

    Raises:
      ValueError: a field of another type, or out of its range.

    Example:
      >>> checked({'length': 64, 'value': None})
      {'length': 64, 'value': inf}
      >>> checked({'length': '64', 'value': 1.5})
      Traceback (most recent call last):
      ValueError: length is '64'
    """
    found = {**row, 'value': math.inf if row['value'] is None else row['value']}
    for name, value in found.items():
        kinds = _KINDS.get(name)
        if kinds and float in kinds and type(value) is int:
            found[name] = value = float(value)
        wrong = kinds and type(value) not in kinds
        if wrong or type(value) is int and not _AT_LEAST.get(name, -(2**63)) <= value < 2**63:
            raise ValueError(f'{name} is {quoted(value)}')
    if (found.get('low') is None) != (found.get('high') is None):
        raise ValueError('low and high are not both null')
    placed = [found.get(name) is not None for name in ('position_low', 'position_high')]
    if found.get('protocol') in ('per_position', BY_PLANE):
        if not all(placed):
            raise ValueError(f'{found["protocol"]} has no positions')
    elif any(placed):
        raise ValueError(f'{quoted(found.get("protocol"))} has positions')
    for name in ('value', 'low', 'high') if is_share(found.get('protocol', '')) else ():
        if not -_ROUNDING <= (found.get(name) or 0) <= 1 + _ROUNDING:
            raise ValueError(f'{name} of {quoted(found["protocol"])} is {found[name]}, not a share')
    return found
