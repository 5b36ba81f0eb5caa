"""Synthetic translation: every word has one translation, and words decide where others stand."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.lab.tasks.task import Batch, Length
from posenc_jax.protocol.bounds import Count, Ge, Le, Multiple
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import register

PLAIN, MODIFIER, VERB, MARK, PADDING = range(5)
_LETTERS = 'nmv,'  # of plain words, modifiers, verbs and marks, for readable text


def target_order(kinds: Int[np.ndarray, 'B S']) -> Int[np.ndarray, 'B S']:
    """The source index of each target word, from the kinds of the words: `PLAIN`, `MODIFIER`,
    `VERB` or `MARK`, and `PADDING` on the right.

    A mark ends a phrase and stays at its end. The other words of a phrase are cut into units: a
    plain word or a verb, and the modifiers that stand directly before it. Modifiers directly before
    a mark, or at the end of the sentence, are a unit without such a word. In every unit the words
    are reversed. Then the units with a verb move to the end of their phrase, before its mark, in
    reverse order; the other units stay in order. Padding stays at the end.

    Each step keeps or swaps two neighbouring blocks, so the permutation is one of those that an
    inversion transduction grammar (BTG) reaches.
    """
    place = np.broadcast_to(np.arange(kinds.shape[1]), kinds.shape)
    ends = np.where(kinds == MODIFIER, kinds.shape[1], place)
    head = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]  # the word that ends the unit
    padded = np.pad(kinds, ((0, 0), (0, 1)), constant_values=PADDING)  # for units without one
    verb = np.take_along_axis(padded, head, axis=1) == VERB
    marks = (kinds == MARK).astype(np.int64)
    phrase = np.cumsum(marks, axis=1) - marks
    group = np.where(kinds == PADDING, 3, np.where(kinds == MARK, 2, verb.astype(np.int64)))
    within = np.where(kinds == PADDING, place, -place)
    return np.lexsort((within, np.where(verb, -head, head), group, phrase))


def alignment(kinds: Int[np.ndarray, 'B S']) -> Int[np.ndarray, 'B S']:
    """pi(t), the index of the translation of source word t among the target words, the inverse of
    `target_order`.
    """
    return np.argsort(target_order(kinds), axis=1)


@register('translation', kind='task')
@dataclasses.dataclass(frozen=True)
class Translation(PromptTask):
    """Translation of sentences of random words; the task length is their number of words.

    The source is n words, drawn uniformly. The id of a word says its kind: of `words` ids, the last
    eighth are marks, the eighth before it verbs, the quarter before it modifiers, and the first
    half plain words. The target has the translation of every word, a fixed bijection of the ids, in
    the order of `target_order`: modifiers follow the word that they stand before, and verbs go to
    the end of their phrase, which a mark ends. So the order depends on the words, and it can move
    a word as far as a phrase is long.

    The decoder reads a begin id and then the target, and predicts the target and an end id. Loss on
    all of these. Padding has an id of its own in the source and in the target. No source position
    is given unless `alignments` is set; they are then (t, pi(t)), with pi(t) the index of the
    translation of word t among the target words. The decoder predicts this translation at its
    input pi(t). Padding has pi(t) = t.

    Our own task, for methods that read a source in the order of its translation, such as dynamic
    position encoding (Zheng et al., arXiv 2204.08142) and cross-lingual position representation
    (Ding et al., arXiv 2004.13310). These papers use natural languages and find alignments with a
    tool; here they are known.

    Args:
      words: number of words of each language, a multiple of 8.
      seed: chooses the bijection, at least 0.
      alignments: whether batches have `source_positions`.

    Example:
      >>> task = Translation(words=16)
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=7)
      >>> task.decode_source(batch['source'][0]), task.decode(batch['targets'][0])
      ('v1 m2 m0 n4 n4 n0 n1', 'N4 M0 M2 N4 N0 N1 V1 $')
    """

    words: Annotated[int, Ge(8), Le(65_536), Multiple(8)] = 64
    seed: Count = 0
    alignments: bool = False

    joint = ' '
    counted = 'number of words'

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of target ids; a translation is its source word in capitals."""
        words = self._names()
        return (*(words[i].upper() for i in np.argsort(self.translations())), '^', '$', '_')

    @property
    def source_size(self) -> int:
        return self.words + 1

    def longest(self, length: int) -> int:
        return length + 1

    def source_width(self, length: Length) -> int:
        return self.range(length)[1]

    def kinds(self, source: Int[np.ndarray, '*S']) -> Int[np.ndarray, '*S']:
        """The kind of each word id of the source."""
        bounds = np.array([4, 6, 7, 8]) * self.words // 8
        return np.searchsorted(bounds, source, side='right')

    def translations(self) -> Int[np.ndarray, ' W']:
        """The target id of each source id."""
        return np.random.default_rng(self.seed).permutation(self.words)

    def align(self, source: Int[np.ndarray, 'B S']) -> Int[np.ndarray, 'B S']:
        """pi(t) for each word of a source; see `alignment`."""
        return alignment(self.kinds(source))

    def draw(self, rng, batch, low, high):
        counts = rng.integers(low, high, batch, endpoint=True)
        valid = np.arange(high) < counts[:, None]
        source = np.where(valid, rng.integers(0, self.words, (batch, high)), self.words)
        order = target_order(self.kinds(source))
        translated = np.append(self.translations(), self.padding)[source]
        answer = np.take_along_axis(translated, order, axis=1), counts
        return Drawn(['^'], [answer, '$'], further=self._source(source, np.argsort(order, axis=1)))

    def _source(self, source, aligned) -> Batch:
        """The arrays of a source in a batch."""
        found = {'source': source.astype(np.int32), 'source_valid': source < self.words}
        if self.alignments:
            place = np.broadcast_to(np.arange(source.shape[1]), source.shape)
            found['source_positions'] = np.stack([place, aligned], axis=-1).astype(np.int32)
        return found

    def decode_source(self, ids: Int[np.ndarray, ' S']) -> str:
        """Source ids as text: n, m, v or a comma for the kind, and a number within the kind."""
        return ' '.join([*self._names(), '_'][i] for i in ids)

    @property
    def begin(self) -> int:
        """The target id that the decoder reads first."""
        return self.words

    @property
    def end(self) -> int:
        """The target id that ends a translation."""
        return self.words + 1

    def source_batch(self, texts: Sequence[str]) -> Batch:
        """The source of a batch, from texts as `decode_source` writes them.

        Raises:
          SpecError: a text without words, or an unknown word, with the nearest one.
        """
        names = self._names()
        rows = [text.split() for text in texts]
        for row in rows:
            for word in row or ['']:
                check_choice('word', word, tuple(names))
        width = max(map(len, rows))
        padded = [[*map(names.index, row), *[self.words] * (width - len(row))] for row in rows]
        source = np.array(padded, np.int32)
        return self._source(source, self.align(source))

    def _names(self):
        sizes = zip(_LETTERS, (4, 2, 1, 1))
        return [f'{kind}{i}' for kind, size in sizes for i in range(size * self.words // 8)]
