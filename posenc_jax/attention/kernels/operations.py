"""Operations that kernels lack, written by those that they have.

A rule takes an equation of a program and its inputs, and returns its results, or None where it does
not apply. On a GPU, sizes are powers of two, so an input may have more room than its shape in the
equation says (`padding.py`). A look-up by index is a loop over the entries of the table, except
those of `look_up.py` on a GPU.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from posenc_jax.attention.kernels.constants import (
    concatenate,
    dynamic_slice,
    dynamic_update_slice,
    loop,
    pad,
    pick,
    put,
    rev,
    slices,
    split,
    stack,
    unstack,
)
from posenc_jax.attention.kernels.lanes import InLanes
from posenc_jax.attention.kernels.look_up import by_loop, in_room
from posenc_jax.attention.kernels.padding import (
    broadcast_in_dim,
    exact,
    fill,
    highest,
    iota,
    lowest,
    plainly,
    powers,
    reduction,
    reshape,
    shape_of,
)
from posenc_jax.attention.kernels.simplify import held, shaped, simplified
from posenc_jax.base.targets import of_tpu


def dot_general(least: int) -> Callable:
    """A product whose batch dimensions have one element as a product of matrices; any other, or one
    of a matrix with an axis below `least`, as a sum of products.
    """
    return functools.partial(_dot_general, least)


def _dot_general(least, equation, a, b):
    (sums_a, sums_b), (batch_a, batch_b) = equation.params['dimension_numbers']
    options = {n: equation.params[n] for n in ('precision', 'preferred_element_type')}
    a, b = fill(a, shape_of(equation, 0), sums_a, 0), fill(b, shape_of(equation, 1), sums_b, 0)
    rest_a, rest_b = (
        [n for n in range(x.ndim) if n not in sums and n not in batch]
        for x, sums, batch in ((a, sums_a, batch_a), (b, sums_b, batch_b))
    )
    shape = *(a.shape[n] for n in (*batch_a, *rest_a)), *(b.shape[n] for n in rest_b)

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
        if min(*a.shape, *b.shape) >= least:
            dimensions = ((axis_a,), (axis_b,)), ((), ())
            return [lax.dot_general(a, b, dimensions, **options).reshape(shape)]
        a, b = (a if axis_a else a.T)[:, None], (b if axis_b else b.T)[None]
    else:
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


def all_or_any(reduce: Callable, neutral: bool) -> Callable:
    def rule(equation, a):
        axes = equation.params['axes']
        return [
            reduce(fill(a, shape_of(equation), axes, neutral).astype(jnp.int32), axis=axes) != 0
        ]

    return rule


def sign(equation, a):
    return [(a > 0).astype(a.dtype) - (a < 0).astype(a.dtype)]


def empty(equation):
    # Not a scalar constant, which a loop of Triton does not return.
    return [jnp.zeros(1, jnp.int32).max().astype(equation.params['dtype'])]


def exp(equation, a):
    """By a power of two, which is one operation of a GPU."""
    return [lax.exp2(a * (1 / math.log(2)))] if a.dtype == jnp.float32 else None


def log1p(equation, a):
    """By the logarithm of a TPU. What is lost for small numbers is 2^-24."""
    return [lax.log(1 + a)] if a.dtype == jnp.float32 else None


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
        a = fill(a, shape_of(equation), (axis,), 0)
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


def gather(equation, table, index):
    """A look-up along one axis of a table, as a loop over its entries."""
    p, sizes = equation.params, shape_of(equation)
    d, ndim = p['dimension_numbers'], len(equation.outvars[0].aval.shape)
    axes, batch = d.start_index_map, d.operand_batching_dims
    rest = [n for n in range(table.ndim) if n not in (*axes, *batch)]
    simple = len(axes) == 1 and d.collapsed_slice_dims == axes
    if not simple or any(p['slice_sizes'][n] != sizes[n] for n in rest):
        return None
    count, index = sizes[axes[0]], index.reshape(index.shape[:-1])
    places = [n for n in range(ndim) if n not in d.offset_dims]  # those of the index
    # Where each axis of a part of the table lies in the result.
    where = dict(zip(rest, d.offset_dims))
    size_at = {at: table.shape[n] for n, at in where.items()} | dict(zip(places, index.shape))
    shape = [size_at[n] for n in range(ndim)]
    chosen = lax.broadcast_in_dim(index, shape, places)
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
    p, sizes = equation.params, shape_of(equation)
    d, shape = p['dimension_numbers'], shape_of(equation, 2)
    axes, batch = d.scatter_dims_to_operand_dims, d.operand_batching_dims
    rest = [n for n in range(table.ndim) if n not in (*axes, *batch)]
    windows = [shape[n] for n in d.update_window_dims]
    simple = len(axes) == 1 and d.inserted_window_dims == axes
    if not simple or windows != [sizes[n] for n in rest]:
        return None
    count, index = sizes[axes[0]], index.reshape(index.shape[:-1])
    places = [n for n in range(updates.ndim) if n not in d.update_window_dims]
    chosen = lax.broadcast_in_dim(index, updates.shape, places)
    if p['mode'] == lax.GatherScatterMode.CLIP:
        chosen = jnp.clip(chosen, 0, count - 1)
    where = dict(zip(rest, d.update_window_dims))
    where.update({n: places[m] for n, m in zip(batch, d.scatter_indices_batching_dims)})
    order, kept = sorted(where, key=where.__getitem__), sorted(where)
    summed = tuple(n for n in range(updates.ndim) if n not in where.values())
    updates = fill(updates, shape, summed, 0)

    def step(n, sums):
        part = jnp.where(chosen == n, updates, jnp.zeros_like(updates))
        part = part.sum(summed) if summed else part
        part = part.transpose([order.index(axis) for axis in kept])
        return put(part, axes[0], n, sums)

    return [table + loop(count, step, jnp.zeros_like(table))]


def without_booleans(a):
    """Integers in the place of booleans, where kernels cannot take these."""
    return a.astype(jnp.int32) if a.dtype == jnp.bool_ else a


def moved(equation, a):
    """An operation that moves entries. Mosaic does not move booleans."""
    if a.dtype != jnp.bool_:
        return None
    return [equation.primitive.bind(without_booleans(a), **equation.params) != 0]


def same(equation, a):
    """An operation that moves whole axes."""
    return [equation.primitive.bind(a, **equation.params)]


EVERYWHERE: dict[str, Callable] = {
    'reduce_and': all_or_any(jnp.min, True),
    'reduce_or': all_or_any(jnp.max, False),
    'sign': sign,  # Mosaic asks a device for its rule
    'empty2': empty,
    'select_n': select_n,
    'gather': gather,
    'scatter-add': scatter_add,
    'dynamic_update_slice': dynamic_update_slice,
    'rev': rev,
    'look_up': by_loop,
}
ON_TPU = {
    'dot_general': dot_general(least=1),
    'broadcast_in_dim': broadcast_in_dim(exact),
    'dynamic_slice': dynamic_slice(exact),
    'cumsum': cumsum(always=True),
    'log1p': log1p,
    'reshape': moved,
    'transpose': moved,
}
ON_GPU = {
    'dot_general': dot_general(least=16),
    'broadcast_in_dim': broadcast_in_dim(powers),
    'dynamic_slice': dynamic_slice(powers),
    'cumsum': cumsum(always=False),
    'exp': exp,
    'round': round_to_even,
    'slice': slices,
    'pad': pad,
    'concatenate': concatenate,
    'stack': stack,
    'split': split,
    'unstack': unstack,
    'iota': iota,
    'reshape': reshape,
    'transpose': same,
    'squeeze': same,
    'reduce_sum': reduction(lambda dtype: 0),
    'reduce_max': reduction(lowest),
    'reduce_min': reduction(highest),
    'argmax': reduction(lowest),
    'argmin': reduction(highest),
    'look_up': in_room(powers),
}


class Operations:
    """The operations of kernels for a target of `targets.made_for`. A call gives the results of an
    equation from its inputs.

    Attributes:
      room: the shape in which kernels hold an array of a shape.
      held: the same for an array in its room that is given from one program of a kernel to the
        next.
      hold: an array, and its shape in the room -> the array as it is held.
      simplified: a program of kernels, and which of its inputs are `OfRows` -> the one that is run,
        of arrays as they are held.
      inner: the operations in loops and branches, whose tables are no inputs of the kernel.
    """

    def __init__(self, target: str, inner: bool = False):
        on_tpu = of_tpu(target)
        self._rules = EVERYWHERE | (ON_TPU if on_tpu else ON_GPU)
        if inner:
            self._rules |= {'look_up': by_loop}
        self.inner = self if inner else Operations(target, inner=True)
        self.room = exact if on_tpu else powers
        if on_tpu:
            self.simplified = lanes = InLanes(128 if target == 'tpu' else 4)
            self.held, self.hold = lanes.held, lanes.hold
        else:
            self.simplified = lambda closed, _: simplified(closed, target)
            self.held, self.hold = held, lambda a, shape: shaped(a, held(shape))

    def __call__(self, equation, *inputs) -> list:
        rule, found = self._rules.get(equation.primitive.name), None
        if rule and not any(map(_is_key, inputs)):
            found = rule(equation, *inputs)
        return plainly(equation, self.room, *inputs) if found is None else found


def _is_key(a) -> bool:
    """Whether an array holds keys of random numbers, which are no numbers."""
    return jnp.issubdtype(jnp.result_type(a), jax.dtypes.extended)
