"""Masked language modelling: tell tokens of a text that are hidden, from both sides."""

import dataclasses
import functools
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Bool, Int

from posenc_jax.lab.tasks.language.language import Language
from posenc_jax.lab.tasks.task import Batch, Length, Reader, Task, check_sample, rows_of
from posenc_jax.protocol.bounds import Gt, Le
from posenc_jax.protocol.registry import register

MASK = '[MASK]'  # the mask in readable text
MASKED, RANDOM = 0.8, 0.1  # shares of the chosen tokens; the others keep their id


def chosen_tokens(
    rng: np.random.Generator, counts: Int[np.ndarray, ' B'], width: int, rate: float
) -> Bool[np.ndarray, 'B width']:
    """Of each row's first `counts` places, `rate` of them, rounded, but at least one."""
    draw = np.where(np.arange(width) < counts[:, None], rng.random((len(counts), width)), 2.0)
    rank = np.argsort(np.argsort(draw, axis=1), axis=1)
    return rank < np.maximum(1, np.rint(rate * counts))[:, None]


def hidden_tokens(
    rng: np.random.Generator,
    tokens: Int[np.ndarray, 'B T'],
    chosen: Bool[np.ndarray, 'B T'],
    size: int,
) -> Int[np.ndarray, 'B T']:
    """The tokens, ids below `size`, with most of the chosen ones hidden: 80 % of these become the
    mask id, which is `size`, 10 % a random token, and 10 % stay.
    """
    action, other = rng.random(tokens.shape), rng.integers(0, size, tokens.shape)
    replaced = np.where(action < MASKED, size, np.where(action < MASKED + RANDOM, other, tokens))
    return np.where(chosen, replaced, tokens)


@register('masked_text', kind='task')
@dataclasses.dataclass(frozen=True, init=False)
class MaskedText(Task):
    """Masked language modelling; the task length is T, the number of tokens of a window.

    Rows are windows at random places of the stream of all documents of a split. Of a row, 15 % of
    the tokens, rounded and at least one, are chosen uniformly without replacement. Of the chosen
    ones, 80 % are replaced by the mask id, 10 % by a token drawn uniformly from all ids, and 10 %
    stay. The targets are the original tokens, and the chosen ones bear loss. The mask id is the
    number of the ids of the text, so the inputs have one id more than the targets. The model must
    see the whole row, so it is an encoder.

    With a range of lengths each row has a length drawn uniformly from it; `valid` is False on the
    rest. For rows of one length set `train.min_length` to `train.length`. A batch depends only on
    (seed, split, index); validation and test data are endless and draw windows from their own
    documents, so that the fixed examples of an evaluation exist at every length that the documents
    have.

    Follows Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers
    for Language Understanding", arXiv 1810.04805. Differs from the paper: no next sentence
    prediction, masks are drawn anew for every row, and the tokens that begin a document are chosen
    like all others.

    Args:
      dataset, data_dir, feature, tokenizer: the text, as for `language`.
      rate: share of the tokens that are chosen.

    Raises:
      SpecError: an unknown data set, with the nearest one.
      FileNotFoundError: no matching file, or a data set that is not prepared.
      ValueError: a split that is shorter than one window; a file that is not text.

    Example:
      >>> task = MaskedText('pydoc_topics')
      >>> batch = task.dataset(length=40, batch_size=8, seed=0)[0]
      >>> batch['loss_mask'].sum(axis=1).tolist(), task.vocab_size, task.output_size
      ([6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0], 258, 257)
    """

    both_sides: ClassVar[bool] = True
    counted = 'number of tokens of a window'

    text: Language
    rate: float

    def __init__(
        self,
        dataset: str = 'pydoc_topics',
        data_dir: str | None = None,
        feature: str | None = None,
        tokenizer: str | None = None,
        rate: Annotated[float, Gt(0), Le(1)] = 0.15,
    ):
        # Written by hand because `dataset` is an argument here and a method of every task.
        text = Language(dataset, data_dir, feature=feature, tokenizer=tokenizer)
        object.__setattr__(self, 'text', text)
        object.__setattr__(self, 'rate', rate)

    predicts = 'here'

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size + 1

    @property
    def output_size(self) -> int:
        return self.text.vocab_size

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        """Random training rows. Every call reads the corpus, which `dataset` does only once."""
        return self.reader('train', length)(rng, batch, slice(None))

    def reader(self, split: str, length: Length) -> Reader:
        """Windows of a split, with tokens hidden."""
        stream = self.text.tokens(split, self.width(length))
        return functools.partial(self._rows, stream, length)

    def _rows(self, stream, length, rng, batch, rows):
        low, high = self.range(length)
        counts = rng.integers(low, high, batch, endpoint=True)
        valid = np.arange(high) < counts[:, None]
        offsets = rng.integers(0, len(stream) - high, batch, endpoint=True)
        window = np.where(valid, stream[offsets[:, None] + np.arange(high)], 0)
        chosen = chosen_tokens(rng, counts, high, self.rate)
        drawn = {
            'tokens': hidden_tokens(rng, window, chosen, self.output_size).astype(np.int32),
            'targets': window.astype(np.int32),
            'loss_mask': chosen.astype(np.float32),
            'valid': valid,
        }
        check_sample(self, drawn)
        return rows_of(drawn, rows)

    def encode(self, text: str) -> Int[np.ndarray, ' L']:
        """The token ids of a text as `decode` writes it, behind the tokens that begin a document:
        `[MASK]` is one mask.
        """
        begin = self.text.encode('')
        found = [begin]
        for number, piece in enumerate(text.split(MASK)):
            mask = np.full(min(number, 1), self.output_size)
            found += [mask, self.text.encode(piece)[len(begin) :]]
        return np.concatenate(found).astype(np.int32)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        """Token ids as text, `[MASK]` for each mask."""
        masked = np.asarray(ids) == self.output_size
        runs = np.split(np.asarray(ids), np.flatnonzero(masked[1:] != masked[:-1]) + 1)
        return ''.join(
            MASK * len(run) if (run == self.output_size).all() else self.text.decode(run)
            for run in runs
        )
