"""The largest array of a traced program, found without the compiler."""

import math

from posenc_jax.attention.kernels.program import at_any_depth


def largest_array(traced) -> int:
    """The number of entries of the largest array that a function makes on the way, loops and
    branches included. `traced` is the result of `jax.jit(function).trace(...)`.
    """
    return max(
        math.prod(getattr(variable.aval, 'shape', ()))
        for equation in at_any_depth(traced.jaxpr.eqns)
        for variable in equation.outvars
    )
