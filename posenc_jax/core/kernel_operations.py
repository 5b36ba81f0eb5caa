"""Operations that kernels lack, written by those that they have.

A rule takes an equation of a program and its inputs, and returns its results. The interpreter gets
the rules of a GPU, so that tests run them. On a GPU, sizes are powers of two, and arrays cannot be
cut or joined; a part is therefore chosen by a masked sum. A look-up by index is a loop over the
entries of the table.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax


def dot_general(equation, a, b):
    """A product whose batch dimensions have one element as a product of matrices; any other as a
    sum of products.
    """
    (sums_a, sums_b), (batch_a, batch_b) = equation.params['dimension_numbers']
    options = {n: equation.params[n] for n in ('precision', 'preferred_element_type')}
    shape = equation.outvars[0].aval.shape

    def matrix(a, sums, batch):
        rest = [n for n in range(a.ndim) if n not in sums and n not in batch]
        inner, ascending = math.prod(a.shape[n] for n in sums), sorted(sums) == list(sums)
        if ascending and (not rest or max(rest) < min(sums, default=a.ndim)):
            return a.reshape(-1, inner), 1
        if ascending and (not sums or max(sums) < min(rest)):
            return a.reshape(inner, -1), 0
        return a.transpose(*batch, *rest, *sums).reshape(-1, inner), 1

    if all(a.shape[axis] == 1 for axis in batch_a):
        (a, axis_a), (b, axis_b) = matrix(a, sums_a, batch_a), matrix(b, sums_b, batch_b)
        if min(*a.shape, *b.shape) >= 16:
            dimensions = ((axis_a,), (axis_b,)), ((), ())
            return [lax.dot_general(a, b, dimensions, **options).reshape(shape)]
        a, b = (a if axis_a else a.T)[:, None], (b if axis_b else b.T)[None]
    else:
        rest_a, rest_b = (
            [n for n in range(x.ndim) if n not in sums and n not in batch]
            for x, sums, batch in ((a, sums_a, batch_a), (b, sums_b, batch_b))
        )
        a = jnp.expand_dims(
            a.transpose(*batch_a, *rest_a, *sums_a),
            range(a.ndim - len(sums_a), a.ndim - len(sums_a) + len(rest_b)),
        )
        b = jnp.expand_dims(
            b.transpose(*batch_b, *rest_b, *sums_b), range(len(batch_b), len(batch_b) + len(rest_a))
        )
        a, b = (x.reshape(*x.shape[: len(shape)], -1) for x in (a, b))
    dtype = equation.outvars[0].aval.dtype
    return [(a.astype(dtype) * b.astype(dtype)).sum(-1).reshape(shape)]


def all_or_any(reduce: Callable) -> Callable:
    def rule(equation, a):
        return [reduce(a.astype(jnp.int32), axis=equation.params['axes']) != 0]

    return rule


def sign(equation, a):
    return [(a > 0).astype(a.dtype) - (a < 0).astype(a.dtype)]


def empty(equation):
    # Not a scalar constant, which a loop of Triton does not return.
    return [jnp.zeros(1, jnp.int32).max().astype(equation.params['dtype'])]


def broadcast_in_dim(equation, a, *sizes):
    # Mosaic has no broadcast to a scalar.
    same = equation.params['shape'] == jnp.shape(a)
    return [a if same else equation.primitive.bind(a, *sizes, **equation.params)]


def round_to_even(equation, a):
    below = jnp.floor(a)
    rest, odd = a - below, below - 2 * jnp.floor(below / 2) == 1
    return [below + jnp.where((rest > 0.5) | ((rest == 0.5) & odd), 1, 0).astype(a.dtype)]


def select_n(equation, which, *cases):
    if len(cases) <= 2:
        return [lax.select_n(which, *cases)]
    found = cases[0]
    for n, case in enumerate(cases[1:], 1):
        found = jnp.where(which == n, case, found)
    return [found]


def cumsum(always: bool) -> Callable:
    """Sums along an axis as a product with a triangular matrix."""

    def rule(equation, a):
        axis, reverse = equation.params['axis'], equation.params['reverse']
        if not (reverse or always):
            return [lax.cumsum(a, axis)]
        size, dtype = a.shape[axis], a.dtype
        if size == 1:
            return [a]
        row, column = (lax.broadcasted_iota(jnp.int32, (size, size), n) for n in (0, 1))
        ones = (row >= column if reverse else row <= column).astype(jnp.float32)
        last = jnp.moveaxis(a.astype(jnp.float32), axis, -1)
        rows = last.reshape(-1, size)
        if len(rows) < 16:
            rows = (rows[:, None] * ones.T).sum(-1)
        else:
            rows = jnp.dot(rows, ones, precision='highest')
        return [jnp.moveaxis(rows.reshape(last.shape), -1, axis).astype(dtype)]

    return rule


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


def _split(a, axis: int, sizes) -> Any:
    """The array with one axis taken apart into two."""
    return a.reshape(*a.shape[:axis], *sizes, *a.shape[axis + 1 :])


def slices(equation, a):
    names = 'start_indices', 'limit_indices', 'strides'
    starts, limits, strides = (equation.params[n] for n in names)
    for axis, (start, limit, stride) in enumerate(zip(starts, limits, strides or (1,) * a.ndim)):
        length, size = a.shape[axis], len(range(start, limit, stride))
        if size == length:
            continue
        if stride == 1 and size and length % size == 0 and start % size == 0:
            a = pick(_split(a, axis, (-1, size)), axis, start // size)
        elif length == size * stride:
            a = pick(_split(a, axis, (size, stride)), axis + 1, start)
        else:
            ends = [(0, n) for n in a.shape]
            ends[axis] = start, limit
            begins, ends = zip(*ends)
            steps = [stride if n == axis else 1 for n in range(a.ndim)]
            a = lax.slice(a, begins, ends, steps)
    return [a]


def pad(equation, a, value):
    for axis, (low, high, between) in enumerate(equation.params['padding_config']):
        size = a.shape[axis]
        length = low + high + size + between * (size - 1)
        if length == size:
            continue
        if not between and size and length % size == 0 and low % size == 0:
            shape, place, part = (length // size, size), axis, low // size
        elif length == size * (between + 1):
            shape, place, part = (size, between + 1), axis + 1, low
        else:
            ends = [(low, high, between) if n == axis else (0, 0, 0) for n in range(a.ndim)]
            a = lax.pad(a, value, ends)
            continue
        whole = jnp.full((*a.shape[:axis], *shape, *a.shape[axis + 1 :]), value)
        a = put(a, place, part, whole).reshape(*a.shape[:axis], length, *a.shape[axis + 1 :])
    return [a]


def concatenate(equation, *parts):
    axis = equation.params['dimension']
    return [_joined(parts, axis)]


def _joined(parts, axis: int):
    size = parts[0].shape[axis]
    if any(part.shape[axis] != size for part in parts):
        return lax.concatenate(parts, axis)
    shape = [*parts[0].shape]
    shape.insert(axis, len(parts))
    whole = jnp.broadcast_to(jnp.expand_dims(parts[0], axis), shape)
    for n, part in enumerate(parts[1:], 1):
        whole = put(part, axis, n, whole)
    shape[axis : axis + 2] = [len(parts) * size]
    return whole.reshape(shape)


def stack(equation, *parts):
    axis = equation.params['axis']
    return [_joined([jnp.expand_dims(part, axis) for part in parts], axis)]


def split(equation, a):
    sizes, axis = equation.params['sizes'], equation.params['axis']
    if len(set(sizes)) > 1:
        return lax.split(a, sizes, axis)
    return [pick(_split(a, axis, (-1, sizes[0])), axis, n) for n in range(len(sizes))]


def unstack(equation, a):
    axis = equation.params['axis']
    return [pick(a, axis, n) for n in range(a.shape[axis])]


def loop(count: int, step: Callable, init: Any) -> Any:
    """`step(number, state)` for all numbers below `count`."""
    if count <= 4:
        for n in range(count):
            init = step(n, init)
        return init
    return lax.fori_loop(0, count, step, init)


def gather(equation, table, index):
    """A look-up along one axis of a table, as a loop over its entries."""
    p = equation.params
    d, shape = p['dimension_numbers'], equation.outvars[0].aval.shape
    axes, batch = d.start_index_map, d.operand_batching_dims
    rest = [n for n in range(table.ndim) if n not in (*axes, *batch)]
    simple = len(axes) == 1 and d.collapsed_slice_dims == axes
    if not simple or any(p['slice_sizes'][n] != table.shape[n] for n in rest):
        return [equation.primitive.bind(table, index, **p)]
    count, index = table.shape[axes[0]], index.reshape(index.shape[:-1])
    places = [n for n in range(len(shape)) if n not in d.offset_dims]  # those of the index
    chosen = lax.broadcast_in_dim(index, shape, places)
    # Where each axis of a part of the table lies in the result.
    where = dict(zip(rest, d.offset_dims))
    where.update({n: places[m] for n, m in zip(batch, d.start_indices_batching_dims)})
    order = sorted(where, key=where.__getitem__)
    kept = sorted(where)
    fill = p['fill_value']
    dropped = p['mode'] == lax.GatherScatterMode.FILL_OR_DROP
    if p['mode'] == lax.GatherScatterMode.CLIP:
        chosen = jnp.clip(chosen, 0, count - 1)
    if not dropped:
        fill = 0
    elif fill is None:
        fill = jnp.nan if jnp.issubdtype(table.dtype, jnp.floating) else 0

    def step(n, found):
        part = pick(table, axes[0], n).transpose([kept.index(axis) for axis in order])
        part = lax.broadcast_in_dim(part, shape, [where[axis] for axis in order])
        return jnp.where(chosen == n, part, found)

    return [loop(count, step, jnp.full(shape, fill, table.dtype))]


def scatter_add(equation, table, index, updates):
    """The transpose of `gather`."""
    p = equation.params
    d = p['dimension_numbers']
    axes, batch = d.scatter_dims_to_operand_dims, d.operand_batching_dims
    rest = [n for n in range(table.ndim) if n not in (*axes, *batch)]
    windows = [updates.shape[n] for n in d.update_window_dims]
    simple = len(axes) == 1 and d.inserted_window_dims == axes
    if not simple or windows != [table.shape[n] for n in rest]:
        return [equation.primitive.bind(table, index, updates, **p)]
    count, index = table.shape[axes[0]], index.reshape(index.shape[:-1])
    places = [n for n in range(updates.ndim) if n not in d.update_window_dims]
    chosen = lax.broadcast_in_dim(index, updates.shape, places)
    if p['mode'] == lax.GatherScatterMode.CLIP:
        chosen = jnp.clip(chosen, 0, count - 1)
    where = dict(zip(rest, d.update_window_dims))
    where.update({n: places[m] for n, m in zip(batch, d.scatter_indices_batching_dims)})
    order, kept = sorted(where, key=where.__getitem__), sorted(where)
    summed = tuple(n for n in range(updates.ndim) if n not in where.values())

    def step(n, sums):
        part = jnp.where(chosen == n, updates, jnp.zeros_like(updates))
        part = part.sum(summed) if summed else part
        part = part.transpose([order.index(axis) for axis in kept])
        return put(part, axes[0], n, sums)

    return [table + loop(count, step, jnp.zeros_like(table))]


def dynamic_slice(equation, a, *starts):
    for axis, (start, size) in enumerate(zip(starts, equation.params['slice_sizes'])):
        if size == a.shape[axis]:
            continue
        start = jnp.clip(start, 0, a.shape[axis] - size)
        init = jnp.zeros((*a.shape[:axis], size, *a.shape[axis + 1 :]), a.dtype)
        step = lambda n, whole: put(pick(a, axis, start + n), axis, n, whole)
        a = loop(size, step, init)
    return [a]


def dynamic_update_slice(equation, whole, a, *starts):
    axes = [n for n in range(a.ndim) if a.shape[n] != whole.shape[n]]
    if not axes:
        return [a]
    if len(axes) > 1:
        return [equation.primitive.bind(whole, a, *starts, **equation.params)]
    (axis,), size = axes, a.shape[axes[0]]
    start = jnp.clip(starts[axis], 0, whole.shape[axis] - size)
    step = lambda n, whole: put(pick(a, axis, n), axis, start + n, whole)
    return [loop(size, step, whole)]


def rev(equation, a):
    for axis in equation.params['dimensions']:
        last = a.shape[axis] - 1
        step = lambda n, whole: put(pick(a, axis, n), axis, last - n, whole)
        a = loop(last + 1, step, jnp.zeros_like(a))
    return [a]


EVERYWHERE: dict[str, Callable] = {
    'dot_general': dot_general,
    'reduce_and': all_or_any(jnp.min),
    'reduce_or': all_or_any(jnp.max),
    'sign': sign,  # Mosaic asks a device for its rule
    'empty2': empty,
    'select_n': select_n,
    'broadcast_in_dim': broadcast_in_dim,
    'gather': gather,
    'scatter-add': scatter_add,
    'dynamic_slice': dynamic_slice,
    'dynamic_update_slice': dynamic_update_slice,
    'rev': rev,
}
ON_TPU = {'cumsum': cumsum(always=True)}
ON_GPU = {
    'cumsum': cumsum(always=False),
    'round': round_to_even,
    'slice': slices,
    'pad': pad,
    'concatenate': concatenate,
    'stack': stack,
    'split': split,
    'unstack': unstack,
}


def rules(target: str) -> dict[str, Callable]:
    """The rules for 'cuda', 'tpu' or 'interpreter'."""
    return EVERYWHERE | (ON_TPU if target == 'tpu' else ON_GPU)
