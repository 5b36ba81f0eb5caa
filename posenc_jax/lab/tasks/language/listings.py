"""Listings: a generated text in which far context helps.

A document is a sequence of entries of two characters, a name and its value, such as `q4`. The value
of a name stays the same in a document and differs between documents. So a reader knows the value of
every name that it has met, however long ago. Common names recur within tens of characters, and rare
ones after thousands, so the loss of a good reader falls up to contexts of thousands of characters.
"""

import functools
import string

import numpy as np

NAMES = sorted(set(map(chr, range(33, 127))) - set(string.digits))  # 84 printable characters
DOCUMENTS, ENTRIES = 600, 8192
EXPONENT = 1.3  # the rank of a name to this power is proportional to the distance between two uses


@functools.cache
def listings() -> dict[str, bytes]:
    """600 documents of 8192 entries, 10 MB, the same every time.

    In each document the names have another order of frequency and other values.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    frequency = np.arange(1, len(NAMES) + 1) ** -EXPONENT
    letters, digits = (
        np.array([ord(c) for c in text], np.uint8) for text in (NAMES, string.digits)
    )
    documents = {}
    for number in range(DOCUMENTS):
        order = rng.permutation(len(NAMES))
        values = rng.choice(digits, len(NAMES))
        name = order[rng.choice(len(NAMES), ENTRIES, p=frequency / frequency.sum())]
        entries = np.stack([letters[name], values[name]], axis=1)
        documents[f'listing/{number:03}'] = entries.tobytes()
    return documents
