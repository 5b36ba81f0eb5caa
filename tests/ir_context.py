"""One MLIR context for many programs.

JAX makes a context for every program that it lowers, and loads all dialects into it. That is a
quarter of the time of an eager operation, and the tests compile tens of thousands of those. What a
context keeps does not depend on which programs it has seen, but it keeps it for ever, so a new one
comes after every few hundred programs.
"""

from jax._src.interpreters import mlir

_PROGRAMS_PER_CONTEXT = 500


def share():
    """From now on JAX takes one context for many programs. Does nothing where a release of JAX
    makes its contexts in another way.
    """
    make = getattr(mlir, 'make_ir_context', None)
    if make is None:
        return
    made, context = 0, None

    def shared():
        nonlocal made, context
        if made % _PROGRAMS_PER_CONTEXT == 0:
            context = make()
        made += 1
        return context

    mlir.make_ir_context = shared
