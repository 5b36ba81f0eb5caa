"""The doors of the pair stage in a kernel for Hopper, without axes of one entry.

Such a kernel has an array for the tile, [T, S], and arrays of numbers for its queries, [T], and for
its keys, [S]; Mosaic spreads each of them over threads in its own way. So a traced door is
evaluated on values that know along which of these axes they have entries. They are spread over the
tile where an operation combines them, and an axis of one entry costs nothing.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from posenc_jax.attention.kernels.program import CALLS, closed_jaxpr, traced
from posenc_jax.attention.kernels.sizes import NoKernelError

# Operations entry by entry for which Mosaic has a rule.
_ENTRIES = {
    'abs', 'add', 'and', 'clamp', 'convert_element_type', 'cos', 'div', 'eq', 'erf', 'exp', 'exp2',
    'floor', 'ge', 'gt', 'integer_pow', 'le', 'log', 'log1p', 'logistic', 'lt', 'max', 'min', 'mul',
    'ne', 'neg', 'not', 'or', 'rem', 'round', 'rsqrt', 'select_n', 'sign', 'sin', 'sqrt', 'square',
    'sub', 'tanh', 'xor',
}  # fmt: skip
# T and S differ, so an operation that moves axes of one entry cannot take queries for keys.
_MOVES = {'broadcast_in_dim', 'reshape', 'squeeze', 'expand_dims'}
_SAME = {'copy', 'optimization_barrier', 'stop_gradient'}
QUERY, KEY = 'q', 'k'


class Read:
    """The inputs of a door in one tile.

    Args:
      sizes: T and S, by their axes.
      leaf: the number of an input -> its numbers.
      first: (number, axis) -> the one of the first query or key.
      axis: for which axis the inputs have the number of the first entry alone, if any.
    """

    def __init__(self, sizes: dict[str, int], leaf: Callable, first: Callable, axis: str = ''):
        self.sizes, self._leaf, self._first, self._axis = sizes, leaf, first, axis
        self._found: dict[Any, Any] = {}
        self._of_first: dict[str, Read] = {}

    def __call__(self, value: 'Value') -> Any:
        """The numbers of a value, computed once."""
        if value not in self._found:
            self._found[value] = value.compute(self)
        return self._found[value]

    def input(self, number: int, axes: str) -> Any:
        if self._axis and self._axis in axes:
            return self._first(number, self._axis)
        return self._leaf(number)

    def axes(self, axes: str) -> str:
        return axes.replace(self._axis, '') if self._axis else axes

    def of_first(self, axis: str) -> 'Read':
        if axis not in self._of_first:
            self._of_first[axis] = Read(self.sizes, self._leaf, self._first, axis)
        return self._of_first[axis]

    def spread(self, a, own: str, axes: str) -> Any:
        """An array with entries along `own` as one along `axes`."""
        own, axes = self.axes(own), self.axes(axes)
        if own == axes:
            return a
        if a.dtype == jnp.bool_ and own:  # Mosaic does not move booleans
            return self.spread(a.astype(jnp.int32), own, axes) != 0
        shape = tuple(self.sizes[axis] for axis in axes)
        return lax.broadcast_in_dim(a, shape, tuple(axes.index(axis) for axis in own))


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A value of a door.

    Attributes:
      axes: those along which it has entries: '', 'q', 'k' or 'qk'.
      compute: from a `Read`, its numbers.
    """

    axes: str
    compute: Callable[[Read], Any]


