"""Bucket sort: a string of few different symbols in order, `$31232=12233$`."""

import dataclasses
from typing import Literal

import numpy as np

from posenc_jax.lab.tasks.copy.transduction import Transduction
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.registry import register


@register('bucket_sort', kind='task')
@dataclasses.dataclass(frozen=True)
class BucketSort(Transduction):
    """Sorting; the task length is the number of symbols. Loss on the sorted string and the closing
    `$`.

    One of the tasks of Ruoss et al., "Randomized Positional Encodings Boost Length Generalization
    of Transformers", arXiv 2305.16843. There an encoder predicts the whole answer in one pass; here
    the answer is predicted token by token.

    Args:
      symbols: size of the alphabet.
      ids: position ids that the task supplies: 'none' or 'plain'.

    Example:
      >>> task = BucketSort(symbols=5)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=5)['tokens'][0])
      '$43211=11234'
    """

    symbols: Size = 5
    ids: Literal['none', 'plain'] = 'none'

    def answer(self, x, count):
        return np.sort(np.where(np.arange(x.shape[1]) < count[:, None], x, self.symbols), axis=1)
