"""Programs of kernels for GPUs, without axes of one entry and without roundings that are undone.

Doors see tiles [1, 1, T, S]. Triton adds a product to a sum on the tensor cores where both are
matrices, and axes of one entry between the two prevent that. So a kernel holds every array without
such axes, and its sum of values is [T, H] throughout.

A gradient is rounded to the dtype of its array, and widened where it is added to others. Both steps
are left out, as XLA does.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from posenc_jax.attention.kernels.look_up import held_as
from posenc_jax.attention.kernels.padding import Shape, entrywise, shape_of
from posenc_jax.base import targets


def held(shape) -> Shape:
    """The shape in which a kernel holds an array.

    Example:
      >>> held((1, 1, 64, 32)), held((1, 1, 1)), held(())
      ((64, 32), (1,), ())
    """
    return tuple(n for n in shape if n != 1) or tuple(shape[:1])


def shaped(a, shape) -> Any:
    """The array in a shape that differs by axes of one entry at most."""
    return a if jnp.shape(a) == tuple(shape) else lax.reshape(a, shape)


def simplified(closed: ClosedJaxpr, target: str) -> ClosedJaxpr:
    """The program of arrays in the shapes of `held`; so are its constants and its results.

    Args:
      target: as for `targets.made_for`, a GPU.
    """
    like = lambda a: jax.ShapeDtypeStruct(held(jnp.shape(a)), a.dtype)
    consts = [shaped(a, held(jnp.shape(a))) for a in closed.consts]
    closed = ClosedJaxpr(closed.jaxpr, consts)
    inputs = [like(a.aval) for a in closed.jaxpr.invars]
    amd = 'gfx' in (targets.device() or '')
    rules = _RULES if amd or target in targets.INTERPRETED else _RULES | _OF_NVIDIA
    return jax.make_jaxpr(lambda *arrays: _simply(closed, rules, arrays))(*inputs)


def _simply(closed: ClosedJaxpr, rules, arguments) -> list:
    """The results of a program, from its arguments as they are held."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts))
    values.update(zip(jaxpr.invars, arguments))
    unrounded: dict[Any, Any] = {}  # arrays as they were before they were rounded
    read = lambda a: _array(a) if isinstance(a, Literal) else values[a]
    for equation in jaxpr.eqns:
        name, (result, *_) = equation.primitive.name, equation.outvars
        before = unrounded.get(equation.invars[0]) if _has_variable(equation) else None
        if name == 'convert_element_type':
            if before is not None and before.dtype == result.aval.dtype:
                values[result] = before
                continue
            if _rounds(equation):
                unrounded[result] = read(equation.invars[0])
        elif name in _MOVES and before is not None:
            unrounded[result] = _MOVES[name](equation, before)
        inputs = [*map(read, equation.invars)]
        if name == 'look_up':
            table, index = inputs
            given = any(table is a for a in (*closed.consts, *arguments))
            found = [held_as(equation, given, table, index, held)]
        else:
            found = _results(rules, equation, *inputs)
        values.update((a, shaped(b, held(a.aval.shape))) for a, b in zip(equation.outvars, found))
    return [*map(read, jaxpr.outvars)]


def _array(literal) -> Any:
    """The value of a literal, as it is held. JAX may have a number of Python there."""
    value = literal.val
    value = value if hasattr(value, 'ndim') else np.asarray(value, literal.aval.dtype)
    return shaped(value, held(jnp.shape(value)))


def _has_variable(equation) -> bool:
    return bool(equation.invars) and not isinstance(equation.invars[0], Literal)


def _rounds(equation) -> bool:
    """Whether an equation makes floats of fewer bits of floats."""
    (old,), new = equation.invars, equation.params['new_dtype']
    floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (old.aval.dtype, new))
    return floats and jnp.finfo(new).bits < jnp.finfo(old.aval.dtype).bits


