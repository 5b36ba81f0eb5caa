"""The score of answers that a model decodes, by the references that occur in them."""

import dataclasses

import numpy as np

from posenc_jax.core.registry import check_choice
from posenc_jax.decoding.decoding import Decoding
from posenc_jax.decoding.generate import generate, pad_left
from posenc_jax.model.transformer import Transformer
from posenc_jax.run.job import SEED
from posenc_jax.tasks.retrieval.ruler_lite import RulerLite, string_match_all
from posenc_jax.tasks.task import batch_rng

_SPARE = 8  # tokens beyond those of the longest true answer


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What a model answered.

    Attributes:
      score: the mean share of references in an answer, times 100; see `string_match_all`.
      outputs: the decoded answers.
      references: what each of them should contain.
    """

    score: float
    outputs: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]


def decoded_match(
    model: Transformer,
    task: RulerLite,
    length: int,
    *,
    samples: int = 20,
    rows: int = 4,
    split: str = 'test',
    max_new_tokens: int | None = None,
    decoding: Decoding | None = None,
) -> Decoded:
    """Decodes answers greedily and scores them as RULER does.

    The questions are those of exact match in an evaluation of this length and split.

    Args:
      model: a decoder with the vocabulary of the task.
      task: what is asked.
      length: the task length, in tokens.
      samples: how many questions.
      rows: how many of them are decoded at once.
      split: 'validation' or 'test'.
      max_new_tokens: the length of an answer; None for eight tokens more than the longest true
        answer has.
      decoding: what the cache keeps, see `generate`.

    Raises:
      SpecError: another split.
      ValueError: no samples or rows, or a length too short for the text.

    Example:
      decoded_match(model, RulerLite('niah_single', tokenizer=path), 1024, samples=8).score
    """
    check_choice('split', split, ('validation', 'test'))
    for name, value in (('samples', samples), ('rows', rows)):
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    vocabulary = task.vocabulary
    asked = task.questions(batch_rng(SEED, split, 0), samples, length)
    prompts = [vocabulary.encode(prompt.encode()) for prompt, _ in asked]
    if max_new_tokens is None:
        answers = (vocabulary.encode(f' {", ".join(own)}'.encode()) for _, own in asked)
        max_new_tokens = max(map(len, answers)) + _SPARE
    ids, valid = pad_left(prompts)
    outputs: list[str] = []
    for first in range(0, samples, rows):
        own = np.minimum(np.arange(first, first + rows), samples - 1)  # one shape, one compilation
        out = generate(
            model,
            ids[own],
            valid=valid[own],
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            decoding=decoding,
        )
        new = np.asarray(out)[: samples - first, ids.shape[1] :]
        outputs += [task.decode(row) for row in new]
    references = tuple(own for _, own in asked)
    return Decoded(string_match_all(outputs, references), tuple(outputs), references)
