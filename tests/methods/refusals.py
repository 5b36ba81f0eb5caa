"""Calls that must raise, as a table."""

from collections.abc import Callable, Mapping

import pytest

Call = Callable[[], object]


def refused(
    calls: Mapping[str, Call | tuple[Call, ...]], error: type[Exception] = ValueError
) -> Callable[..., None]:
    """A test that every call raises an error whose message matches the pattern before the call.

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
        with pytest.raises(error, match=message):
            call()

    return test
