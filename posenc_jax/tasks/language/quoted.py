"""Texts whose lines are quoted again further on, so that a reader gains from what is far away."""

import bisect
from collections.abc import Sequence

import numpy as np

SHORTEST, LONGEST = 16, 48  # bytes of a line without indentation
NEAREST, FARTHEST = 32, 8192  # bytes from a quotation back to what it quotes
MARK = b'> '


def quoted(documents: Sequence[bytes], seed: int = 0) -> list[bytes]:
    """The lines of documents of `SHORTEST` to `LONGEST` bytes, and quotations of earlier ones.

    Behind every other line, by chance, comes a quotation: '> ' and an earlier line. The logarithm
    of the distance back to that line is uniform between those of `NEAREST` and `FARTHEST` bytes.
    So a model that reads twice as far sees the sources of as many more quotations, up to
    `FARTHEST`. The source may lie in an earlier document.

    Example:
      >>> quoted([b'def first_function():\\n    return None\\ndef second_function():'])[0]
      b'def first_function():\\ndef second_function():\\n> def first_function():\\n'
    """
    rng = np.random.default_rng(seed)
    starts, sources, written, texts = [], [], 0, []
    for document in documents:
        parts, begin = [], written
        for line in map(bytes.strip, document.splitlines()):
            if not SHORTEST <= len(line) <= LONGEST:
                continue
            starts.append(written)
            sources.append(line)
            parts.append(line + b'\n')
            written += len(parts[-1])
            back = np.exp(rng.uniform(np.log(NEAREST), np.log(FARTHEST)))
            source = bisect.bisect(starts, written - back) - 1
            if rng.random() < 0.5 and source >= 0:
                parts.append(MARK + sources[source] + b'\n')
                written += len(parts[-1])
        if written > begin:
            texts.append(b''.join(parts))
    return texts
