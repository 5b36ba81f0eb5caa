"""What a traced program says about its memory, without the compiler."""

import math

import jax


def largest_array(traced) -> int:
    """The number of entries of the largest array that a function makes on the way, loops and
    branches included. `traced` is the result of `jax.jit(function).trace(...)`.
    """
    return max(_sizes(traced.jaxpr))


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield math.prod(getattr(variable.aval, 'shape', ()))
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, 'eqns'):
                yield from _sizes(inner)
