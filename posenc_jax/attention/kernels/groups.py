"""Program instances that go through the query heads of a group, which share a key head.

The arrays of the encoding, of queries and of carries are then those of the query head that is there
now. On a TPU the heads are an axis of the grid, and each has a part of its own. On a GPU they are a
loop, and an instance has the part of the whole group.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl


def of_group(spec: pl.BlockSpec, axes: Sequence[int], group: int, on_grid: bool) -> pl.BlockSpec:
    """The part of an instance (b, key head, i), from that of an instance (b, query head, i).

    Args:
      spec: the part of a query head.
      axes: those of the array that have an entry for each query head.
      group: how many query heads share a key head.
      on_grid: the heads of a group are an axis of the grid behind (b, key head, i).
    """
    shape, index = spec.block_shape, spec.index_map
    assert shape is not None and index is not None
    if on_grid:
        of_head = lambda b, n, i, head, *more: index(b, group * n + head, i, *more)
        return pl.BlockSpec(shape, of_head)

    def of_all(b, n, i):
        place = index(b, group * n, i)
        return tuple(n if axis in axes else number for axis, number in enumerate(place))

    return pl.BlockSpec([group if n in axes else size for n, size in enumerate(shape)], of_all)


class OfHead:
    """The part of a query head in a reference to those of its group. Triton takes one index of a
    reference, so the head is a part of it.
    """

    def __init__(self, ref, axes: Sequence[int], head):
        self._ref, self._head = ref, (head,) * len(axes)
        self.shape, self.dtype = ref.shape[len(axes) :], ref.dtype

    def __getitem__(self, index) -> Any:
        return self._ref[self._whole(index)]

    def __setitem__(self, index, a) -> None:
        self._ref[self._whole(index)] = a

    def _whole(self, index):
        return *self._head, *(index if isinstance(index, tuple) else (index,))


def anew(leaves: Sequence[Any], sums: Any) -> Any:
    """The gradients of leaves with which the next query head of a group begins: zeros in the place
    of those that have an entry for each query head.
    """
    arrays, structure = jax.tree.flatten(sums)
    return structure.unflatten(
        [jnp.zeros_like(a) if leaf.of_heads else a for leaf, a in zip(leaves, arrays, strict=True)]
    )