class Door:
    """A traced function of the variables of an encoding, of tokens and of a tile of logits.

    Args:
      function: (variables, tq, tk, s) -> a pytree of arrays, of which the first one is logits.
      variables, tq, tk: pytrees of `jax.ShapeDtypeStruct`, as doors see them in a tile of one head.
      sizes: T and S, by their axes; they differ.

    Attributes:
      results: its values, None where the function gives None.
      used: the numbers of the leaves of (variables, tq, tk) on which they depend.
      tile: the number of the tile.
      keeps_logits: whether the first result is the tile as it was given.

    Raises:
      NoKernelError: an operation that this kernel does not have.
    """

    def __init__(self, function: Callable, variables, tq, tk, sizes: dict[str, int]):
        s = jax.ShapeDtypeStruct((1, 1, *sizes.values()), jnp.float32)
        closed, result = traced('cuda', function, variables, tq, tk, s)
        kinds = [('', variables), (QUERY, tq), (KEY, tk), (QUERY + KEY, s)]
        leaves = [(axes, leaf) for axes, tree in kinds for leaf in jax.tree.leaves(tree)]
        axes = [axes if leaf.size > 1 else '' for axes, leaf in leaves]
        inputs = [
            _input(n, a, leaf.dtype)
            if leaf.size in (1, math.prod(sizes[x] for x in axis))
            else _refused(leaf)
            for n, (a, (axis, leaf)) in enumerate(zip(axes, leaves))
        ]
        found = _evaluate(closed.jaxpr, [_constant(a) for a in closed.consts], inputs)
        self.results = jax.tree.unflatten(jax.tree.structure(result), found)
        used: set[int] = set()
        jax.eval_shape(lambda: self._tried(leaves, axes, used, sizes))
        self.used = sorted(used - {len(leaves) - 1})
        self.tile = len(leaves) - 1
        self.keeps_logits = jax.tree.leaves(self.results)[0] is inputs[-1]

    def _tried(self, leaves, axes, used: set[int], sizes) -> list:
        """The results for zeros, which tells what they read."""

        def zeros(number: int, axis: str = '') -> Any:
            used.add(number)
            shape = tuple(sizes[a] for a in axes[number] if a != axis)
            dtype = leaves[number][1].dtype
            return jnp.zeros(shape, jnp.int32 if dtype == jnp.bool_ else dtype)

        read = Read(sizes, zeros, zeros)
        return [read.spread(read(v), v.axes, v.axes) for v in jax.tree.leaves(self.results)]


def _input(number: int, axes: str, dtype) -> Value:
    """An input. A kernel has integers for booleans, of which Mosaic has tiles and single ones."""
    if dtype != jnp.bool_:
        return Value(axes, lambda read: read.input(number, axes))
    whole = QUERY + KEY if axes else ''
    return Value(whole, lambda read: read.spread(read.input(number, axes), axes, whole) != 0)


def _refused(leaf) -> Value:
    """An input that no kernel for Hopper reads, and few doors."""

    def refuse(read: Read):
        why = f'reads one number for each head or token, and not an array of {leaf.shape}'
        raise NoKernelError(why, form='hopper')

    return Value('', refuse)


def _constant(a) -> Value:
    if jnp.size(a) != 1:
        raise NoKernelError(
            f'reads no table in a door, and this one has the shape {jnp.shape(a)}', form='hopper'
        )
    number = np.asarray(a, jnp.result_type(a)).reshape(())
    return Value('', lambda read: jnp.asarray(number))


def _evaluate(jaxpr, constants: list[Value], inputs: list[Value]) -> list[Value]:
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, constants))
    values.update(zip(jaxpr.invars, inputs))
    get = lambda a: _constant(a.val) if isinstance(a, Literal) else values[a]
    for equation in jaxpr.eqns:
        given = [get(a) for a in equation.invars]
        values.update(zip(equation.outvars, _results(equation, given)))
    return [get(a) for a in jaxpr.outvars]


def _results(equation, given: list[Value]) -> list[Value]:
    name, params = equation.primitive.name, equation.params
    if name in _SAME:
        return given
    if name in CALLS:
        inner = closed_jaxpr(params[CALLS[name]])
        return _evaluate(inner.jaxpr, [*map(_constant, inner.consts)], given)
    if name in _MOVES:
        return [given[0]]
    if name == 'slice' and (found := _sliced(equation, given[0])) is not None:
        return [found]
    if name == 'iota' and equation.outvars[0].aval.size == 1:
        return [_constant(np.zeros((), equation.outvars[0].aval.dtype))]
    if name not in _ENTRIES:
        raise NoKernelError(f'does not compute `{name}` in a door', form='hopper')
    axes = ''.join(axis for axis in (QUERY, KEY) if any(axis in value.axes for value in given))

    def compute(read: Read) -> Any:
        arrays = [read.spread(read(value), value.axes, axes) for value in given]
        if name == 'log1p':  # what is lost for small numbers is 2^-24
            return jnp.log(1 + arrays[0])
        if name == 'convert_element_type':
            return arrays[0].astype(params['new_dtype'])
        return equation.primitive.bind(*arrays, **params)

    return [Value(axes, compute)]


def _sliced(equation, value: Value) -> Value | None:
    """The first query or key of a value, or all of it; None for other parts."""
    shape, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    cut = [n for n, (old, size) in enumerate(zip(shape, new)) if old != size]
    if not cut:
        return value
    if len(cut) > 1 or len(value.axes) != 1 or new[cut[0]] != 1:
        return None
    if equation.params['start_indices'][cut[0]] != 0:
        return None
    axis = value.axes
    return Value('', lambda read: read.of_first(axis)(value))
