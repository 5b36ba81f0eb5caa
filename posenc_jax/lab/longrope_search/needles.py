"""Texts with a needle: a number at the beginning of a text that a question at its end asks for."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.config.protocols import Windows

DIGITS = 7
NEEDLE = b'The special magic number is %d. Remember it.\n'
QUESTION = b'\nWhat is the special magic number? The special magic number is'
ANSWER = b' %d'


def needle_windows(
    encode: Callable[[bytes], Int[np.ndarray, ' _']],
    stream: Int[np.ndarray, ' N'],
    windows: Windows,
    seed: int = 0,
) -> tuple[Int[np.ndarray, ' M'], Windows]:
    """A stream of texts with a needle, and windows that score the tokens of its answer alone.

    In each window of a text, a sentence with a number of seven digits takes the place of the first
    tokens, and a question with the answer that of the last ones. So the answer is told from a
    sentence that is as far away as the window allows.

    Args:
      encode: bytes as token ids, without tokens that begin a document.
      stream: token ids of a text.
      windows: full windows of the text.
      seed: draws the numbers.

    Returns:
      The token ids of all windows, one after the other, and the windows in them.

    Raises:
      ValueError: windows without room for a token between needle and question.

    Example:
      >>> encode = lambda text: np.frombuffer(text, np.uint8)
      >>> own = Windows(128, np.array([0, 200]), np.full(2, 128), np.full(2, 128))
      >>> texts, windows = needle_windows(encode, np.full(400, 46), own)
      >>> len(texts), windows.scored.tolist(), bytes(texts[-8:].astype(np.uint8))[:1]
      (258, [8, 8], b' ')
    """
    rng = np.random.default_rng(seed)
    texts, scored = [], []
    for start in windows.start:
        number = int(rng.integers(10 ** (DIGITS - 1), 10**DIGITS))
        needle, answer = encode(NEEDLE % number), encode(ANSWER % number)
        end = np.concatenate([encode(QUESTION), answer])
        room = windows.length + 1 - len(needle) - len(end)
        if room < 1:
            raise ValueError(
                f'longrope search: a needle, its question and a token between them take '
                f'{len(needle) + len(end) + 1} tokens, windows of length {windows.length} hold '
                f'{windows.length + 1}; use a longer length'
            )
        between = stream[start + len(needle) : start + len(needle) + room]
        texts.append(np.concatenate([needle, between, end]))
        scored.append(len(answer))
    starts = np.arange(len(texts)) * (windows.length + 1)
    return np.concatenate(texts), Windows(
        windows.length, starts, np.full(len(texts), windows.length), np.array(scored)
    )
