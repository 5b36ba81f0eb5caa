"""Programs of kernels for TPUs, with a number for each query in all lanes of a register.

The vector units of a TPU work on registers of 8 rows of 128 lanes. A tile has its queries in rows
and its keys in lanes. A number for each query, such as the running maximum of a row, would lie
along the lanes, and each tile would move it into rows and copy it over the lanes. So a kernel holds
every array [1, 1, T] that has a number for each query as [T, 128], with each number in all lanes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from posenc_jax.attention.kernels.padding import Shape, entrywise, shape_of

_LANES = 128


class OfRows(jax.ShapeDtypeStruct):
    """The shape and dtype, in a door, of an array [1, T] with a number for each query. The shape
    does not tell it from other arrays, so this class does; kernels hold the array as [T, 128].
    """


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Numbers for rows, [T, 128], of an array in which they are all entries in their order."""

    array: Any


@dataclasses.dataclass(frozen=True)
class InLanes:
    """How kernels hold arrays.

    Attributes:
      side: numbers of queries are multiples of this. A TPU turns squares of 128; interpreted
        kernels have smaller tiles. A variable of the encoding may look like numbers for queries,
        which costs little.
    """

    side: int

    def held(self, shape) -> Shape:
        """The shape in which a kernel holds an array.

        Example:
          >>> held = InLanes(128).held
          >>> held((1, 1, 256)), held((1, 1, 256, 64)), held((1, 256))
          ((256, 128), (1, 1, 256, 64), (1, 256))
        """
        shape = tuple(shape)
        of_queries = len(shape) == 3 and shape[:2] == (1, 1) and self.fits(shape[2])
        return (shape[2], _LANES) if of_queries else shape

    def fits(self, count: int) -> bool:
        return count > 1 and count % self.side == 0

    def hold(self, a, shape) -> Any:
        """An array as a kernel holds it, from its entries in their order.

        Args:
          shape: that of the array in its program.
        """
        if self.held(shape) != tuple(shape):
            return _over_lanes(a, (jnp.size(a),))
        return a if jnp.shape(a) == tuple(shape) else a.reshape(shape)

    def __call__(self, closed: ClosedJaxpr, of_rows) -> ClosedJaxpr:
        """The program of arrays as they are held; so are its constants and its results.

        Args:
          of_rows: for each input, whether it is `OfRows`.
        """
        closed = ClosedJaxpr(closed.jaxpr, [self.hold(a, jnp.shape(a)) for a in closed.consts])
        shape = lambda a, rows: (a.size, _LANES) if rows else self.held(a.shape)
        inputs = [
            jax.ShapeDtypeStruct(shape(a.aval, rows), a.aval.dtype)
            for a, rows in zip(closed.jaxpr.invars, of_rows, strict=True)
        ]
        return jax.make_jaxpr(lambda *arrays: self._run(closed, arrays))(*inputs)

    def _run(self, closed: ClosedJaxpr, arguments) -> list:
        """The results of a program, from its arguments as they are held."""
        jaxpr, values = closed.jaxpr, {}
        names = *jaxpr.constvars, *jaxpr.invars
        for name, a in zip(names, (*closed.consts, *arguments), strict=True):
            values[name] = a if jnp.shape(a) == name.aval.shape else _Rows(a)
        read = lambda a: a.val if isinstance(a, Literal) else values[a]
        for equation in jaxpr.eqns:
            inputs = [*map(read, equation.invars)]
            rule = _RULES.get(equation.primitive.name, _by_entries)
            found = rule(self.fits, equation, *inputs)
            if found is None:
                inputs = [_plain(a, b.aval.shape) for a, b in zip(inputs, equation.invars)]
                found = equation.primitive.bind(*inputs, **equation.params)
            results = found if equation.primitive.multiple_results else [found]
            values.update(zip(equation.outvars, results))

        def result(name):
            a, shape = read(name), name.aval.shape
            return _plain(a, shape) if self.held(shape) == shape else _rows(a, shape).array

        return [*map(result, jaxpr.outvars)]


def release(a, shape) -> Any:
    """The entries of an array that a kernel holds, in a shape that has as many as its program."""
    return a.reshape(shape) if a.size == math.prod(shape) else _along(a, shape)


def _is_column(shape) -> bool:
    """Whether there is one axis of more than one entry at most, which is not the last one."""
    return len(shape) > 1 and shape[-1] == 1 and math.prod(shape) == max(shape)


