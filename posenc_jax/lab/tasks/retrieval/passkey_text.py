"""Passkey retrieval in plain English, for models that have learned language."""

import dataclasses
from typing import Annotated, ClassVar

from posenc_jax.lab.tasks.retrieval.text import TextRetrieval
from posenc_jax.protocol.bounds import Le, Share, Size
from posenc_jax.protocol.registry import register

TASK = (
    'There is an important info hidden inside a lot of irrelevant text. Find it and memorize '
    'them. I will quiz you about the '
    'important information there.'
)
GARBAGE = (
    'The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.'
)
HIDDEN = 'The pass key is {0}. Remember it. {0} is the pass key.'
QUESTION = 'What is the pass key? The pass key is'


@register('passkey_text', kind='task')
@dataclasses.dataclass(frozen=True)
class PasskeyText(TextRetrieval):
    """A number hidden in repeated sentences, asked for at the end; the task length is T, the width
    of the input.

    The parts of the prompt are joined by spaces: `TASK GARBAGE^p HIDDEN GARBAGE^(n-p) QUESTION`,
    with the largest n for which prompt and answer have at most T + 1 tokens. The answer is the
    number after a space. With the same `rng`, all depths hide the same numbers. Follows Mohtashami
    and Jaggi, "Landmark Attention", arXiv 2305.16300. Digits that a model would write after the
    right ones are not scored.

    Args:
      tokenizer: a Hugging Face directory with `tokenizer.json`, or a `.gguf` file; default: bytes.
      digits: number of digits; the first digit is not 0.
      depth: where the number lies, 0 (p = 0) to 1 (p = n); None draws p uniformly.

    Raises:
      ValueError: a length too short for the text without garbage; the message gives the shortest
        possible one.

    Example:
      >>> import numpy as np
      >>> task = PasskeyText(depth=0.5)
      >>> batch = task.sample(np.random.default_rng(0), batch=4, length=512)
      >>> task.decode(batch['targets'][0][batch['loss_mask'][0] > 0])
      ' 86523'
    """

    tokenizer: str | None = None
    digits: Annotated[Size, Le(1000)] = 5
    depth: Share | None = None

    fewest: ClassVar[int] = 0

    def example(self, rng):
        digits = [rng.integers(1, 10), *rng.integers(0, 10, self.digits - 1)]
        return ''.join(map(str, digits))

    def places(self, units):
        return units + 1

    def text(self, example, units, place):
        garbage = [GARBAGE] * units
        parts = [TASK, *garbage[:place], HIDDEN.format(example), *garbage[place:], QUESTION]
        return ' '.join(parts), f' {example}'
