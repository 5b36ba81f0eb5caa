"""Runs a program in this process as a user would start it, and checks what it prints."""

import contextlib
import functools
import io
from collections.abc import Callable
from unittest import mock

from benchmarks.fuzz.target import controls
from posenc_jax.base.programs import WRONG_INPUT
from posenc_jax.lab.cluster.cluster import ERRORS, failed
from posenc_jax.lab.config import listing

# The fields of a config, for `--help`, which no try changes.
_described = functools.cache(listing.described)


class RefusedError(ValueError):
    """A program has ended with one line and status 2."""


def run(main: Callable[[list[str]], int | None], *arguments: str) -> str:
    """Calls the `main` of a program, and returns what it printed.

    Raises:
      RefusedError: it refused its input; the message is the line.
      AssertionError: it ended with another status, with other than one line, or printed control
        characters.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(listing, 'described', _described),
    ):
        try:
            status = main(list(arguments)) or 0
        except SystemExit as error:
            status = error.code
    check_printed(out.getvalue())
    said = err.getvalue()
    if status == WRONG_INPUT:
        # `problem` looks at the line.
        raise RefusedError(said)
    check_printed(said)
    assert status == 0, f'the program ended with status {status}: {said[:300]!r}'
    return out.getvalue() + said


def refusing(work: Callable[[], object]) -> None:
    """Does the work of a program, and turns its errors into one line as all programs do; for
    programs whose `main` would take too long. Raises as `run`.
    """

    def main(_: list[str]) -> int:
        try:
            work()
        except ERRORS as error:
            return failed('program', error)
        return 0

    run(main)


def check_printed(text: str) -> None:
    """Raises AssertionError for control characters other than the ends of lines."""
    found = controls(text.replace('\n', ''))
    assert not found, f'control characters were printed: {found!r} in {text[:300]!r}'
