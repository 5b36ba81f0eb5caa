"""The recipe for length generalisation in addition: reversed numbers, index hints, random
spaces.
"""

from typing import Literal

from posenc_jax.core.registry import register
from posenc_jax.tasks.arithmetic.addition import Addition
from posenc_jax.tasks.arithmetic.random_spaces import RandomSpaces

HINTS = 102


@register('length_gen_recipe', kind='task')
def length_gen_recipe(
    reverse: bool = True,
    index_hints: int = HINTS,
    spaces: int = 3,
    ids: Literal['none', 'plain'] = 'none',
    equal_length: bool = False,
) -> RandomSpaces:
    """`$h5 2 h6 4 + h5 9 h6 3 = h5 1 h6 8 $`: addition as the paper found it to extend to 2.5 times
    the trained digits.

    A name for `random_spaces(addition(reverse_operands=True, reverse_output=True, index_hints=102),
    most=3)`: all numbers least significant digit first, without zero padding; before every digit,
    those of the sum among them, the hint of its significance, from a random start in training and
    evaluation alike; spaces in training only. The paper's encoding is `randomized_pe(max_len=2048,
    per_row=True) | fire()`: FIRE sees the ids that were drawn, one draw a sequence. `per_row` needs
    a row of ids from the task, hence `ids='plain'`. Loss on the sum with its hints and the closing
    `$`; the paper reports seeds one by one, since they differ widely.

    Differs from the paper: 3 spaces at most, uniformly, and `$` at both ends are ours; the official
    data are not public.

    Args:
      reverse: numbers with the least significant digit first; False writes them as people do.
      index_hints: size of the ordered alphabet of hints; 0 leaves them out.
      spaces: how many spaces may stand before a character in training; 0 leaves them out.
      ids: 'plain' hands over the ids of each row (`$` 0, then 1, 2, ...), 'none' nothing.
      equal_length: both operands have the same number of digits.

    Raises:
      SpecError: as `addition` and `random_spaces`. At sampling, numbers with more digits than there
        are hints.

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
