"""Documents and their division into train, validation and test (90/5/5)."""

import hashlib
from collections.abc import Mapping
from typing import Protocol

from posenc_jax.core.registry import check_choice
from posenc_jax.tasks.task import SPLITS

CUTS = (0.90, 0.95)


class Corpus(Protocol):
    """Where text comes from: `description` says so in one line for the log, `documents` reads one split."""

    @property
    def description(self) -> str: ...

    def documents(self, split: str) -> list[bytes]: ...


def split_of(name: str) -> str:
    """The split of a document: its name's SHA-256 as a fraction, cut at 0.90 and 0.95.

    Documents keep their split when others are added or removed.

    Example:
      split_of('json/decoder.py')
      # 'train'
    """
    fraction = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big') / 2**64
    return SPLITS[sum(fraction >= cut for cut in CUTS)]


def split_documents(documents: Mapping[str, bytes], split: str) -> list[bytes]:
    """The documents of a split, in the order given; a single document is cut into contiguous parts instead.

    Raises:
      SpecError: unknown split.
    """
    check_choice('split', split, SPLITS)
    if len(documents) == 1:
        (text,) = documents.values()
        bounds = [0, *(int(cut * len(text)) for cut in CUTS), len(text)]
        part = SPLITS.index(split)
        return [text[bounds[part] : bounds[part + 1]]]
    return [text for name, text in documents.items() if split_of(name) == split]


def as_text(value: str | bytes, where: str) -> bytes:
    """`value` as UTF-8 bytes, checked to be text.

    Raises:
      ValueError: undecodable bytes or a NUL byte; `where` names the culprit.
    """
    data = value.encode() if isinstance(value, str) else bytes(value)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'{where} is not text: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8') from None
    if (nul := data.find(0)) >= 0:
        raise ValueError(f'{where} is not text: byte {nul} is NUL')
    return data
