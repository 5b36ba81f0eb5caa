"""Gradients that are written by hand, the precision of their products, and a scope in which JAX
differentiates instead.
"""

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from posenc_jax.base.meshes import vary, varying_axes

# Of `jax.default_matmul_precision`, and '' for what is set.
PRECISIONS = '', 'default', 'high', 'highest'

_BY_JAX = contextvars.ContextVar('derivatives by JAX', default=False)


def _refuse(*_, **__):
    raise TypeError("attend: forward-mode derivatives exist for implementation='dense' alone")


# The identity of tangents. Reverse mode transposes it and never evaluates it.
_tangent_p = Primitive('reverse_mode_only')
_tangent_p.def_impl(_refuse)
_tangent_p.def_abstract_eval(lambda tangent: tangent)
mlir.register_lowering(_tangent_p, _refuse)
ad.deflinear(_tangent_p, lambda cotangent: [cotangent])
batching.primitive_batchers[_tangent_p] = lambda args, axes: (_tangent_p.bind(*args), axes[0])


@jax.custom_jvp
def _guarded(a):
    return a


@_guarded.defjvp
def _guarded_jvp(primals, tangents):
    return primals[0], _tangent_p.bind(tangents[0])


def reverse_mode_only(tree: Any) -> Any:
    """The tree. A forward-mode derivative with respect to its floats is an error that says which
    form has one, however the caller wraps it in `jax.jit`.
    """
    is_float = lambda a: jnp.issubdtype(jnp.result_type(a), jnp.floating)
    return jax.tree.map(lambda a: _guarded(a) if is_float(a) else a, tree)


@contextlib.contextmanager
def forward_mode_refused() -> Iterator[None]:
    """A scope of a call of a `jax.custom_vjp`. Under `vmap` within `jit`, as in a compiled
    `jax.hessian`, JAX refuses a forward-mode derivative itself; its error becomes that of this
    module.
    """
    try:
        yield
    except TypeError as error:
        if 'custom_vjp' in str(error):
            _refuse()
        raise


@functools.cache
def at_precision(custom: Any) -> Callable:
    """A `jax.custom_vjp` as a function of a precision and its arguments.

    JAX traces gradient rules when it differentiates, which may be outside of the scope of
    `jax.default_matmul_precision` in which the function was called. Here the function and its
    gradient have products of the same precision, a value of `jax.default_matmul_precision`.
    """

    def scoped(rule):
        def run(precision, *arguments):
            with jax.default_matmul_precision(precision):
                return rule(*arguments)

        # JAX reads defaults of arguments in the signature.
        own = inspect.signature(rule)
        first = inspect.Parameter('precision', inspect.Parameter.POSITIONAL_ONLY)
        run.__name__ = rule.__name__
        run.__signature__ = own.replace(parameters=[first, *own.parameters.values()])
        return run

    skipped = 0, *(n + 1 for n in custom.nondiff_argnums)
    found = jax.custom_vjp(scoped(custom.fun), nondiff_argnums=skipped)
    found.defvjp(scoped(custom.fwd), scoped(custom.bwd))
    return found


def precision() -> Any:
    """The precision of products here, see `jax.default_matmul_precision`; None for that of JAX."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def at_own_precision(method: Callable) -> Callable:
    """A method whose products have the precision `self.precision`; '' for the one that is set."""

    @functools.wraps(method)
    def run(self, *arguments, **options):
        own = self.precision
        with jax.default_matmul_precision(own) if own else contextlib.nullcontext():
            return method(self, *arguments, **options)

    return run


def own_gradient(function: Callable, nondiff_argnums: tuple[int, ...] = ()) -> Any:
    """`jax.custom_vjp`, except inside `by_jax`, where JAX differentiates the function itself. Its
    gradient has products of the precision that is set where it is called.

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
        arrays = reverse_mode_only(vary(arrays, varying_axes(arrays)))
        with forward_mode_refused():
            own = (arrays.get(n, a) for n, a in enumerate(arguments))
            return at_precision(custom)(precision(), *own)

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


def trace_gradients(run: Callable, *arrays: Any) -> None:
    """Traces a function and its gradients and computes neither, to learn which errors they raise.

    Args:
      run: a function of the arrays.
      *arrays: arrays, or `jax.ShapeDtypeStruct`.
    """

    def gradients(*arrays):
        result, pull = jax.vjp(run, *arrays)
        return pull(result)

    jax.eval_shape(gradients, *arrays)
