"""Calls that must be refused, as a table of what their messages say."""

from collections.abc import Callable, Mapping

import pytest

Call = Callable[[], object]


def check_refused(calls: Mapping[str, Call], error: type[Exception] = ValueError) -> None:
    """Each call raises an error whose message matches the pattern that stands for it."""
    for message, call in calls.items():
        with pytest.raises(error, match=message):
            call()


def refused(
    calls: Mapping[str, Call | tuple[Call, ...]], error: type[Exception] = ValueError
) -> Callable[..., None]:
    """A test of `check_refused`, with one case for each call.

    Args:
      calls: pattern -> the call, or several calls that raise the same.
      error: the class of the errors.
    """
    cases = [
        pytest.param(message, call, id=message)
        for message, given in calls.items()
        for call in (given if isinstance(given, tuple) else (given,))
    ]

    @pytest.mark.parametrize('message, call', cases)
    def test(message, call):
        check_refused({message: call}, error)

    return test
