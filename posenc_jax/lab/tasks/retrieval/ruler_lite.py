"""A part of RULER that needs no downloads: needles in a haystack, chains of variables, and words
that are counted.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np

from posenc_jax.lab.tasks.retrieval.ruler_texts import OTHERS, Form, Text, needles
from posenc_jax.lab.tasks.retrieval.text import TextRetrieval
from posenc_jax.lab.tasks.task import Length
from posenc_jax.protocol.bounds import Ge, Le, Share
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

NEEDLES = ('niah_single', 'niah_multikey', 'niah_multivalue', 'niah_multiquery')
NAMES = (*NEEDLES, *OTHERS)
MOST_NEEDLES = 64


@register('ruler_lite', kind='task')
@dataclasses.dataclass(frozen=True)
class RulerLite(TextRetrieval):
    """A question about a long text, one of seven tests; the task length is T, the width of the
    input.

    | name | hidden in the text | answer |
    | --- | --- | --- |
    | `niah_single` | a value of one key | the value |
    | `niah_multikey` | a value of each of several keys | the value of the first |
    | `niah_multivalue` | several values of one key | all of them, in the order of the text |
    | `niah_multiquery` | a value of each of several keys | all of them, in the order asked |
    | `variable_tracking` | `VAR A = 12345`, then `VAR B = VAR A` and so on | all five names |
    | `common_words` | 10 words 30 times, others 3 times, in a numbered list | the 10 words |
    | `freq_words` | coded words with counts of a zeta law, and `...` | ranks 2 to 4 |

    The text has as much filler as fits, see `TextRetrieval`: lines of one sentence, needles of
    other keys, or further words. The answer is scored under teacher forcing, so its items have one
    order; common words come by their first occurrence, and coded words by their counts. RULER's own
    score is `string_match_all` of decoded answers, which `evaluation.decoded` measures.

    Differs from the paper: seven of its tests, none of which needs a download, so essays are no
    haystack; the words of prompts and keys are ours; and exact match beside the paper's score.

    Args:
      name: the test.
      tokenizer: a Hugging Face directory with `tokenizer.json`, or a `.gguf` file; default: bytes.
      depth: where the first hidden line lies, 0 (first) to 1 (last); None draws its place
        uniformly, as the places of all other lines. The later lines of a chain follow it.
      needles: how many keys or values the tests with several have.
      values: 'numbers' of seven digits or 'uuids'.
      haystack: 'noise' or 'needles' of other keys.

    Raises:
      SpecError: an option that the test does not have.
      ValueError: a length too short for the text with the least filler; the message gives the
        shortest possible one.

    Reference: Hsieh, Sun, Kriman, Acharya, Rekesh, Jia, Ginsburg, "RULER: What's the Real Context
    Size of Your Long-Context Language Models?", arXiv 2404.06654; official code NVIDIA/RULER.

    Example:
      >>> task = RulerLite('niah_multivalue', needles=2)
      >>> ((prompt, references),) = task.questions(np.random.default_rng(0), 1, 800)
      >>> len(references), all(prompt.count(f'is: {value}.') == 1 for value in references)
      (2, True)
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=800)
      >>> answer = task.decode(batch['targets'][0][batch['loss_mask'][0] > 0])
      >>> answer == f' {references[0]}, {references[1]}'
      True
    """

    name: Literal[*NAMES]
    tokenizer: str | None = None
    depth: Share | None = None
    needles: Annotated[int, Ge(2), Le(MOST_NEEDLES)] | None = None
    values: Literal['numbers', 'uuids'] = 'numbers'
    haystack: Literal['noise', 'needles'] = 'noise'

    NEEDLES: ClassVar[int] = 4  # unless `needles` is given

    def __post_init__(self):
        super().__post_init__()
        several = NEEDLES[1:]
        if self.needles is not None and self.name not in several:
            raise SpecError(
                f'{self.name} has a fixed number of hidden lines; needles is an option of '
                f'{", ".join(several)}'
            )
        if self.name not in NEEDLES and (self.values, self.haystack) != ('numbers', 'noise'):
            raise SpecError(
                f'{self.name} has no needles; values and haystack are options of '
                f'{", ".join(NEEDLES)}'
            )
        if self.depth is not None and not self._form.lines:
            raise SpecError(
                f'{self.name} asks about the whole text, so it has no depth; leave depth out'
            )

    @property
    def fewest(self) -> int:
        return self._form.fewest

    @property
    def _form(self) -> Form:
        if self.name in OTHERS:
            return OTHERS[self.name]
        several = self.needles or self.NEEDLES
        keys, values, asked = {
            'niah_single': (1, 1, 1),
            'niah_multikey': (several, 1, 1),
            'niah_multivalue': (1, several, 1),
            'niah_multiquery': (several, 1, several),
        }[self.name]
        return needles(keys, values, asked, self.values, self.haystack)

    def example(self, rng):
        return int(rng.integers(2**62)), rng.random(self._form.lines)

    def places(self, units):
        return units + 1 if self._form.lines else 1

    def text(self, example, units, place):
        found = self._written(example, units, place)
        return found.prompt, found.answer

    def _written(self, example, units, place) -> Text:
        seed, drawn = example
        if not self._form.lines:
            return self._form.write(seed, units, ())
        places = np.floor(drawn * (units + 1)).astype(int)
        if self._form.in_order and self.depth is None:
            places = np.sort(places)
        elif self._form.in_order:
            later = place + np.floor(np.sort(drawn[1:]) * (units + 1 - place)).astype(int)
            places = np.array([place, *later])
        else:
            places[0] = place
        return self._form.write(seed, units, places.tolist())

    def questions(
        self, rng: np.random.Generator, batch: int, length: Length
    ) -> list[tuple[str, tuple[str, ...]]]:
        """Prompts and the references of their answers: those of `sample` with the same `rng`."""
        given = self.filled(rng, batch, *self.range(length))
        texts = [self._written(*each) for each in given]
        return [(found.prompt, found.references) for found in texts]


def string_match_all(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The mean share of the references of an output that occur in it, times 100; upper and lower
    case are the same.

    Raises:
      ValueError: not as many outputs as lists of references, or none.
    """
    if len(outputs) != len(references) or not outputs:
        raise ValueError(
            f'every output needs its references, got {len(outputs)} outputs and '
            f'{len(references)} lists of references'
        )
    shares = [
        np.mean([reference.lower() in output.lower() for reference in own])
        for output, own in zip(outputs, references)
    ]
    return 100 * float(np.mean(shares))
