"""Characters of tokens: the mapping from positions to characters that TIPA trains, and the question
for one character.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.base import extras
from posenc_jax.lab.tasks.language.embedded import EmbeddedCorpus
from posenc_jax.lab.tasks.prompt import Drawn, PromptTask, ragged
from posenc_jax.protocol.bounds import Symbols
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

HELD_OUT = 4  # one in so many tokens of two or more characters is asked about in evaluation only

MOST_TOKENS = 2**17  # more than the text has; the trainer makes room for what it is asked for


def character_mapping(text: str, *, reverse: bool = True) -> dict[int, str]:
    """Position -> character of a token, or of a word of several tokens, from the last position to
    the first one, or the other way with `reverse=False`. Positions count from 1, and a character
    outside ASCII is one character.
    """
    positions = range(len(text), 0, -1) if reverse else range(1, len(text) + 1)
    return {position: text[position - 1] for position in positions}


def mapped_text(mapping: Mapping[int, str]) -> str:
    """The text of a `character_mapping`, in any order of its positions; ValueError if these are not
    1 .. n.
    """
    if sorted(mapping) != list(range(1, len(mapping) + 1)):
        raise ValueError(f'positions must be 1 .. {len(mapping)}, got {sorted(mapping)}')
    return ''.join(mapping[position] for position in sorted(mapping))


@functools.lru_cache(maxsize=4)
def learned_tokens(size: int) -> tuple[str, ...]:
    """The tokens of a byte-pair vocabulary that is learned from the reference topics of Python, in
    the order of their ids.

    Units are characters, not bytes, so every character of the text is a token itself. No token
    spans a space or a punctuation mark.

    Raises:
      SpecError: fewer tokens than the text has characters, or more than it has pairs to merge.
    """
    with extras.explained():
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    texts = [text.decode() for text in EmbeddedCorpus('pydoc_topics').documents('train')]
    trainer = trainers.BpeTrainer(vocab_size=min(size, MOST_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab()
    if len(ids) != size:
        relation = 'at least' if len(ids) > size else 'at most'
        raise SpecError(
            f'the text has a byte-pair vocabulary of {relation} {len(ids)} tokens, got {size}'
        )
    return tuple(sorted(ids, key=ids.__getitem__))


@register('tipa', kind='task')
@dataclasses.dataclass(frozen=True)
class Tipa(PromptTask):
    """Spells words that are given as tokens; the task length is the number of tokens of a word.

    A word is one or more tokens of a byte-pair vocabulary, drawn uniformly. Its characters count
    through the whole word. In the form 'mapping' the answer is the position and the character of
    all characters, the last one first: `int = 3: t 2: n 1: i $`. In the form 'character' the
    question names a position, uniform over the word, and the answer is the character:
    `int ? 2: n`. Loss on what follows `=`, or on the character. A character has the id of the
    token that it is.

    Mappings are of all tokens. Questions are of two disjoint sets of tokens: every fourth token of
    two or more characters is asked about in validation and test data only, the others in training
    only. So the questions of an evaluation are answered by what a model has learned from mappings:
    compare 'both', where a row of training is a mapping or a question with equal probability and an
    evaluation has questions, with 'character'.

    Follows Xu et al., "Enhancing Character-Level Understanding in LLMs through Token Internal
    Structure Learning", arXiv 2411.17679. Differs from the paper: the vocabulary is learned from
    the reference topics of Python and depends on the version of Python; tokens of one word need not
    belong together; positions are ids of their own and not written in JSON; no text is learned
    beside the mapping. It needs the package `tokenizers`.

    Args:
      form: 'mapping', 'character' or 'both'.
      reverse: whether mappings begin with the last character.
      size: number of tokens of the vocabulary.
      most: number of ids for positions, at least the characters of the longest word.
      held_out: whether questions are of the tokens of an evaluation.

    Raises:
      SpecError: a vocabulary that the text does not have, `most` below the longest token.
      ModuleNotFoundError: `tokenizers` is not installed.

    Example:
      >>> task = Tipa(size=300)
      >>> batch = task.sample(np.random.default_rng(3), batch=1, length=1)
      >>> spelling = task.decode(batch['targets'][0]).split()
      >>> spelling[0], '1:' in spelling, '$' in spelling, len(task.vocabulary)
      ('=', True, True, 300)
    """

    form: Literal['mapping', 'character', 'both'] = 'mapping'
    reverse: bool = True
    size: int = 512
    most: Symbols = 64
    held_out: bool = False

    joint = ' '
    counted = 'number of tokens of a word'

    def __post_init__(self):
        lengths = [len(token) for token in self.vocabulary]
        least = lengths.count(1) + HELD_OUT
        if self.size < least:
            raise SpecError(
                f'tipa size must be at least {least}, so that there are tokens of several '
                f'characters, got {self.size}'
            )
        longest = max(lengths)
        if self.most < longest:
            raise SpecError(
                f'tipa most must be at least {longest}, the characters of the longest token, got '
                f'{self.most}'
            )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The text of each token id below `size`."""
        return learned_tokens(self.size)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """`3:` is the position 3, and the last `_` is padding."""
        positions = (f'{k}:' for k in range(1, self.most + 1))
        return (*self.vocabulary, *positions, '=', '?', '$', '_')

    @property
    def padding(self) -> int:
        return self.vocab_size - 1  # the vocabulary has a token of the same name

    def asked(self) -> Int[np.ndarray, ' A']:
        """The ids of the tokens that questions are about."""
        longer = [i for i, token in enumerate(self.vocabulary) if len(token) > 1]
        kept = longer[HELD_OUT - 1 :: HELD_OUT]
        return np.array(kept) if self.held_out else np.setdiff1d(np.arange(self.size), kept)

    def longest(self, length: int) -> int:
        longest = max(map(len, self.vocabulary))
        if length * longest > self.most:
            raise ValueError(
                f'{length} tokens can have {length * longest} characters, but tipa has ids for '
                f'most={self.most} positions; use at most {self.most // longest} tokens or '
                f'most={length * longest}'
            )
        return length + (2 if self.form == 'character' else 1 + 2 * length * longest)

    def draw(self, rng, batch, low, high):
        ids, asked, rows = {token: i for i, token in enumerate(self.vocabulary)}, self.asked(), []
        for count in rng.integers(low, high, batch, endpoint=True).tolist():
            question = self.form == 'character' or (self.form == 'both' and rng.random() < 0.5)
            rows.append(self._row(rng, count, ids, asked if question else None))
        return Drawn(*([ragged(side)] for side in zip(*rows)))

    def _row(self, rng, count, ids, asked):
        """The ids of a prompt and of its answer; a question if `asked` is given."""
        first, equals = self.size - 1, self.size + self.most  # of positions, and the first mark
        tokens = rng.choice(self.size if asked is None else asked, count).tolist()
        word = ''.join(self.vocabulary[token] for token in tokens)
        mapping = character_mapping(word, reverse=self.reverse)
        if asked is None:
            pairs = [i for k, character in mapping.items() for i in (first + k, ids[character])]
            return [*tokens, equals], [*pairs, equals + 2]
        k = int(rng.integers(1, len(word), endpoint=True))
        return [*tokens, equals + 1, first + k], [ids[mapping[k]]]

    def for_evaluation(self) -> 'Tipa':
        form = 'character' if self.form == 'both' else self.form
        return dataclasses.replace(self, form=form, held_out=True)
