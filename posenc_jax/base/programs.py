"""The output of programs of this package, and the status with which they end."""

import pathlib
import sys

# Exit status where something must change before the same command works: the input, a file, or a
# full disk.
WRONG_INPUT = 2


def program(name: str) -> str:
    """The name of this program in its messages: that of the command `posenc-...` if one that pip
    installed has started it, otherwise the given one.
    """
    called = pathlib.PurePath(sys.argv[0]).stem
    return called if called.startswith('posenc-') else name


def printable(text: object) -> str:
    r"""A text as a terminal may show it: on one line, with escapes for control characters, line
    breaks and all else that is not printed.

    Names of files and texts from files are made by others. Printed raw, their control characters
    would move the cursor, or hide and forge lines.

    Example:
      >>> printable('two\nlines, \x1b[31mred, \u202ebackwards')
      'two\\nlines, \\x1b[31mred, \\u202ebackwards'
    """
    return ''.join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(text))
