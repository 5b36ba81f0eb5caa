"""Calls that must raise, as a table."""

from collections.abc import Callable, Mapping

import pytest


def refused(calls: Mapping[str, Callable]) -> Callable[[str], None]:
    """A test that every call raises a ValueError that matches the pattern before it."""

    @pytest.mark.parametrize('message', calls)
    def test(message):
        with pytest.raises(ValueError, match=message):
            calls[message]()

    return test