def _results(rules, equation, *inputs) -> list:
    """The results of an equation whose inputs are held; an operation without a rule gets them in
    the shapes of the program.
    """
    rule, params = rules.get(equation.primitive.name), equation.params
    found = rule(equation, *inputs) if rule else None
    if found is not None:
        return [found]
    shape, entries = equation.outvars[0].aval.shape, _by_entries(equation)
    places = range(len(shape))
    whole = lambda a, old: _spread(a, old, places, shape) if entries and old else shaped(a, old)
    inputs = [whole(a, b.aval.shape) for a, b in zip(inputs, equation.invars)]
    found = equation.primitive.bind(*inputs, **params)
    return found if equation.primitive.multiple_results else [found]


def _by_entries(equation) -> bool:
    """Whether an operation computes each entry of its result from those in the same place."""
    inner = any(hasattr(a, 'eqns') for a in jax.tree.leaves(list(equation.params.values())))
    return bool(equation.invars) and not inner and entrywise(equation)


def _kept(shape) -> list[int]:
    """The axes that are held."""
    return [n for n, size in enumerate(shape) if size != 1]


def _spread(a, old, places, new) -> Any:
    """An array, as it is held, whose axes come to these places of a new shape, as that is held."""
    kept, at = _kept(new), [places[n] for n in _kept(old)]
    if at == kept:
        return shaped(a, held(new))
    # Without an axis that is held, its one entry goes along the last one.
    at = [kept.index(n) for n in at] if at else [len(kept) - 1] * a.ndim
    return lax.broadcast_in_dim(a, held(new), at)


def _broadcast_in_dim(equation, a, *sizes):
    if sizes:
        return None
    shape, places = equation.params['shape'], equation.params['broadcast_dimensions']
    return _spread(a, shape_of(equation), places, shape)


def _reshape(equation, a, *sizes):
    if sizes or equation.params['dimensions'] is not None:
        return None
    return shaped(a, held(equation.outvars[0].aval.shape))


def _transpose(equation, a):
    kept = _kept(shape_of(equation))
    order = [kept.index(n) for n in equation.params['permutation'] if n in kept]
    return a if order == sorted(order) else lax.transpose(a, order)


def _reduction(equation, a):
    kept = _kept(shape_of(equation))
    axes = tuple(kept.index(n) for n in equation.params['axes'] if n in kept)
    return equation.primitive.bind(a, **{**equation.params, 'axes': axes}) if axes else a


def _iota(equation, *sizes):
    shape, axis = equation.params['shape'], equation.params['dimension']
    if sizes or shape[axis] == 1:
        return None
    return lax.broadcasted_iota(equation.params['dtype'], held(shape), _kept(shape).index(axis))


def _exp2(equation, a):
    """What a GPU of NVIDIA has. `lax.exp2` adds three operations for results below 2^-126, which
    are zero here.
    """
    from jax.experimental.pallas import triton

    if a.dtype != jnp.float32 or not a.ndim:
        return None
    (found,) = triton.elementwise_inline_asm(
        'ex2.approx.ftz.f32 $0, $1;', args=[a], constraints='=f,f', pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(a.shape, a.dtype)],
    )  # fmt: skip
    return found


def _log1p(equation, a):
    """By a logarithm to the base 2, which is one operation of a GPU of NVIDIA. Results are off by
    2^-22 at most, or by 2^-22 of themselves.
    """
    from jax.experimental.pallas import triton

    if a.dtype != jnp.float32 or not a.ndim:
        return None
    (found,) = triton.elementwise_inline_asm(
        'lg2.approx.ftz.f32 $0, $1;', args=[1 + a], constraints='=f,f', pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(a.shape, a.dtype)],
    )  # fmt: skip
    return found * math.log(2)


_MOVES: dict[str, Callable] = {
    'broadcast_in_dim': _broadcast_in_dim,
    'reshape': _reshape,
    'transpose': _transpose,
}
_RULES = _MOVES | {
    'reduce_max': _reduction,
    'reduce_min': _reduction,
    'reduce_sum': _reduction,
    'iota': _iota,
}
_OF_NVIDIA = {'exp2': _exp2, 'log1p': _log1p}