def _over_lanes(a, shape):
    """A vector of this shape over all lanes, [T, 128]."""
    if a.dtype == jnp.bool_:
        return _over_lanes(a.astype(jnp.int32), shape) != 0
    return jnp.broadcast_to(a.reshape(-1, 1), (a.size, _LANES))


def _along(a, shape):
    """A vector of this shape from its numbers in all lanes."""
    if a.dtype == jnp.bool_:
        return _along(a.astype(jnp.int32), shape) != 0
    return (a[:, :1] if _is_column(shape) else a.T[:1]).reshape(shape)


def _rows(a, shape) -> _Rows:
    return a if isinstance(a, _Rows) else _Rows(_over_lanes(a, shape))


def _plain(a, shape):
    return _along(a.array, shape) if isinstance(a, _Rows) else a


def _spread(rows: _Rows, shape):
    """The numbers over the last axis of a shape whose axis in front of it has the rows."""
    a, width = rows.array, shape[-1]
    if a.dtype == jnp.bool_:
        return _spread(_Rows(a.astype(jnp.int32)), shape) != 0
    if width > _LANES:
        a = jnp.concatenate([a] * -(-width // _LANES), axis=1)
    return a[:, :width].reshape(shape)


def _by_entries(fits, equation, *inputs):
    """An operation that computes each number from those in the same place: of numbers for rows
    alone, or of such and of a tile.
    """
    if not any(isinstance(a, _Rows) for a in inputs) or not entrywise(equation):
        return None
    shape = equation.outvars[0].aval.shape
    if not shape or math.prod(shape) != max(shape):
        fits_rows = lambda b: _is_column(b.aval.shape) and b.aval.size == math.prod(shape[:-1])
        spread = lambda a, b: _spread(a, shape) if isinstance(a, _Rows) and fits_rows(b) else a
        inputs = [*map(spread, inputs, equation.invars)]
        if any(isinstance(a, _Rows) for a in inputs):
            return None
        return equation.primitive.bind(*inputs, **equation.params)
    single = lambda a: not isinstance(a, _Rows) and jnp.size(a) == 1
    one = lambda a, b: (
        a if jnp.ndim(a) == 0 else jnp.broadcast_to(a.reshape(1, 1), (max(shape), _LANES))
    )
    arrays = [
        one(a, b) if single(a) else _rows(a, b.aval.shape).array
        for a, b in zip(inputs, equation.invars)
    ]
    found = equation.primitive.bind(*arrays, **equation.params)
    return [*map(_Rows, found)] if equation.primitive.multiple_results else _Rows(found)


def _moved(fits, equation, a, *sizes):
    """An operation that moves axes: numbers for rows stay, and a vector along lanes becomes such
    numbers where it would become a column.
    """
    if isinstance(a, _Rows):
        return None if sizes else a
    new = equation.outvars[0].aval.shape
    turns = _is_column(new) and not _is_column(shape_of(equation)) and fits(a.size)
    return _rows(a, shape_of(equation)) if turns and not sizes else None


def _broadcast_in_dim(fits, equation, a, *sizes):
    old, new = shape_of(equation), equation.params['shape']
    if sizes or math.prod(old) != max(old, default=1):
        return None
    if math.prod(old) == 1:  # one number, for all queries
        same = math.prod(new) == max(new, default=1) and (len(new) == 3 or _is_column(new))
        if not same or not fits(max(new, default=1)) or old:
            return None
        return _Rows(jnp.full((max(new), _LANES), a))
    place = equation.params['broadcast_dimensions'][old.index(max(old))]
    behind = new[place + 1 :]
    if not behind or math.prod(new[:place]) * math.prod(behind[:-1]) != 1 or not fits(max(old)):
        return None
    rows = _rows(a, old)
    return rows if behind[-1] == 1 else _spread(rows, new)


def _reduction(fits, equation, a):
    """Over the lanes of a tile."""
    shape, axes = shape_of(equation), equation.params['axes']
    rows = math.prod(shape[:-1])
    if isinstance(a, _Rows) or len(shape) < 2 or tuple(axes) != (len(shape) - 1,):
        return None
    if rows != max(shape[:-1]) or not fits(rows):
        return None
    found = equation.primitive.bind(a.reshape(rows, shape[-1]), **{**equation.params, 'axes': (1,)})
    return _Rows(lax.broadcast_in_dim(found, (rows, _LANES), (0,)))


_RULES: dict[str, Callable] = {
    'broadcast_in_dim': _broadcast_in_dim,
    'reshape': _moved,
    'squeeze': _moved,
    'transpose': _moved,
    'reduce_max': _reduction,
    'reduce_min': _reduction,
    'reduce_sum': _reduction,
}
