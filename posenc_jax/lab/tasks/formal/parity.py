"""Parity of a string of bits: `$0110=0$`."""

import dataclasses
from functools import partial

import numpy as np

from posenc_jax.lab.tasks.coupling import Ids, coupled_parity_ids
from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.registry import register


@register('parity', kind='task')
@dataclasses.dataclass(frozen=True)
class Parity(PromptTask):
    """`$x=y$`, where y is the number of ones in x modulo 2; the task length is the number of bits.

    Loss on y and the closing `$`. Bits are uniform. Follows Cho et al., arXiv 2405.20671, in the
    form without a scratchpad.

    Args:
      ids: position ids: 'none', 'plain' (see `PromptTask`) or 'coupled', with start 1.

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

    names = '01=$_'
    counted = 'number of bits'

    def longest(self, length: int) -> int:
        return length + 3

    def draw(self, rng, batch, low, high):
        count = rng.integers(low, high, batch, endpoint=True)
        bits = np.where(np.arange(high) < count[:, None], rng.integers(0, 2, (batch, high)), 0)
        answer = bits.sum(axis=1, keepdims=True) % 2
        return Drawn(['$', (bits, count), '='], [answer, '$'], partial(coupled_parity_ids, count))
