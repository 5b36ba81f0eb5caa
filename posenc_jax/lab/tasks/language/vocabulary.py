"""The meaning of token ids: bytes, or the tokens of a public model."""

import functools
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from posenc_jax.base import extras

BOS = 256


class Vocabulary(Protocol):
    """Text as token ids, and back."""

    size: int
    bytes_of: Int[np.ndarray, ' V'] | None

    def encode(self, text: bytes, *, begins: bool = True) -> Int[np.ndarray, ' L']:
        """The token ids of a text, behind those that begin a document unless `begins` is false."""
        ...

    def decode(self, ids: Int[np.ndarray, ' L']) -> str: ...

    def starts(self, text: bytes) -> Int[np.ndarray, ' L']:
        """The index of the character at which each token of `encode` begins; 0 for tokens that are
        put in front of the text.
        """


class Bytes:
    """The 256 bytes, and `BOS` in front of every text."""

    size = BOS + 1
    bytes_of = np.append(np.ones(BOS, np.int64), 0)

    def encode(self, text, *, begins=True):
        front = np.full(int(begins), BOS, np.int32)
        return np.concatenate([front, np.frombuffer(text, np.uint8)])

    def decode(self, ids):
        return b''.join(b'<bos>' if i == BOS else bytes([i]) for i in map(int, ids)).decode(
            errors='replace'
        )

    def starts(self, text):
        first = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80  # bytes that begin a character
        return np.append(0, np.cumsum(first) - 1)


class Tokens:
    """The vocabulary of a public checkpoint.

    `encode` keeps the tokens that the tokenizer puts in front of a text (`<s>` of Llama), but not
    those that it puts behind.

    Args:
      path: the checkpoint, a Hugging Face directory with `tokenizer.json` or a `.gguf` file.

    Raises:
      PretrainedError: no tokenizer, or one that cannot be used with this checkpoint.
    """

    def __init__(self, path: str):
        from posenc_jax.lab.pretrained.config_fields import FIELDS
        from posenc_jax.lab.pretrained.fields import PretrainedError, check
        from posenc_jax.lab.pretrained.sources import open_source
        from posenc_jax.lab.pretrained.tokenizer import Reader, check_tokenizer

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

    def encode(self, text, *, begins=True):
        front = self._front if begins else []
        return np.asarray(front + self._reader.encode(text.decode()).ids, np.int32)

    def decode(self, ids):
        return self._reader.decode([int(i) for i in ids])

    def starts(self, text):
        offsets = self._reader.encode(text.decode()).offsets
        return np.asarray([0] * len(self._front) + [begin for begin, _ in offsets])


def _bytes_of(tokenizer: Any, size: int) -> Int[np.ndarray, ' V'] | None:
    """The number of bytes of each token id, 0 for special tokens; None if not byte-level.

    A byte-level vocabulary writes one character per byte. Others do not tell the number of bytes.
    """
    with extras.explained():
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
    """`Bytes` if there is no path, else the `Tokens` of the checkpoint at the path."""
    return Tokens(path) if path else Bytes()
