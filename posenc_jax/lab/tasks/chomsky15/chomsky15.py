"""The 15 tasks of randomized positional encodings: an input, and empty places for the answer."""

import dataclasses
from typing import Literal

import numpy as np

from posenc_jax.lab.tasks.chomsky15.arithmetic import ARITHMETIC
from posenc_jax.lab.tasks.chomsky15.numbers import NUMBERS
from posenc_jax.lab.tasks.chomsky15.problem import Problem
from posenc_jax.lab.tasks.chomsky15.strings import STRINGS
from posenc_jax.lab.tasks.prompt import LabelTask
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register

PROBLEMS: dict[str, Problem] = {**STRINGS, **ARITHMETIC, **NUMBERS}
# The tasks whose output is one symbol, so that a class of the row can be predicted.
CLASSES = (
    'even_pairs', 'modular_arithmetic', 'parity_check', 'cycle_navigation',
    'modular_arithmetic_brackets', 'solve_equation', 'missing_duplicate_string',
)  # fmt: skip


@register('chomsky15', kind='task')
@dataclasses.dataclass(frozen=True)
class Chomsky15(LabelTask):
    """One of 15 tasks; the task length is n, the length of the input.

    The tokens are the input tape and then one empty token for every symbol of the output. The id of
    the empty token is the number of input ids. The targets stand at the empty tokens; other targets
    are 0. All symbols of the output bear loss in training. In validation and test data the zeros
    behind a terminator do not count (`binary_addition`, `binary_multiplication` and
    `stack_manipulation`). In the paper an encoder reads the row. A decoder can do the task too,
    since the empty tokens stand behind the input.

    All rows of a batch have the same n, drawn uniformly from a range of lengths. A batch is as wide
    as the longest length of the range needs, and `valid` is False on the rest. For even n the
    input of `modular_arithmetic` has n - 1 symbols. Lengths too short for a task give the trivial
    examples of the released code. Random position ids are left to the encoding.

    Where the output is one symbol it may be read as the class of the row instead. Then the row is
    the input alone, and there is one target for it; the empty id stands only on padding.

    | name | input | output |
    | --- | --- | --- |
    | `even_pairs` | bits | the number of unequal neighbours modulo 2 |
    | `modular_arithmetic` | digits and signs in turn | the value modulo 5 |
    | `parity_check` | bits | the number of ones modulo 2 |
    | `cycle_navigation` | steps left, none, right | the place on a circle of 5 |
    | `stack_manipulation` | a stack of bits and actions | the stack, terminator, zeros |
    | `reverse_string` | bits | reversed |
    | `modular_arithmetic_brackets` | an expression in brackets | the value modulo 5 |
    | `solve_equation` | an expression with x, `=`, its value | x |
    | `duplicate_string` | bits | twice |
    | `missing_duplicate_string` | a string twice, one bit missing | the bit |
    | `odds_first` | bits | those at indices 1, 3, ... and then 0, 2, ... |
    | `binary_addition` | a, `+`, b, lowest bit first | a + b, terminator, zeros |
    | `binary_multiplication` | a, `*`, b, lowest bit first | a * b, terminator, zeros |
    | `compute_sqrt` | a number, highest bit first | the integer part of its square root |
    | `bucket_sort` | symbols 0 to 4 | sorted |

    Differs from the paper: nothing; the draws are those of NumPy's generator. In the paper every
    task has empty places, so `readout='class'` is ours.

    Args:
      name: the task.
      readout: 'tape' (the answer stands at empty places) or 'class' (of the row).
      ignore_rest: whether what follows a terminator bears no loss, as in validation and test data.

    Raises:
      SpecError: a class of a task whose output has several symbols.

    Reference: Ruoss, Deletang, Genewein, Grau-Moya, Csordas, Bennani, Legg, Veness, "Randomized
    Positional Encodings Boost Length Generalization of Transformers", arXiv 2305.16843; official
    code google-deepmind/randomized_positional_encodings.

    Example:
      >>> task = Chomsky15('reverse_string')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=5)
      >>> task.decode(batch['tokens'][0]), task.decode(batch['targets'][0, 5:])
      ('11100_____', '00111')
    """

    name: Literal[*PROBLEMS]
    ignore_rest: bool = False
    readout: Literal['tape', 'class'] = 'tape'

    counted = 'length of {0.name}'

    def __post_init__(self):
        if self.readout == 'class' and self.name not in CLASSES:
            raise SpecError(
                f"readout is 'class', but the output of {self.name} has several symbols; use "
                f"'tape', or one of {', '.join(CLASSES)}"
            )

    @property
    def predicts(self) -> Literal['here', 'class']:
        return 'class' if self.readout == 'class' else 'here'

    @property
    def problem(self) -> Problem:
        """How inputs are drawn and solved."""
        return PROBLEMS[self.name]

    @property
    def names(self) -> str:
        """Input ids, and `_` for empty tokens; output ids have the same digits."""
        return f'{self.problem.symbols}_'

    @property
    def output_size(self) -> int:
        return self.problem.outputs

    def longest(self, length: int) -> int:
        return sum(self._lengths(length))

    def _lengths(self, n):
        places = 0 if self.readout == 'class' else self.problem.output_length(n)
        return self.problem.input_length(n), places

    def draw(self, rng, batch, low, high):
        width = self.longest(high)
        n = int(rng.integers(low, high, endpoint=True))
        begin, count = self._lengths(n)
        answer = slice(begin, begin + count)
        inputs = self.problem.draw(rng, batch, n)
        outputs = self.problem.solve(inputs)
        tokens = np.full((batch, width), len(self.problem.symbols))
        tokens[:, :begin] = inputs
        valid = {'valid': np.tile(np.arange(width) < begin + count, (batch, 1))}
        if self.readout == 'class':
            return tokens, outputs, np.ones_like(outputs), valid
        targets, scored = np.zeros((2, batch, width), np.int64)
        targets[:, answer], scored[:, answer] = outputs, self._scored(outputs)
        return tokens, targets, scored, valid

    def _scored(self, outputs):
        if self.problem.terminator is None or not self.ignore_rest:
            return np.ones(outputs.shape, bool)
        end = np.argmax(outputs == self.problem.terminator, axis=1, keepdims=True)
        return np.arange(outputs.shape[1]) <= end

    def for_evaluation(self) -> 'Chomsky15':
        return dataclasses.replace(self, ignore_rest=True)
