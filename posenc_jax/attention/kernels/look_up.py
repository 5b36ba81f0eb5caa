"""Look-ups by the bucket of each pair, as kernels compute them.

Doors bind one operation, `look_up_p`. If the table is an input of the kernel, a GPU loads the
entries from where the table lies in the memory of the device (`arrays.Part`). For a table that is
computed in the tile, and on a TPU, a look-up is a loop over the entries.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive

from posenc_jax.attention.kernels.constants import loop, pick
from posenc_jax.attention.kernels.padding import Shape

look_up_p = Primitive('look_up')


@look_up_p.def_abstract_eval
def _result(table, index, *, owner, sizes, count, shape):
    return ShapedArray(shape, table.dtype)


def look_up(table, index, owner: str) -> Any:
    """`table[x, index]` of every pair as `buckets.take_bucket` defines it, in the trace of a door.

    Args:
      table: [1, 1, X, C].
      index: [1, T, S]; or [1, 1, 1] for all pairs of a tile, and then the result is
        [1, 1, T, 1] for 'query', [1, 1, 1, S] for 'key' and [1, 1, 1, 1] for 'all'.
      owner: as for `take_bucket`; or 'row', and then the result is the row [1, 1, 1, H] of a table
        [1, 1, C, H] for all pairs of a tile.
    """
    _, queries, keys = index.shape
    owners, count = table.shape[2:]
    size = {
        'query': (owners, keys), 'key': (queries, owners), 'all': (queries, keys), 'row': (1, count)
    }[owner]  # fmt: skip
    return _bind(table, index, owner, (table.shape, index.shape), count, (1, 1, *size))


def _bind(table, index, owner: str, sizes, count: int, shape: Shape):
    return look_up_p.bind(table, index, owner=owner, sizes=sizes, count=count, shape=shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """An input of a program in a kernel.

    Attributes:
      array: as a kernel holds it.
      load: (index, owner, shape) -> entries of it, of the shape of the result, by loads from the
        memory of the device; None where the array does not lie there as a table for such owners.
    """

    array: Any
    load: Callable


def loaded(equation, table, index) -> Any:
    """The result of a look-up whose inputs are held, in a table that may be a `Part`."""
    shape = equation.params['shape']
    if isinstance(table, Part):
        if (found := table.load(index, equation.params['owner'], shape)) is not None:
            return found
        table = table.array
    return _looped(equation, table, index).reshape(shape)


def held_as(equation, is_input: bool, table, index, held: Callable[[Shape], Shape]) -> Any:
    """A look-up whose inputs are held: the same operation if the table is an input of the program,
    else a loop.
    """
    owner, sizes, count, shape = (equation.params[n] for n in ('owner', 'sizes', 'count', 'shape'))
    if is_input:
        return _bind(table, index, owner, sizes, count, held(shape))
    return _looped(equation, table, index)


def _looped(equation, table, index) -> Any:
    """The result as a loop, from inputs that are held."""
    sizes = equation.params['sizes']
    (found,) = by_loop(equation, table.reshape(sizes[0]), index.reshape(sizes[1]))
    return found


def in_room(room: Callable[[Shape], Shape]) -> Callable:
    """The rule of a look-up whose inputs have the shapes of `room`."""

    def rule(equation, table, index):
        owner, count, shape = (equation.params[n] for n in ('owner', 'count', 'shape'))
        return [_bind(table, index, owner, (table.shape, index.shape), count, room(shape))]

    return rule


def by_loop(equation, table, index) -> list:
    """The rule of a look-up by comparisons with all numbers of entries."""
    return [_compared(table, index, equation.params['owner'], equation.params['count'])]


def _compared(table, index, owner: str, count: int):
    axis = 2 if owner == 'row' else 3
    spread = 2 if owner in ('key', 'row') else 3
    part = lambda n: jnp.expand_dims(pick(table, axis, n), spread)
    index = index[:, None]
    if index.shape[2:] == (1, 1):
        return part(index)
    shape = (1, 1, *index.shape[2:])
    step = lambda n, found: jnp.where(index == n, part(n), found)
    return loop(count, step, jnp.zeros(shape, table.dtype))
