"""Documents and their division into train, validation and test (90/5/5)."""

import hashlib
from collections.abc import Mapping
from typing import Protocol

from posenc_jax.lab.tasks.task import SPLITS
from posenc_jax.protocol.errors import check_choice

CUTS = (0.90, 0.95)
TOKEN = 4  # bytes of a token, of which a byte of text is at most one
SMALLEST = 0.01  # documents stay whole if every split then has at least this share of the bytes


class Corpus(Protocol):
    """A source of text: `description` is one line for the log, `documents` reads one split."""

    @property
    def description(self) -> str: ...

    def documents(self, split: str) -> list[bytes]: ...


def split_of(name: str) -> str:
    """The split of a document: the SHA-256 of its name, as a fraction, is cut at 0.90 and 0.95.

    Documents keep their split when others are added or removed, unless there are so few that each
    is cut (`cuts_documents`).
    """
    fraction = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big') / 2**64
    return SPLITS[sum(fraction >= cut for cut in CUTS)]


def cuts_documents(sizes: Mapping[str, int]) -> bool:
    """Whether a split by name leaves a part with less than 1 % of the bytes, so that each document
    is cut in three instead.
    """
    parts = dict.fromkeys(SPLITS, 0)
    for name, size in sizes.items():
        parts[split_of(name)] += size
    return min(parts.values()) < SMALLEST * sum(parts.values())


def split_bytes(sizes: Mapping[str, int], split: str) -> int:
    """The bytes of the documents of a split, from the sizes of all: about as many where each
    document is cut.
    """
    if not cuts_documents(sizes):
        return sum(size for name, size in sizes.items() if split_of(name) == split)
    low, high = (0, *CUTS, 1)[SPLITS.index(split) :][:2]
    return round((high - low) * sum(sizes.values()))


def split_documents(documents: Mapping[str, bytes], split: str) -> list[bytes]:
    """The documents of a split, in the order given.

    If `cuts_documents`, these are parts of all documents: the first 90 % of each are for training,
    the next 5 % for validation and the last 5 % for test.

    Raises:
      SpecError: unknown split.
    """
    check_choice('split', split, SPLITS)
    if not cuts_documents({name: len(text) for name, text in documents.items()}):
        return [text for name, text in documents.items() if split_of(name) == split]
    low, high = (0, *CUTS, 1)[SPLITS.index(split) :][:2]
    return [text[_place(text, low) : _place(text, high)] for text in documents.values()]


def _place(text: bytes, share: float) -> int:
    """The first place behind this share of the bytes at which a character of UTF-8 begins."""
    place = int(share * len(text))
    while place < len(text) and text[place] & 0xC0 == 0x80:
        place += 1
    return place


def as_text(value: str | bytes, where: str) -> bytes:
    """`value` as UTF-8 bytes, checked to be text.

    Raises:
      ValueError: undecodable bytes or a NUL byte; the message begins with `where`.
    """
    data = value.encode() if isinstance(value, str) else bytes(value)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{where} is not text: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8'
        ) from None
    if (nul := data.find(0)) >= 0:
        raise ValueError(f'{where} is not text: byte {nul} is NUL')
    return data
