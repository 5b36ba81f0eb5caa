"""Calls that must be refused, and what their messages say."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest


def check_refused(calls: Mapping[str, Callable[[], Any]]) -> None:
    """Each call raises a ValueError whose message matches the pattern that stands for it."""
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
