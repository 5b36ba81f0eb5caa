"""The ten tasks of "The Impact of Positional Encoding on Length Generalization in Transformers"."""

import dataclasses
import functools
from typing import Literal

import numpy as np

from posenc_jax.lab.tasks.formal.scan import COMMANDS
from posenc_jax.lab.tasks.impact_pe import scratchpad as pad
from posenc_jax.lab.tasks.impact_pe.copying import COPYING
from posenc_jax.lab.tasks.impact_pe.family import Example, Family, words_of
from posenc_jax.lab.tasks.impact_pe.languages import LANGUAGES
from posenc_jax.lab.tasks.impact_pe.lego import LEGO, draw_lego
from posenc_jax.lab.tasks.impact_pe.numbers import NUMBERS
from posenc_jax.lab.tasks.impact_pe.sorting import SORTING
from posenc_jax.lab.tasks.task import Length
from posenc_jax.lab.tasks.word_task import WordTask
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

FAMILIES: dict[str, Family] = {**COPYING, **NUMBERS, **SORTING, **LEGO, **LANGUAGES}


@register('impact_pe', kind='task')
@dataclasses.dataclass(frozen=True)
class ImpactPE(WordTask):
    """A prompt in words and its answer, one of ten tasks in 17 forms. Loss on the answer and its
    end.

    | name | task length, trained -> tested | prompt | answer |
    | --- | --- | --- | --- |
    | `copy`, `copy_2x` | symbols, 2..20 -> 21..40 | `Copy: a b c [SEP]` | `a b c`, twice |
    | `copy_repeat1`, `copy_repeat1_2x` | the same | `Copy: a a a [SEP]` | `a` n or 2n times |
    | `copy_replace` | the same | `Replace a with b in a a a [SEP]` | `b b b` |
    | `reverse`, `reverse_2x` | the same | `Reverse: a b c [SEP]` | `c b a`, twice |
    | `reverse_then_copy` | the same | the same | `c b a [NEXT] a b c` |
    | `addition` | digits of the longer number, 1..8 -> 9..16 | `Compute 5 3 + 9 ?` | the sum |
    | `poly` | terms, 4..8 -> 9..16 | `Evaluate at x = - 2 in 2 * x ** 3 ?` | the value modulo 10 |
    | `sum` | numbers, 4..8 -> 9..16 | `Compute: 3 + 9 .` | the sum modulo 10 |
    | `parity` | bits, 3..8 -> 9..16 | `Is the number of 1's even in the sequence [ 0, 1 ] ?` | |
    | `sort_single`, `sort_multi` | symbols, or numbers 10..9999, 4..8 -> 9..16 | `Sort the
    following list [ M, E, F ].` | sorted |
    | `lego` | clauses, 4..8 -> 9..16 | `If a = -1, b = - a. Then, what is the value of b?` | |
    | `scan` | actions, 1..25 -> 26..48 | `Solve: jump left twice[SEP]` | `Left Jump Left Jump` |
    | `pcfg` | functions, 1..8 -> 9..35 | `echo A1 B2 [SEP]` | `A1 B2 B2` |

    `example` gives prompt and answer as text, with the spaces of the released code. A token is a
    word or a mark of this text, so spaces are none. Lengths are uniform in a range, but `addition`
    draws the digits of both numbers uniformly from the pairs whose longer one lies in the range,
    and `scan` draws all commands equally often.

    With a scratchpad the answer begins with a step for each item. A step has up to five parts:
    `in` (input), `comp` (computation), `out` (output), `[ ]` (variables; not in sorting and LEGO)
    and `re` (the remaining input). Exact match is then that of all steps and the answer.

    Differs from the paper: words are tokens, in place of a vocabulary of T5 in which every symbol
    is one token. The examples of training are drawn anew, not 100,000 times in all, and in LEGO
    every query of an example is drawn alike. `pcfg` draws random trees of functions, where the
    paper splits a published set; trees with a value of more than 64 symbols are drawn again (16 %
    of those of 35 functions). Only SCAN's split by length is here, and neither of the splits that
    keep the divergence of compounds low. With a scratchpad the paper scores the answer alone.

    Args:
      name: the task.
      symbols: how many symbols the alphabet has, 100 for copying and reversing, 50 for
        `sort_single` and 520 for `pcfg` unless it is given.
      scratchpad: 'none', 'full' or the parts of a step, such as 'i1_c0_o1_v1_r1'.
      permute_clauses: whether `lego` writes its clauses in random order.

    Raises:
      SpecError: an option that the task does not have.
      ValueError: a length that the task does not have.

    Reference: Kazemnejad, Padhi, Natesan Ramamurthy, Das, Reddy, arXiv 2305.19466; official code
    McGill-NLP/length-generalization.

    Example:
      >>> task = ImpactPE('sum', scratchpad='i0_c0_o1_v0_r1')
      >>> prompt, answer = task.example(np.random.default_rng(0), 3)
      >>> prompt, answer[:45]
      ('Compute: 8 + 6 + 5 .', 'Thinking step by step:  out 8 re 6 + 5  # out')
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=3)['tokens'][0, :8])
      'Compute : 8 + 6 + 5 .'
    """

    name: Literal[*FAMILIES]
    symbols: int | None = None
    scratchpad: str = 'none'
    permute_clauses: bool = False

    separated = False
    counted = 'length of {0.name}'

    def __post_init__(self):
        pool = len(self.family.symbols)
        if self.symbols is not None and not pool:
            having = ', '.join(name for name, family in FAMILIES.items() if family.symbols)
            raise SpecError(f'{self.name} has no symbols to choose; tasks with symbols: {having}')
        least = 2 if self.name == 'copy_replace' else 1
        if self.symbols is not None and not least <= self.symbols <= pool:
            nearest = min(max(self.symbols, least), pool)
            raise SpecError(
                f'symbols of {self.name} are {least} to {pool}, got {self.symbols}; nearest: '
                f'{nearest}'
            )
        if self.permute_clauses and self.name != 'lego':
            raise SpecError(f'{self.name} has no clauses; permute_clauses is an option of lego')
        pad.parts_of(self.scratchpad, self.family.parts, self.name)

    @property
    def family(self) -> Family:
        """How examples are drawn."""
        return FAMILIES[self.name]

    @property
    def shortest(self) -> int:
        return self.family.shortest

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        text = self.family.text + (f' {pad.TEXT}' if self._parts else '')
        return tuple(dict.fromkeys([*self._symbols, *words_of(text)]))

    @property
    def _parts(self):
        return pad.parts_of(self.scratchpad, self.family.parts, self.name)

    @property
    def _symbols(self):
        return self.family.symbols[: self.symbols]

    def range(self, length: Length) -> tuple[int, int]:
        low, high = super().range(length)
        if self.family.most is not None and high > self.family.most:
            raise ValueError(
                f'length of {self.name} is at most {self.family.most}, the number of variables, '
                f'got {high}'
            )
        if self.name == 'scan':
            COMMANDS.check(low, high)
        return low, high

    def widest(self, length: int) -> tuple[int, int]:
        longest = self.family.longest(length)
        prompt, answer = (
            max(len(words_of(getattr(example, side))) for example in longest)
            for side in ('prompt', 'answer')
        )
        return prompt, answer + (pad.most_words(longest, self._parts) if self._parts else 0)

    def example(self, rng: np.random.Generator, length: Length) -> tuple[str, str]:
        """Prompt and answer of an example as text."""
        found = self._drawn(rng, *self.range(length))
        return found.prompt, self._answer(found)

    def _drawn(self, rng, low, high) -> Example:
        if self.permute_clauses:
            return draw_lego(rng, low, high, permuted=True)
        return self.family.draw(rng, low, high, self._symbols)

    def _answer(self, found):
        if not self._parts:
            return found.answer
        return f'{pad.written(found.steps, self._parts)} {found.answer}'

    def pair(self, rng, low, high):
        found = self._drawn(rng, low, high)
        return words_of(found.prompt), words_of(self._answer(found))
