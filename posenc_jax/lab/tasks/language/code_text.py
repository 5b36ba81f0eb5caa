"""Text with hierarchical positions: where a token stands in its function or paragraph."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.language.language import Language
from posenc_jax.methods.hirope import line_units, paragraph_units, python_units, token_units
from posenc_jax.protocol.registry import register

UNITS: dict[str, Callable[[str], list[int]]] = {
    'python': python_units,
    'lines': line_units,
    'paragraphs': paragraph_units,
}


@register('code_text', kind='task')
@dataclasses.dataclass(frozen=True, init=False)
class CodeText(Language):
    """Language modelling with the positions of `hirope`: (flat, offset in the unit, units before).

    All three components count from the start of each window. Units are the top-level functions and
    classes of a document and the runs of other code between them, or its paragraphs. A document
    begins a new unit. Training, validation and test data have these positions, so that `eval.py`
    evaluates a model with `hirope()` at the right positions.

    Args:
      units: 'python' parses every document; 'lines' looks for unindented `def` and `class` in text
        that need not parse, for example in documents that were cut (see `cuts_documents`);
        'paragraphs' is for prose.
      dataset, data_dir, feature, tokenizer: as for `language`.

    Raises:
      ValueError: with 'python', a document that does not parse.

    Reference: Zhang, Li, Zhang, Jin, arXiv 2403.19115.

    Example:
      >>> task = CodeText('pydoc_topics', units='paragraphs')
      >>> task.sample(np.random.default_rng(0), 2, 16)['positions'].shape
      (2, 16, 3)
    """

    units: str

    supplies_positions = True

    def __init__(
        self,
        dataset: str = 'stdlib_code',
        units: Literal['python', 'lines', 'paragraphs'] = 'python',
        data_dir: str | None = None,
        feature: str | None = None,
        tokenizer: str | None = None,
    ):
        super().__init__(dataset, data_dir, 'stream', feature, tokenizer)
        self._set(units=units)

    def places(self, split):
        units = np.concatenate(self.unit_numbers(split))
        return functools.partial(_places, units)

    # Cached because an evaluation asks for the units at every length, and parsing is slow.
    @functools.lru_cache(maxsize=3)  # noqa: B019
    def unit_numbers(self, split: str) -> list[Int[np.ndarray, ' _']]:
        """The unit of every token of each of `documents(split)`, numbered across the documents."""
        numbers, first = [], 0
        for text in filter(None, self.corpus.documents(split)):
            written, starts = text.decode(), self.vocabulary.starts(text)
            try:
                units = UNITS[self.units](written)
            except ValueError as error:
                begin = written.lstrip()[:40].splitlines()[0]
                raise ValueError(
                    f"the document {begin!r} ...: {error}, and so does code_text(units='lines')"
                ) from None
            numbers.append(first + np.asarray(token_units(written, units, starts), np.int32))
            first += units[-1] + 1
        return numbers


def _places(units, index):
    return _hierarchical(units[index])


def _hierarchical(units: Int[np.ndarray, 'B L']) -> Int[np.ndarray, 'B L 3']:
    """(flat, tok, F) as in `hirope_ids`, in NumPy because threads prepare the data."""
    flat = np.broadcast_to(np.arange(units.shape[1]), units.shape)
    starts = np.diff(units, axis=1, prepend=units[:, :1]) != 0
    begun = np.maximum.accumulate(np.where(starts, flat, 0), axis=1)
    return np.stack([flat, flat - begun, np.cumsum(starts, axis=1)], axis=-1).astype(np.int32)
