"""Tokenizers of public checkpoints, and what they make of a text. Whatever the library behind them
raises ends as one line.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from posenc_jax.model.pretrained.fields import PretrainedError, read_json, shown
from posenc_jax.model.pretrained.tokenizer_json import check_tokenizer_json, kind_of_model


class UnknownTokenizerError(PretrainedError):
    """A tokenizer of a kind that is not read; the weights beside it may be."""


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
    """Errors of the library, panics among them, as one line that begins with `what`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, PretrainedError):
        raise
    except (
        BaseException
    ) as error:  # the library raises bare Exceptions, and panics that are not even these
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PretrainedError(f'{what}: {reason[:300]}') from None


def read_tokenizer(file: pathlib.Path) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json, which neither pads nor cuts.

    Raises:
      PretrainedError: something in the file that the library does not read, or does not survive.
    """
    import tokenizers

    found = read_json(file)
    check_tokenizer_json(found, file)
    # What is checked is what is read. Texts are padded and cut by who reads them, so a file has no
    # say in it.
    found |= {
        'padding': None,
        'truncation': None,
        'model': {'type': kind_of_model(found['model']), **found['model']},
    }
    with one_line(f'{file} is not a tokenizer'):
        return tokenizers.Tokenizer.from_str(json.dumps(found, ensure_ascii=False))


class Reader:
    """Reads texts with a tokenizer.

    Args:
      tokenizer: a `tokenizers.Tokenizer`.
      where: the checkpoint, for messages.
    """

    def __init__(self, tokenizer: Any, where: object):
        self._tokenizer, self._where = tokenizer, where

    def encode(self, text: str, *, around: bool = False) -> Any:
        """A `tokenizers.Encoding`.

        Args:
          text: to be read.
          around: with the tokens that stand in front of a text and behind it.

        Raises:
          PretrainedError: the library fails on this text, or makes no token of it.
        """
        with one_line(f'{self._where}: the tokenizer fails on the text {shown(text)}'):
            found = self._tokenizer.encode(text, add_special_tokens=around)
        if text and not found.ids:
            raise PretrainedError(
                f'{self._where}: the tokenizer makes no token of the text {shown(text)} '
                f'({len(text)} characters), expected at least '
                'one; its normalizer removes all of it, or its vocabulary has none of it'
            )
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included.

        Raises:
          PretrainedError: the library fails on them.
        """
        with one_line(f'{self._where}: the tokenizer fails on the tokens {shown(list(ids))}'):
            return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def check_tokenizer(tokenizer: Any, vocab_size: int, where: object) -> None:
    """Whether every id that a tokenizer gives, also around a text, is a row of the embedding table;
    it may give fewer.

    Raises:
      PretrainedError: names the largest id and the size of the table.
    """
    largest = max(
        (*tokenizer.get_vocab().values(), *Reader(tokenizer, where).encode('', around=True).ids),
        default=-1,
    )
    if largest >= vocab_size:
        raise PretrainedError(
            f'{where}: the tokenizer has ids up to {largest}, the vocabulary of the model ends '
            f'at {vocab_size - 1}'
        )
