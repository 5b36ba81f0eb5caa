"""Fixtures of this folder."""

from tests.lab.runs.saved_runs import run, saved  # noqa: F401
