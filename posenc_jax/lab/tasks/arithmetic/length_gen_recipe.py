"""The recipe for length generalisation in addition: reversed numbers, index hints, random
spaces.
"""

from typing import Literal

from posenc_jax.lab.tasks.arithmetic.addition import Addition
from posenc_jax.lab.tasks.arithmetic.random_spaces import RandomSpaces
from posenc_jax.protocol.registry import register

HINTS = 102


@register('length_gen_recipe', kind='task')
def length_gen_recipe(
    reverse: bool = True,
    index_hints: int = HINTS,
    spaces: int = 3,
    ids: Literal['none', 'plain'] = 'none',
    equal_length: bool = False,
) -> RandomSpaces:
    """Addition in the format that generalised to 2.5 times the trained number of digits.

    `$h5 2 h6 4 + h5 9 h6 3 = h5 1 h6 8 $`: short for `random_spaces(addition(reverse_operands=True,
    reverse_output=True, index_hints=102), most=3)`. All numbers are written least significant digit
    first, without zero padding. Before every digit, also in the sum, stands the hint of its
    significance; hints have a random start in training and in evaluation. Only training data have
    random spaces. Loss on the sum with its hints and the closing `$`.

    The paper's encoding is `randomized_pe(max_len=2048, per_row=True) | fire()`: ids are drawn once
    per sequence, and FIRE sees the drawn ids. `per_row` needs ids of every row from the task, hence
    `ids='plain'`. The paper reports every seed by itself, since seeds differ widely.

    Differs from the paper: the number of spaces, uniform in 0 .. 3, and the `$` at both ends are
    our choice, since the official data are not public.

    Args:
      reverse: write numbers least significant digit first; False: most significant digit first.
      index_hints: number of different hints; 0 leaves them out.
      spaces: largest number of spaces before a character in training; 0 leaves them out.
      ids: position ids that the task supplies: 'none' or 'plain' (`$` 0, then 1, 2, ...).
      equal_length: give both operands the same number of digits.

    Raises:
      SpecError: as for `addition` and `random_spaces`.
      ValueError: at sampling, sums with more digits than there are hints.

    Reference: Zhou, Alon, Chen, Wang, Agarwal, Zhou, "Transformers Can Achieve Length
    Generalization But Not Robustly", arXiv 2402.09371.

    Example:
      >>> import numpy as np
      >>> task = length_gen_recipe(spaces=0)
      >>> task.vocab_size, task.width((1, 10))
      (117, 65)
    """
    addition = Addition(
        reverse_output=reverse,
        reverse_operands=reverse,
        index_hints=index_hints,
        ids=ids,
        equal_length=equal_length,
    )
    return RandomSpaces(addition, most=spaces)
