"""Parts of arrays in kernels: arrays that are cut, joined, filled and turned round.

Triton cannot cut or join arrays, so a part is chosen by a masked sum and put in its place by a
mask. Parts that do not lie on a grid of their own size are moved entry by entry, in a loop.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.kernels.padding import powers, shape_of


def pick(a, axis: int, index) -> Any:
    """The part of an array at an index of an axis, which is taken away."""
    if a.shape[axis] == 1:
        return lax.squeeze(a, (axis,))
    here = lax.broadcasted_iota(jnp.int32, a.shape, axis) == index
    if a.dtype == jnp.bool_:
        return jnp.where(here, a, False).astype(jnp.int32).max(axis) != 0
    return jnp.where(here, a, jnp.zeros_like(a)).sum(axis, dtype=a.dtype)


def put(part, axis: int, index, whole):
    """`whole` with a part at an index of an axis."""
    here = lax.broadcasted_iota(jnp.int32, whole.shape, axis) == index
    return jnp.where(here, jnp.expand_dims(part, axis), whole)


def loop(count: int, step: Callable, init: Any) -> Any:
    """`step(number, state)` for all numbers below `count`."""
    if count <= 4:
        for n in range(count):
            init = step(n, init)
        return init
    return lax.fori_loop(0, count, step, init)


def _split(a, axis: int, sizes) -> Any:
    """The array with one axis taken apart into two."""
    return a.reshape(*a.shape[:axis], *sizes, *a.shape[axis + 1 :])


def _moved(a, axis: int, count: int, source: Callable, place: Callable, into=None):
    """An array of `count` parts along an axis, those at `source(n)` for all numbers n below
    `count`; or `into` with these parts at `place(n)`.
    """
    if into is None:
        into = jnp.zeros(powers((*a.shape[:axis], count, *a.shape[axis + 1 :])), a.dtype)
    return loop(count, lambda n, whole: put(pick(a, axis, source(n)), axis, place(n), whole), into)


def slices(equation, a):
    names = 'start_indices', 'limit_indices', 'strides'
    starts, limits, strides = (equation.params[n] for n in names)
    for axis, (start, limit, stride) in enumerate(zip(starts, limits, strides or (1,) * a.ndim)):
        length, size = shape_of(equation)[axis], len(range(start, limit, stride))
        if size == length:
            continue
        if stride == 1 and size and a.shape[axis] % size == 0 and start % size == 0:
            a = pick(_split(a, axis, (-1, size)), axis, start // size)
        elif a.shape[axis] == size * stride:
            a = pick(_split(a, axis, (size, stride)), axis + 1, start)
        else:
            a = _moved(a, axis, size, lambda n: start + n * stride, lambda n: n)
    return [a]


def pad(equation, a, value):
    for axis, (low, high, between) in enumerate(equation.params['padding_config']):
        size = shape_of(equation)[axis]
        length = low + high + size + between * max(size - 1, 0)
        if length == size and not low:
            continue
        room, old = powers((length,))[0], a.shape[axis]
        if not between and room % old == low % old == 0 <= low and (high >= 0 and old == size):
            shape, place, part = (room // size, size), axis, low // size
        elif room == old * (between + 1) and old == size:
            shape, place, part = (size, between + 1), axis + 1, low
        else:
            whole = jnp.full((*a.shape[:axis], room, *a.shape[axis + 1 :]), value)
            a = _moved(a, axis, size, lambda n: n, lambda n: low + n * (between + 1), whole)
            continue
        whole = jnp.full((*a.shape[:axis], *shape, *a.shape[axis + 1 :]), value)
        a = put(a, place, part, whole).reshape(*a.shape[:axis], room, *a.shape[axis + 1 :])
    return [a]


def concatenate(equation, *parts):
    axis = equation.params['dimension']
    return [_joined(parts, axis, [shape_of(equation, n)[axis] for n in range(len(parts))])]


def _joined(parts, axis: int, sizes):
    size, shape = sizes[0], [*parts[0].shape]
    if any(n != size for n in sizes) or shape[axis] != size:
        shape[axis] = sum(sizes)
        whole, end = jnp.zeros(powers(shape), parts[0].dtype), 0
        for part, size in zip(parts, sizes):
            place = lambda n, start=end: start + n
            whole, end = _moved(part, axis, size, lambda n: n, place, whole), end + size
        return whole
    shape.insert(axis, powers((len(parts),))[0])
    whole = jnp.broadcast_to(jnp.expand_dims(parts[0], axis), shape)
    for n, part in enumerate(parts[1:], 1):
        whole = put(part, axis, n, whole)
    shape[axis : axis + 2] = [shape[axis] * size]
    return whole.reshape(shape)


def stack(equation, *parts):
    axis = equation.params['axis']
    return [_joined([jnp.expand_dims(part, axis) for part in parts], axis, [1] * len(parts))]


def split(equation, a):
    sizes, axis = equation.params['sizes'], equation.params['axis']
    if len(set(sizes)) == 1 and a.shape[axis] % sizes[0] == 0:
        return [pick(_split(a, axis, (-1, sizes[0])), axis, n) for n in range(len(sizes))]
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [
        _moved(a, axis, size, lambda n, start=start: start + n, lambda n: n)
        for start, size in zip(starts, sizes)
    ]


def unstack(equation, a):
    axis = equation.params['axis']
    return [pick(a, axis, n) for n in range(shape_of(equation)[axis])]


def dynamic_slice(room: Callable) -> Callable:
    def rule(equation, a, *starts):
        for axis, (start, size) in enumerate(zip(starts, equation.params['slice_sizes'])):
            length = shape_of(equation)[axis]
            if size == length:
                continue
            start = jnp.clip(start, 0, length - size)
            init = jnp.zeros((*a.shape[:axis], *room((size,)), *a.shape[axis + 1 :]), a.dtype)
            a = _moved(a, axis, size, lambda n: start + n, lambda n: n, init)
        return [a]

    return rule


def dynamic_update_slice(equation, whole, a, *starts):
    sizes, parts = shape_of(equation), shape_of(equation, 1)
    axes = [n for n, size in enumerate(sizes) if parts[n] != size]
    if not axes:
        return [a]
    if len(axes) > 1:
        return None
    (axis,), size = axes, parts[axes[0]]
    start = jnp.clip(starts[axis], 0, sizes[axis] - size)
    return [_moved(a, axis, size, lambda n: n, lambda n: start + n, whole)]


def rev(equation, a):
    for axis in equation.params['dimensions']:
        last = shape_of(equation)[axis] - 1
        a = _moved(a, axis, last + 1, lambda n: n, lambda n: last - n, jnp.zeros_like(a))
    return [a]
