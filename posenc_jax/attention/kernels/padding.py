"""Arrays of any size in kernels whose sizes are powers of two, as Triton wants them.

There an array of another size lies in a larger one, its room. What the room holds behind the array
is of no meaning, and may be NaN. So an operation that works entry by entry takes the room as it is.
One that sums over an axis, or moves entries along it, must know the size in the program. An
operation without a rule is given the array without its room; the interpreter computes that, and
Triton refuses it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Shape = tuple[int, ...]


def exact(shape: Sequence[int]) -> Shape:
    """The room of an array where kernels take all sizes."""
    return tuple(shape)


def powers(shape: Sequence[int]) -> Shape:
    """The room of an array where sizes are powers of two.

    Example:
      >>> powers((1, 3, 64, 65))
      (1, 4, 64, 128)
    """
    return tuple(1 << (int(n) - 1).bit_length() if n else 0 for n in shape)


def shape_of(equation, number: int = 0) -> Shape:
    """The shape of an input in the program."""
    return equation.invars[number].aval.shape


def widen(a, shape: Shape) -> Any:
    """The array with zeros behind it."""
    if jnp.shape(a) == shape:
        return a
    return jnp.pad(a, [(0, room - size) for size, room in zip(jnp.shape(a), shape, strict=True)])


def cut(a, shape: Shape) -> Any:
    """The array without its room."""
    return a if jnp.shape(a) == tuple(shape) else lax.slice(a, (0,) * len(shape), shape)


def fill(a, shape: Shape, axes, value) -> Any:
    """The array with a value behind its size in the program, along these axes."""
    for axis in axes:
        if a.shape[axis] != shape[axis]:
            here = lax.broadcasted_iota(jnp.int32, a.shape, axis) < shape[axis]
            a = jnp.where(here, a, jnp.asarray(value, a.dtype))
    return a


def reduction(neutral: Callable) -> Callable:
    """The rule of a reduction, from the value of a dtype that changes none."""

    def rule(equation, a):
        shape, axes = shape_of(equation), equation.params['axes']
        return [equation.primitive.bind(fill(a, shape, axes, neutral(a.dtype)), **equation.params)]

    return rule


def lowest(dtype) -> Any:
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


def highest(dtype) -> Any:
    return jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).max


def broadcast_in_dim(room: Callable[[Shape], Shape]) -> Callable:
    def rule(equation, a, *sizes):
        shape = room(equation.params['shape'])
        # Mosaic has no broadcast to a scalar.
        same = shape == jnp.shape(a)
        params = {**equation.params, 'shape': shape}
        return [a if same else equation.primitive.bind(a, *sizes, **params)]

    return rule


def iota(equation, *sizes):
    params = {**equation.params, 'shape': powers(equation.params['shape'])}
    return [equation.primitive.bind(*sizes, **params)]


def reshape(equation, a, *sizes):
    """Entries keep their order in a room if axes that are joined or taken apart have sizes that are
    powers of two behind the first of them.
    """
    old, new = shape_of(equation), equation.params['new_sizes']
    if equation.params['dimensions'] is not None or not _keeps_order(old, new):
        return None
    return [lax.reshape(a, powers(new))]


def _keeps_order(old: Shape, new: Shape) -> bool:
    ours, theirs = ([n for n in shape if n != 1] for shape in (old, new))
    while ours and theirs:
        one, other = [ours.pop(0)], [theirs.pop(0)]
        while (left := math.prod(one)) != (right := math.prod(other)):
            one.append(ours.pop(0)) if left < right else other.append(theirs.pop(0))
        rest = *one[1:], *other[1:]
        if powers(rest) != rest:
            return False
    return True


def entrywise(equation) -> bool:
    """Whether an operation computes each entry of its result from those in the same place of its
    inputs, whose axes of one entry it may repeat. Such an operation names no axis, and it also
    takes single numbers.
    """
    if not equation.params.keys().isdisjoint(('axis', 'axes', 'dimension', 'dimensions')):
        return False
    shape = equation.outvars[0].aval.shape
    for a in (*equation.invars, *equation.outvars):
        sizes = a.aval.shape or (1,) * len(shape)
        if len(sizes) != len(shape) or any(n not in (1, m) for n, m in zip(sizes, shape)):
            return False
    numbers = [jax.ShapeDtypeStruct((), a.aval.dtype) for a in equation.invars]
    run = lambda *inputs: equation.primitive.bind(*inputs, **equation.params)
    try:
        found = jax.tree.leaves(jax.eval_shape(run, *numbers))
    except Exception:  # JAX raises many kinds
        return False
    return all(a.shape == () for a in found)


def plainly(equation, room: Callable[[Shape], Shape], *inputs) -> list:
    """The results of an operation for which there is no rule."""
    bind, params = equation.primitive.bind, equation.params
    shapes, results = ([a.aval.shape for a in of] for of in (equation.invars, equation.outvars))
    fits = all(room(shape) == shape for shape in (*shapes, *results))
    if not fits and not entrywise(equation):
        inputs = [cut(a, shape) for a, shape in zip(inputs, shapes)]
    found = bind(*inputs, **params)
    found = found if equation.primitive.multiple_results else [found]
    return [widen(a, room(shape)) for a, shape in zip(found, results)]
