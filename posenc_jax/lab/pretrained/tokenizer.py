"""Tokenizers of public checkpoints. Every error of the library `tokenizers` becomes a
`PretrainedError` of one line.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from posenc_jax.base import extras
from posenc_jax.base.programs import printable
from posenc_jax.lab.pretrained.fields import PretrainedError, read_json, shown
from posenc_jax.lab.pretrained.tokenizer_json import check_tokenizer_json, kind_of_model


class UnknownTokenizerError(PretrainedError):
    """A tokenizer of a kind that is not supported. The weights of the checkpoint may still be
    readable.
    """


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns errors and panics of the library into a `PretrainedError` of one line that begins with
    `what`.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, PretrainedError):
        raise
    # The library raises plain Exceptions, and its panics are not subclasses of Exception.
    except BaseException as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PretrainedError(f'{what}: {printable(reason[:300])}') from None


def read_tokenizer(file: pathlib.Path) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json, without padding and truncation.

    Raises:
      PretrainedError: the library cannot read the file, or might crash or hang on it.
    """
    with extras.explained():
        import tokenizers

    found = read_json(file)
    check_tokenizer_json(found, file)
    # The library receives the object that was checked, not the file. Padding and truncation are
    # removed, because the code that reads texts pads and cuts them.
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
        """The tokens of a text, as a `tokenizers.Encoding`.

        Args:
          text: the text.
          around: with the special tokens in front of and behind a text.

        Raises:
          PretrainedError: the library fails on this text, or a text that is not empty gets no
            token.
        """
        with one_line(f'{self._where}: the tokenizer fails on the text {shown(text)}'):
            found = self._tokenizer.encode(text, add_special_tokens=around)
        if text and not found.ids:
            raise PretrainedError(
                f'{self._where}: the tokenizer makes no token of the text {shown(text)} '
                f'({len(text)} characters), expected at least one; its normalizer removes all of '
                'it, or its vocabulary has none of it'
            )
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, including special tokens.

        Raises:
          PretrainedError: the library fails on these tokens.
        """
        with one_line(f'{self._where}: the tokenizer fails on the tokens {shown(list(ids))}'):
            return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def check_tokenizer(tokenizer: Any, vocab_size: int, where: object) -> None:
    """Refuses a tokenizer with ids outside the vocabulary of the model, also among the tokens that
    it puts around a text. The tokenizer may have fewer ids than the model.

    Raises:
      PretrainedError: names the largest id and the last id of the model.
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
