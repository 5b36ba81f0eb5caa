"""Splits by whole documents, without copies between them."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, UInt64

from posenc_jax.lab.tasks.task import SPLITS
from posenc_jax.protocol.errors import check_choice, quoted

SHORTEST = 100  # bytes of a copy; shorter ones are phrases and names
SAME = 0.5  # of the bytes of a document: with more of them copied it is another one once more
TEST, RATE, MOST = 20, 0.05, 3  # 20 documents or 5 %, but at most a third of all
FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
INVERSE = pow(FACTOR, -1, 2**64)


def fingerprints(text: bytes) -> UInt64[np.ndarray, ' M']:
    """A number for each stretch of 100 bytes: its value as a polynomial of its bytes, modulo 2**64.

    Equal stretches have equal numbers, and different ones very rarely do.
    """
    letters = np.frombuffer(text, np.uint8).astype(np.uint64) + np.uint64(1)
    if len(text) < SHORTEST:
        return letters[:0]
    powers, inverses = (
        np.cumprod(np.full(len(text), factor, np.uint64), dtype=np.uint64)
        for factor in (FACTOR, INVERSE)
    )
    sums = np.cumsum(np.append(np.uint64(0), letters * powers), dtype=np.uint64)
    return (sums[SHORTEST:] - sums[:-SHORTEST]) * inverses[: len(text) - SHORTEST + 1]


def copied(texts: Iterable[bytes], others: Sequence[bytes]) -> list[Bool[np.ndarray, ' N']]:
    """Which bytes of each text lie in a stretch of at least 100 bytes that one of `others` has.

    Example:
      >>> song = b'la' * 60
      >>> [int(own.sum()) for own in copied([b'Sing: ' + song, song[:99]], [song])]
      [120, 0]
    """
    known = np.unique(np.concatenate([np.zeros(0, np.uint64), *map(fingerprints, others)]))
    found = []
    for text in texts:
        numbers = fingerprints(text)
        place = np.searchsorted(known, numbers)
        place[place == len(known)] = 0
        begins = np.flatnonzero(known[place] == numbers) if len(known) else place[:0]
        steps = np.bincount(begins, minlength=len(text) + 1)
        steps -= np.bincount(begins + SHORTEST, minlength=len(text) + 1)
        found.append(np.cumsum(steps)[:-1] > 0)
    return found


def without_copies(texts: Sequence[bytes], others: Sequence[bytes]) -> list[bytes]:
    """The texts without the lines that have a part in a copy of `others`, see `copied`."""
    return [_kept_lines(*pair) for pair in zip(texts, copied(texts, others))]


def _kept_lines(text, marked):
    if not marked.any():
        return text
    lines = text.splitlines(keepends=True)
    begins = np.cumsum([0, *map(len, lines)])[:-1]
    return b''.join(
        line for line, hit in zip(lines, np.logical_or.reduceat(marked, begins)) if not hit
    )


def split_names(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of the documents of each split.

    In the order of the SHA-256 of the names, the first 20 documents, or 5 % if these are more, but
    at most a third of all, are for test. Half as many follow for validation.

    Raises:
      ValueError: fewer than three documents.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(order) < len(SPLITS):
        raise ValueError(
            f'a split by whole documents needs at least 3 documents, got {len(order)}; "text:GLOB" '
            'cuts each file into three parts'
        )
    test = min(max(TEST, int(RATE * len(order))), len(order) // MOST)
    validation = test + max(test // 2, 1)
    return {
        'train': order[validation:], 'validation': order[test:validation], 'test': order[:test],
    }  # fmt: skip


def split_apart(documents: Mapping[str, bytes], split: str) -> list[bytes]:
    """The documents of a split, as `split_names` says, without copies between the splits.

    Test documents are whole. Lines that have a part in a copy of at least 100 bytes are left out:
    of the validation documents where a test document has them, and of the training documents
    where a test or validation document has them.

    Raises:
      SpecError: unknown split.
      ValueError: fewer than three documents; a document more than half of which is a copy of
        documents of another split.
    """
    check_choice('split', split, SPLITS)
    names = split_names(documents)
    texts = {part: [documents[name] for name in names[part]] for part in SPLITS}
    others = {'train': ('test', 'validation'), 'validation': ('test',), 'test': ()}[split]
    against = [text for part in others for text in texts[part]]
    found = []
    for name, text, marked in zip(names[split], texts[split], copied(texts[split], against)):
        if marked.sum() > SAME * len(text):
            raise ValueError(_in_two_splits(documents, names, split, others, name))
        found.append(_kept_lines(text, marked))
    return found


def _in_two_splits(documents, names, split, others, name):
    share = {
        (part, other): copied([documents[name]], [documents[other]])[0].mean()
        for part in others
        for other in names[part]
    }
    part, other = max(share, key=lambda key: share[key])
    return (
        f'the {split} document {quoted(name)} is in the {part} split too: {share[part, other]:.0%} '
        f'of its bytes are copies of {quoted(other)}; keep one of them'
    )
