"""Parity of a string of bits: `$0110=0$`."""

import dataclasses
from functools import partial

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.coupling import IDS, Ids, coupled_parity_ids, supplied_ids
from posenc_jax.lab.tasks.task import (
    Batch,
    Length,
    Task,
    join_ragged,
    length_range,
    next_token_batch,
    one_token,
)
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import register

SYMBOLS = '01=$_'
EQUALS, BOUNDARY, PADDING = 2, 3, 4


@register('parity', kind='task')
@dataclasses.dataclass(frozen=True)
class Parity(Task):
    """`$x=y$`, where y is the number of ones in x modulo 2; the task length is the number of bits.

    Loss on y and the closing `$`. Bits are uniform. Follows Cho et al., "Position Coupling:
    Improving Length Generalization of Arithmetic Transformers Using Task Structure", arXiv
    2405.20671 (official code HanseulJo/position-coupling), in the form without a scratchpad.

    Args:
      ids: position ids that the task supplies: 'none', 'plain' (`$` 0, then 1, 2, ...) or
        'coupled', all with start 1; a random start is left to the encoding.

    Raises:
      SpecError: unknown `ids`.

    Example:
      >>> task = Parity(ids='coupled')
      >>> batch = task.sample(np.random.default_rng(1), batch=1, length=4)
      >>> (
      ...     task.decode(batch['tokens'][0]),
      ...     task.decode(batch['targets'][0, -2:]),
      ...     batch['positions'][0].tolist(),
      ... )
      ('$0111=1', '1$', [0, 1, 1, 1, 1, 2, 1])
    """

    ids: Ids = 'none'

    def __post_init__(self):
        check_choice('ids', self.ids, IDS)

    @property
    def vocab_size(self) -> int:
        return len(SYMBOLS)

    def width(self, length: Length) -> int:
        return length_range(length, 1, 'number of bits')[1] + 3

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = length_range(length, 1, 'number of bits')
        count = rng.integers(low, high, batch, endpoint=True)
        bits = np.where(np.arange(high) < count[:, None], rng.integers(0, 2, (batch, high)), 0)
        answer = (bits.sum(axis=1, keepdims=True) % 2, np.ones(batch, np.int64))
        equals, dollar = (one_token(token, batch) for token in (EQUALS, BOUNDARY))
        sequence, ends = join_ragged(
            [dollar, (bits, count), equals, answer, dollar], self.width(length) + 1, PADDING
        )
        positions = supplied_ids(
            self.ids, ends, sequence.shape[1], partial(coupled_parity_ids, count)
        )
        return next_token_batch(sequence, ends, count + 2, positions)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        return ''.join(SYMBOLS[i] for i in ids)
