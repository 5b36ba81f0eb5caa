"""Parts of the full tier: the whole tier takes an hour, so a commit runs one part of it."""

import argparse
import zlib

Part = tuple[int, int]  # K, N


def part(text: str) -> Part:
    """The value of `--part`.

    Raises:
      argparse.ArgumentTypeError: it is not K/N with K from 0 to N - 1.
    """
    try:
        number, parts = map(int, text.split('/'))
    except ValueError:
        number, parts = 0, 0
    if not 0 <= number < parts:
        raise argparse.ArgumentTypeError(f'expected K/N with K from 0 to N - 1, got {text!r}')
    return number, parts


def is_in(nodeid: str, asked: Part) -> bool:
    """Whether a test belongs to a part. Tests of one function with the same first parameter belong
    to the same one, because they share what they compile.
    """
    number, parts = asked
    return zlib.crc32(nodeid.split('-')[0].encode()) % parts == number
