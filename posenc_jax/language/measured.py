"""Measurements of methods: `posenc_jax/costs.csv` has time and memory (docs/performance.md), and
`posenc_jax/verdicts.csv` the verdicts of the claims of papers (docs/claims.md).
"""

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

_FOLDER = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found of a claim.

    Attributes:
      claim: its id, such as 'B5'.
      key: of the method.
      verdict: one word or two, which docs/claims.md explains.
      effect: its mean and range, and what was allowed or how much counts.
      compared: what the effect is a difference of.
    """

    claim: str
    key: str
    verdict: str
    effect: str
    compared: str


@functools.cache
def verdicts() -> Mapping[str, Verdict]:
    """All measured claims, by id. `python -m evidence.claims` writes the file.

    Example:
      >>> verdicts()['B5'].key
      'kerple'
    """
    return {row['claim']: Verdict(**row) for row in _rows('verdicts.csv')}


@functools.cache
def costs() -> tuple[Mapping[str, str], ...]:
    """The rows of `costs.csv`. The keys of a row are those of all methods that were timed together;
    a method may have a row in each of several settings.
    """
    return tuple(_rows('costs.csv'))


def cost(keys: Sequence[str]) -> Mapping[str, str]:
    """The row of methods that were timed together, or else of the dearest one of them; {} if
    neither they nor each of them were timed. A row with a decoding time precedes one without.

    Example:
      >>> cost(['fox'])['setting']
      'two layers'
    """
    if own := _row(' '.join(keys)):
        return own
    rows = [_row(key) for key in keys]
    return max(rows, key=lambda row: float(row['step'])) if rows and all(rows) else {}


def cells(row: Mapping[str, str]) -> tuple[str, str, str]:
    """Time of a train step and of decoding over that of the plain model, and MiB; '' if unknown."""
    if not row:
        return '', '', ''
    return f'{row["step"]}x of `{row["base"]}`', row['decode'] and f'{row["decode"]}x', row['mib']


def cost_text(row: Mapping[str, str]) -> str:
    """A row in words; '' for an empty one."""
    step, decode, mib = cells(row)
    memory = mib and f' and {mib} MiB of temporary memory'
    return step and f'A train step takes {step}{memory}{decode and ", decoding "}{decode}.'


def claims_of(key: str) -> list[Verdict]:
    """The measured claims of a method.

    Example:
      >>> [found.claim for found in claims_of('cable')]
      ['B10', 'B11', 'B28']
    """
    return [found for found in verdicts().values() if found.key == key]


def _row(key: str) -> Mapping[str, str]:
    found = [row for row in costs() if row['keys'] == key]
    return max(found, key=lambda row: bool(row['decode']), default={})


def _rows(name: str) -> list[dict[str, str]]:
    with (_FOLDER / name).open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))
