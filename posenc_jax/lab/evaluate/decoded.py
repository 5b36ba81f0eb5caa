"""Answers that a model decodes: whether they are the targets of a batch, or which references occur
in them.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from posenc_jax.lab.config.answers import check_decodable
from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.decoding.generate import pad_left
from posenc_jax.lab.evaluate.generator import Generator, generator
from posenc_jax.lab.model.inputs import source_of
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.runs.problem import SEED
from posenc_jax.lab.tasks.retrieval.ruler_lite import RulerLite, string_match_all
from posenc_jax.lab.tasks.task import batch_rng
from posenc_jax.protocol.errors import check_choice

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
    mesh: Mesh | None = None,
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
      mesh: as for `generator`.

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
    new = _greedy(generator(model, mesh), ids, valid, max_new_tokens, rows, decoding)
    outputs = tuple(map(task.decode, new))
    references = tuple(own for _, own in asked)
    return Decoded(string_match_all(outputs, references), outputs, references)


def decoded_rows(
    new_tokens: Generator, batch: dict[str, np.ndarray], rows: int
) -> Bool[np.ndarray, 'B M']:
    """Decodes the answers of a batch greedily, each behind the tokens before it, and behind its
    source where the batch has one.

    This differs from the first choices of one pass where a method sees other keys while it decodes
    than in one pass over the whole text, e.g. `lm_infinite(top_k=...)`.

    Args:
      new_tokens: see `generator`; of a decoder, or an encoder-decoder.
      batch: a batch of a task that predicts the next token, see `answers.check_decodable`.
      rows: how many answers are decoded at once.

    Returns:
      Whether each token of an answer is its target, in the order of `score_rows`; M is the largest
      number of tokens of an answer.

    Raises:
      ValueError: the batch has positions of its own, or answers in several pieces.
    """
    check_decodable(batch)
    mask = batch['loss_mask'] > 0
    count, first = mask.sum(axis=1), mask.argmax(axis=1)
    ids, valid = pad_left([row[: at + 1] for row, at in zip(batch['tokens'], first)])
    longest = int(count.max())
    sources = {name: array for name, array in batch.items() if name.startswith('source')}
    new = _greedy(new_tokens, ids, valid, longest, rows, sources=sources)
    column = first[:, None] + np.arange(longest)
    targets = np.take_along_axis(
        batch['targets'], np.minimum(column, batch['targets'].shape[1] - 1), axis=1
    )
    return new == targets


def _greedy(
    new_tokens: Generator,
    ids: Int[np.ndarray, 'B T'],
    valid: Bool[np.ndarray, 'B T'],
    count: int,
    rows: int,
    decoding: Decoding | None = None,
    sources: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Int[np.ndarray, 'B {count}']:
    """The `count` most probable tokens behind each prompt, for `rows` prompts at once. `sources`
    are the entries of a batch about its source, if it has one.
    """
    rows, decoded = min(rows, len(ids)), []
    for first in range(0, len(ids), rows):
        own = np.minimum(np.arange(first, first + rows), len(ids) - 1)  # one shape, one compilation
        source = source_of({name: array[own] for name, array in sources.items()})
        new = new_tokens(
            ids[own],
            valid=valid[own],
            max_new_tokens=count,
            temperature=0.0,
            decoding=decoding,
            source=source,
        )
        decoded.append(new[: len(ids) - first])
    return np.concatenate(decoded)
