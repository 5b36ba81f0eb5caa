"""Word problems of groups: the product of the elements so far, at every element."""

import dataclasses
import itertools
from typing import Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.prompt import LabelTask
from posenc_jax.protocol.registry import register

Permutations = Int[np.ndarray, 'G P']


def permutations(points: int, *, even: bool = False) -> Permutations:
    """All permutations of 0 .. points - 1 in alphabetical order, or the even ones alone."""
    inversions = lambda p: sum(a > b for a, b in itertools.combinations(p, 2))
    every = itertools.permutations(range(points))
    return np.array([p for p in every if not even or inversions(p) % 2 == 0])


GROUPS: dict[str, Permutations] = {
    'parity': permutations(2),
    's3': permutations(3),
    'a4': permutations(4, even=True),
    's4': permutations(4),
    'a5': permutations(5, even=True),
    's5': permutations(5),
}


def products(elements: Int[np.ndarray, 'B L'], group: Permutations) -> Int[np.ndarray, 'B L']:
    """The product of every prefix, as the number of a permutation of the group.

    The permutations of a prefix are carried out one after the other, the first one first: point i
    goes to `g_t[... g_2[g_1[i]]]`.
    """
    base = group.shape[1] ** np.arange(group.shape[1])
    codes = group @ base
    order = np.argsort(codes)
    state, found = np.tile(np.arange(group.shape[1]), (len(elements), 1)), []
    for column in elements.T:
        state = np.take_along_axis(group[column], state, axis=1)
        found.append(order[np.searchsorted(codes, state @ base, sorter=order)])
    return np.stack(found, axis=1)


@register('word_problem', kind='task')
@dataclasses.dataclass(frozen=True)
class WordProblem(LabelTask):
    """Elements of a group, and at each of them the product of all so far; the task length is the
    number of elements. Loss on every product, or on the last one.

    The elements are uniform. Inputs and targets have the same ids, the permutations of the group in
    alphabetical order; the identity is 0. Padding has an id of its own among the inputs. The
    product at an element needs no later one, so decoders and encoders can both do the task. For
    `parity` the product is the number of ones modulo 2. The word problems of A5 and S5 are complete
    for the circuit class NC1; those of `parity`, `s3`, `a4` and `s4` lie in TC0.

    Differs from the paper: products run in reading order, and the paper also has Z60 and A4 x Z5.

    Args:
      group: 'parity' (2 elements), 's3' (6), 'a4' (12), 's4' (24), 'a5' (60) or 's5' (120).
      scored: 'all' products, or the 'last' one of every row.

    Reference: Merrill, Petty, Sabharwal, "The Illusion of State in State-Space Models", arXiv
    2404.08819; PaTH (arXiv 2505.16381) is tested on A5.

    Example:
      >>> task = WordProblem('parity')
      >>> batch = task.sample(np.random.default_rng(0), batch=1, length=5)
      >>> task.decode(batch['tokens'][0]), task.decode(batch['targets'][0])
      ('1 1 1 0 0', '1 0 1 1 1')
    """

    group: Literal[*GROUPS]
    scored: Literal['all', 'last'] = 'all'

    joint = ' '
    counted = 'number of elements'
    predicts = 'here'

    @property
    def output_size(self) -> int:
        return len(GROUPS[self.group])

    @property
    def names(self) -> tuple[str, ...]:
        """Bits for parity; else permutations, such as `10234`, whose digit i is where i goes."""
        group = GROUPS[self.group]
        bits = group.shape[1] == 2
        return (*('01' if bits else (''.join(map(str, p)) for p in group)), '_')

    def draw(self, rng, batch, low, high):
        count = rng.integers(low, high, (batch, 1), endpoint=True)
        elements = rng.integers(0, self.output_size, (batch, high))
        place = np.arange(high)
        valid = place < count
        scored = valid if self.scored == 'all' else place == count - 1
        found = products(elements, GROUPS[self.group])
        tokens = np.where(valid, elements, self.output_size)
        return tokens, np.where(valid, found, 0), scored, {'valid': valid}
