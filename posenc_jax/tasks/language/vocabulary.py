"""What token ids stand for: bytes, or the tokens of a public model."""

import functools
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

BOS = 256


class Vocabulary(Protocol):
    """Text as token ids, and back."""

    size: int
    bytes_of: Int[np.ndarray, ' V'] | None

    def encode(self, text: bytes) -> Int[np.ndarray, ' L']: ...

    def decode(self, ids: Int[np.ndarray, ' L']) -> str: ...

    def starts(self, text: bytes) -> Int[np.ndarray, ' L']:
        """The character of the text at which each token of `encode` begins; 0 for what stands in
        front of it.
        """


class Bytes:
    """The 256 bytes, and `BOS` in front of every text."""

    size = BOS + 1
    bytes_of = np.append(np.ones(BOS, np.int64), 0)

    def encode(self, text):
        return np.append(BOS, np.frombuffer(text, np.uint8)).astype(np.int32)

    def decode(self, ids):
        return b''.join(b'<bos>' if i == BOS else bytes([i]) for i in map(int, ids)).decode(
            errors='replace'
        )

    def starts(self, text):
        first = (
            np.frombuffer(text, np.uint8) & 0xC0
        ) != 0x80  # of a character; the others continue it
        return np.append(0, np.cumsum(first) - 1)


class Tokens:
    """The vocabulary of a public checkpoint. What its tokenizer puts in front of a text stands
    there (`<s>` of Llama); nothing follows.

    Args:
      path: of the checkpoint.

    Raises:
      PretrainedError: it has no tokenizer, or one that the text cannot be read with.
    """

    def __init__(self, path: str):
        from posenc_jax.model.pretrained.config_fields import FIELDS
        from posenc_jax.model.pretrained.fields import PretrainedError, check
        from posenc_jax.model.pretrained.sources import open_source
        from posenc_jax.model.pretrained.tokenizer import Reader, check_tokenizer

        source = open_source(path)
        tokenizer = source.tokenizer()
        if tokenizer is None:
            raise PretrainedError(f'{path} has no tokenizer.json, so no text can be read for it')
        self.size = check(
            source.config.get('vocab_size'), FIELDS['vocab_size'], source.described_in, 'vocab_size'
        )
        check_tokenizer(tokenizer, self.size, path)
        self.bytes_of = _bytes_of(tokenizer, self.size)
        self._reader = Reader(tokenizer, path)
        around, plain = self._reader.encode('a', around=True).ids, self._reader.encode('a').ids
        self._front = around[
            : next(i for i in range(len(around)) if around[i : i + len(plain)] == plain)
        ]

    def encode(self, text):
        return np.asarray(self._front + self._reader.encode(text.decode()).ids, np.int32)

    def decode(self, ids):
        return self._reader.decode([int(i) for i in ids])

    def starts(self, text):
        offsets = self._reader.encode(text.decode()).offsets
        return np.asarray([0] * len(self._front) + [begin for begin, _ in offsets])


def _bytes_of(tokenizer: Any, size: int) -> Int[np.ndarray, ' V'] | None:
    """Byte-level vocabularies write one character per byte; special tokens stand for none. Others
    do not say.
    """
    from tokenizers import decoders

    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return None
    lengths = np.zeros(size, np.int64)
    for token, i in tokenizer.get_vocab().items():
        lengths[i] = len(token)
    lengths[[i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]] = 0
    return lengths


@functools.lru_cache(maxsize=4)
def open_vocabulary(path: str | None) -> Vocabulary:
    """`Bytes` without a path, else the `Tokens` of the checkpoint there."""
    return Tokens(path) if path else Bytes()
