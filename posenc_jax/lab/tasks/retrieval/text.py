"""Retrieval in plain text: as much filler as fits into a number of tokens, and a hidden text at a
chosen depth.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.language.vocabulary import Vocabulary, open_vocabulary
from posenc_jax.lab.tasks.prompt import Drawn, PromptTask, ragged
from posenc_jax.protocol.bounds import Share

_PROBE = 8  # units of filler whose tokens are counted to estimate how many fit
_SAMPLED = 16  # examples whose fixed text is measured; its number of tokens varies with the draw


class TextRetrieval(PromptTask):
    """A prompt with units of filler, and an answer; the task length is T, the width of the input.

    The prompt has as many units of filler as fit: prompt and answer have at most T + 1 tokens, and
    the rest of the row is padding. Loss on the answer alone. The last token of the answer is a
    target only. Without a tokenizer the tokens are bytes, with `BOS` in front.

    Prompt and answer are encoded together, and no token may span both. Then all answer tokens are
    right under teacher forcing exactly if greedy decoding from the prompt writes these tokens.

    Attributes:
      tokenizer: see `Language`.
      depth: where the hidden text lies, 0 (first) to 1 (last); None draws its place uniformly.
      fewest: the least number of units of filler.
    """

    tokenizer: str | None
    depth: Share | None
    fewest: ClassVar[int]

    names = ()  # those of `vocabulary`
    padding = 0
    counted = 'length for the fixed text of this task {0._read_by}'

    def __post_init__(self):
        open_vocabulary(self.tokenizer)

    @abc.abstractmethod
    def example(self, rng: np.random.Generator) -> Any:
        """Draws everything that is random in an example, apart from the depth."""

    @abc.abstractmethod
    def places(self, units: int) -> int:
        """How many places there are for the hidden text among `units` units of filler."""

    @abc.abstractmethod
    def text(self, example: Any, units: int, place: int) -> tuple[str, str]:
        """(prompt, answer) with the hidden text at place 0 <= place < places(units)."""

    @property
    def vocabulary(self) -> Vocabulary:
        return open_vocabulary(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        return self.vocabulary.decode(ids)

    @property
    def shortest(self) -> int:
        rng = np.random.default_rng(0)
        sizes = [
            len(self._encode(''.join(self.text(self.example(rng), self.fewest, 0))))
            for _ in range(_SAMPLED)
        ]
        return max(sizes) - 1

    @property
    def _read_by(self) -> str:
        return f'read by {self.tokenizer}' if self.tokenizer else 'in bytes'

    def draw(self, rng, batch, low, high):
        rows = [self._row(*given) for given in self.filled(rng, batch, low, high)]
        return Drawn(*([ragged(side)] for side in zip(*rows)))

    def filled(
        self, rng: np.random.Generator, batch: int, low: int, high: int
    ) -> list[tuple[Any, int, int]]:
        """The arguments of `text` for the examples of a batch: as much filler as fits."""
        sizes = rng.integers(low, high, batch, endpoint=True).tolist()
        return [self._fill(rng, size + 1) for size in sizes]

    def _fill(self, rng, room):
        example, drawn = self.example(rng), rng.random()

        def given(units):
            places = self.places(units)
            at_depth = lambda depth: int(depth * (places - 1) + 0.5)
            place = int(drawn * places) if self.depth is None else at_depth(self.depth)
            return example, units, place

        size = lambda units: len(self._encode(''.join(self.text(*given(units)))))
        return given(_most(size, self.fewest, room))

    def _row(self, *given):
        """The token ids of a prompt and of its answer."""
        prompt, answer = self.text(*given)
        ids, told = self._encode(prompt + answer), self._encode(prompt)
        if not np.array_equal(ids[: len(told)], told):
            raise ValueError(
                f'{self.tokenizer} has a token across the end of the prompt {prompt[-20:]!r} and '
                f'the answer {answer!r}, so teacher forcing cannot score greedy decoding from the '
                'prompt; use another tokenizer'
            )
        return told, ids[len(told) :]

    def _encode(self, text):
        return self.vocabulary.encode(text.encode())


def _most(size: Callable[[int], int], fewest: int, room: int) -> int:
    """The largest number of units, at least `fewest`, whose `size` is at most `room`."""
    fixed = size(fewest)
    if fixed > room:
        raise ValueError(
            f'this example needs a length of {fixed - 1} with the least filler, got {room - 1}'
        )
    units = fewest + (room - fixed) * _PROBE // (size(fewest + _PROBE) - fixed)
    while size(units) > room:
        units -= 1
    while size(units + 1) <= room:
        units += 1
    return units
