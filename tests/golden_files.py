"""Numbers from elsewhere, in `tests/golden/`; each file says where they come from."""

import dataclasses
import inspect
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

Row = Callable[..., Any] | tuple[Callable[..., Any], dict[str, float]]


def golden(name: str) -> dict[str, Any]:
    """What the file of a method holds."""
    return json.loads((pathlib.Path(__file__).parent / 'golden' / f'{name}.json').read_text())


@dataclasses.dataclass(frozen=True)
class Suite:
    """The numbers of a golden file; `suite | rows` is a test with one case for each of them."""

    name: str
    tolerance: dict[str, float]

    def __or__(self, rows: Mapping[str, Row]) -> Callable[..., None]:
        content = golden(self.name)
        content = content.get('values', content)
        cases = [
            pytest.param(function, [around, *stars], expected, given, id='.'.join(map(str, path)))
            for pattern, row in rows.items()
            for function, given in [row if isinstance(row, tuple) else (row, self.tolerance)]
            for path, around, stars, expected in _found(content, pattern, self.name)
        ]

        @pytest.mark.parametrize('function, arguments, expected, given', cases)
        def test(function, arguments, expected, given):
            taken = len(inspect.signature(function).parameters)
            _compare(function(*arguments[:taken]), expected, {'rtol': 0.0, **given})

        return test


def golden_suite(name: str, rows: Mapping[str, Row] | None = None, **tolerance: float) -> Any:
    """A test that compares results with the numbers of a golden file, one case for each of them.
    A table of several lines may stand behind it: `golden_suite('alibi', rtol=1e-6) | {...}`.

    Args:
      name: of the file, whose numbers may stand under its key 'values'.
      rows: the path of a number or of an array in the file, such as 'log.probabilities', and the
        function that computes it. The function gets the object around the number, and then what
        each '*' in the path stands for: a key, or the index in a list. Arrays must have the shape
        of those in the file; a single number there stands for every entry of a result. A row with
        a tolerance of its own is a pair (function, {'atol': ...}). null in the file stands for
        -inf.
      tolerance: rtol and atol of all other rows; without any, the numbers must be equal.
    """
    suite = Suite(name, tolerance)
    return suite if rows is None else suite | rows


def _found(content: Any, pattern: str, name: str) -> Iterator[tuple[list, Any, list, Any]]:
    """Path, object around it, keys that a star stands for, and number of all that match."""
    found = [([], content, [], content)]
    for key in pattern.split('.'):
        found = [
            ([*path, own], here, [*stars, own] if key == '*' else stars, here[own])
            for path, _, stars, here in found
            for own in (
                _keys(here) if key == '*' else [int(key) if isinstance(here, list) else key]
            )
        ]
    assert found, f'{name}.json has nothing at {pattern}'
    yield from found


def _keys(here: Any) -> list:
    return list(range(len(here))) if isinstance(here, list) else list(here)


def _compare(result: Any, expected: Any, given: Mapping[str, float]) -> None:
    """Compares numbers within a tolerance, and strings, booleans and nested lists exactly."""
    array = np.asarray(expected, object)
    numbers = all(x is None or isinstance(x, int | float) for x in array.ravel())
    if not numbers:
        assert _plain(result) == expected
        return
    array = np.where(array == None, -np.inf, array).astype(float)  # noqa: E711
    result = np.asarray(result, float)
    if array.ndim or not result.size:
        assert result.shape == array.shape
    np.testing.assert_allclose(result, array, **given)


def _plain(result: Any) -> Any:
    return result.tolist() if hasattr(result, 'tolist') else result
