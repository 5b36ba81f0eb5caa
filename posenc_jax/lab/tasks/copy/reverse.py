"""Reverse a string of symbols: `$12345=54321$`."""

import dataclasses

import numpy as np

from posenc_jax.lab.tasks.copy.transduction import Transduction
from posenc_jax.lab.tasks.coupling import coupled_reverse_ids
from posenc_jax.protocol.registry import register


@register('reverse', kind='task')
@dataclasses.dataclass(frozen=True)
class Reverse(Transduction):
    """Reversal; the task length is the number of symbols. Loss on the reversed string and the
    closing `$`.

    Follows Kazemnejad et al., "The Impact of Positional Encoding on Length Generalization in
    Transformers", arXiv 2305.19466, in the layout of Cho et al., arXiv 2405.20671.

    Args:
      symbols: size of the alphabet.
      ids: position ids that the task supplies: 'none', 'plain' or 'coupled'.

    Example:
      >>> task = Reverse(symbols=10)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=5)['tokens'][0])
      '$86523=32568'
    """

    coupled = staticmethod(coupled_reverse_ids)

    def answer(self, x, count):
        return np.take_along_axis(
            x, (count[:, None] - 1 - np.arange(x.shape[1])) % x.shape[1], axis=1
        )
