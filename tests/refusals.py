"""Calls that must be refused, as a table of what their messages say."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest

Call = Callable[[], object]
Calls = Mapping[str, Call | tuple[Call, ...]]


def check_refused(calls: Mapping[str, Call], error: type[Exception] = ValueError) -> None:
    """Each call raises an error whose message matches the pattern that stands for it."""
    for message, call in calls.items():
        with pytest.raises(error, match=message):
            call()


@dataclasses.dataclass(frozen=True)
class Refused:
    """`refused() | calls` is a test with one case for each call."""

    error: type[Exception]

    def __or__(self, calls: Calls) -> Callable[..., None]:
        cases = [
            pytest.param(message, call, id=message)
            for message, given in calls.items()
            for call in (given if isinstance(given, tuple) else (given,))
        ]

        @pytest.mark.parametrize('message, call', cases)
        def test(message, call):
            check_refused({message: call}, self.error)

        return test


def refused(calls: Calls | None = None, error: type[Exception] = ValueError) -> Any:
    """A test of `check_refused`, with one case for each call. A table of several lines may stand
    behind it: `refused() | {...}`.

    Args:
      calls: pattern -> the call, or several calls that raise the same.
      error: the class of the errors.
    """
    return Refused(error) if calls is None else Refused(error) | calls
