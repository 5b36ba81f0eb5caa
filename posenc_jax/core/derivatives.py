"""Gradients that are written by hand, and a scope in which JAX differentiates instead."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from posenc_jax.core.meshes import vary, varying_axes

_BY_JAX = contextvars.ContextVar('derivatives by JAX', default=False)


def own_gradient(function: Callable, nondiff_argnums: tuple[int, ...] = ()) -> Any:
    """`jax.custom_vjp`, except inside `by_jax`, where JAX differentiates the function itself.

    JAX cannot take forward-mode derivatives of a function with a gradient of its own.

    Args:
      function: the function; the `defvjp` of the result takes its gradient rules.
      nondiff_argnums: as for `jax.custom_vjp`.
    """
    custom: Any = jax.custom_vjp(function, nondiff_argnums=nondiff_argnums)

    @functools.wraps(function)
    def call(*arguments):
        if _BY_JAX.get():
            return function(*arguments)
        arrays = {n: a for n, a in enumerate(arguments) if n not in nondiff_argnums}
        # `jax.shard_map` demands that a gradient varies over the axes over which its argument does.
        arrays = vary(arrays, varying_axes(arrays))
        return custom(*(arrays.get(n, a) for n, a in enumerate(arguments)))

    marked: Any = call
    marked.defvjp = custom.defvjp
    return marked


@contextlib.contextmanager
def by_jax() -> Iterator[None]:
    """In this scope, functions marked by `own_gradient` are traced without their own gradients."""
    before = _BY_JAX.set(True)
    try:
        yield
    finally:
        _BY_JAX.reset(before)
