"""Multi-query associative recall: key-value pairs, and then a query for every key."""

import dataclasses
import functools

import numpy as np

from posenc_jax.lab.tasks.prompt import LabelTask
from posenc_jax.lab.tasks.task import Length
from posenc_jax.protocol.bounds import Positive, Size
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register


@register('mqar', kind='task')
@dataclasses.dataclass(frozen=True)
class MQAR(LabelTask):
    """`k1 v1 ... kK vK` and then each key once more, as a query; the task length is T, the width.

    Loss at the K queries. Keys are distinct and in 1..vocab/2-1, values are distinct and in
    vocab/2..vocab-1. There are S = (T - 2K)/2 slots for queries, and slot g is at position
    2K + 2(g - 1). The slots in use are drawn without replacement with p(g) ~ power * g^(power - 1),
    g = 1..S, which favours small gaps. The target at a query is the value of its key; this value is
    not written behind the query. Other targets are 0. Differs from the official code: random
    non-queries are drawn from the values alone, so that no further key appears by chance.

    Follows Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models",
    arXiv 2312.04927; official code HazyResearch/zoology. They use T/K = 64/4, 128/8, 256/16 and
    512/64.

    Args:
      pairs: K, the number of key-value pairs.
      vocab: number of token ids, even.
      power: parameter of the distribution of gaps.
      random_non_queries: fill the other positions after the pairs with random values instead of 0.

    Raises:
      SpecError: a vocabulary that is odd or too small for the pairs.

    Example:
      >>> task = MQAR(pairs=2, vocab=16)
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=12)
      >>> task.decode(batch['tokens'][0]), task.decode(batch['targets'][0])
      ('k6 v1 k5 v2 k6 . k5 . . . . .', '. . . . v1 . v2 . . . . .')
    """

    pairs: Size = 4
    vocab: int = 8192
    power: Positive = 0.01
    random_non_queries: bool = False

    joint = ' '
    counted = 'length for {0.pairs} pairs and as many queries'

    def __post_init__(self):
        if self.vocab % 2 or self.vocab < 2 * self.pairs + 2:
            raise SpecError(
                f'vocab must be even and at least 2 * pairs + 2 = {2 * self.pairs + 2} for '
                f'{self.pairs} distinct keys, got {self.vocab}'
            )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        half = range(self.vocab // 2)
        return ('.', *(f'k{i}' for i in half[1:]), *(f'v{i}' for i in half))

    @property
    def shortest(self) -> int:
        return 4 * self.pairs

    def range(self, length: Length) -> tuple[int, int]:
        low, high = super().range(length)
        if low % 2 or high % 2:
            nearest = (low + low % 2, high + high % 2)
            raise ValueError(f'the length of mqar must be even, got {length!r}; nearest: {nearest}')
        return low, high

    def draw(self, rng, batch, low, high):
        half, pairs = self.vocab // 2, self.pairs
        total = 2 * rng.integers(low // 2, high // 2, batch, endpoint=True)
        keys = 1 + _distinct(rng, half - 1, pairs, batch)
        values = half + _distinct(rng, half, pairs, batch)
        slots = (high - 2 * pairs) // 2
        law = np.broadcast_to((self.power - 1) * np.log(np.arange(1, slots + 1)), (batch, slots))
        law = np.where(np.arange(slots) < (total[:, None] - 2 * pairs) // 2, law, -np.inf)
        query = 2 * pairs + 2 * _weighted(rng, law, pairs)

        tokens, targets, scored = np.zeros((3, batch, high), np.int64)
        if self.random_non_queries:
            noise = rng.integers(half, self.vocab, (batch, high))
            tokens = np.where(np.arange(high) < total[:, None], noise, 0)
        tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
        for array, value in ((tokens, keys), (targets, values), (scored, 1)):
            np.put_along_axis(array, query, value, axis=1)
        return tokens, targets, scored, {}


def _distinct(rng, population, count, batch):
    """`count` distinct numbers below `population` per row, in random order (Floyd's algorithm, all
    rows at once).
    """
    out = np.full((batch, count), -1)
    for column, top in enumerate(range(population - count, population)):
        drawn = rng.integers(0, top, batch, endpoint=True)
        out[:, column] = np.where((out == drawn[:, None]).any(axis=1), top, drawn)
    return rng.permuted(out, axis=1)


def _weighted(rng, log_weights, count):
    """`count` distinct columns per row, as if drawn one after the other with these weights (Gumbel
    top-k).
    """
    return np.argsort(-(log_weights + rng.gumbel(size=log_weights.shape)), axis=1)[:, :count]
