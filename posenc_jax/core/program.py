"""A function of arrays as a program that a Pallas kernel can run.

Doors are written for XLA. A kernel knows fewer operations, and may not contain arrays that are
known while it is traced, such as a table of NumPy. A `Program` is the same function with calls
written out, without what its results do not need, and in operations that kernels have. Its
constants are arrays beside it, which the kernel gets as inputs.
"""

import contextvars
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from posenc_jax.core.kernel_operations import rules

_IN_KERNEL = contextvars.ContextVar('a program of a kernel is traced', default=False)


def in_kernel() -> bool:
    """Whether the function that is traced now will run in a kernel."""
    return _IN_KERNEL.get()


class Program:
    """A traced function.

    Args:
      target: 'cuda', 'tpu' or 'interpreter'.
      function: a function of pytrees of arrays.
      *examples: pytrees of arrays or of `jax.ShapeDtypeStruct`, its arguments.

    Attributes:
      constants: the arrays that it reads beside its arguments.
      result: the pytree of `jax.ShapeDtypeStruct` that it returns.
      reads: for each array of the arguments, whether a result depends on it.

    Example:
      >>> double = Program('interpreter', lambda x: 2 * x, jnp.ones(3))
      >>> double(double.constants, jnp.arange(3.0)).tolist()
      [0.0, 2.0, 4.0]
    """

    def __init__(self, target: str, function: Callable, *examples: Any):
        before = _IN_KERNEL.set(True)
        try:
            closed, self.result = jax.make_jaxpr(function, return_shape=True)(*examples)
        finally:
            _IN_KERNEL.reset(before)
        flat = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jax.tree.leaves(examples)]
        write = lambda *arguments: _written_out(rules(target), closed, arguments)
        flat = jax.make_jaxpr(write)(*flat)
        self._jaxpr, self._outputs = flat.jaxpr, flat.jaxpr.outvars
        self._all_constants = flat.consts
        self._restrict()

    def keep(self, kept) -> None:
        """Restricts the result to a list of some of its arrays."""
        self._outputs = [a for a, keep in zip(self._outputs, kept) if keep]
        self.result = [a for a, keep in zip(jax.tree.leaves(self.result), kept) if keep]
        self._restrict()

    def _restrict(self):
        self._equations, needed = _needed(self._jaxpr, self._outputs)
        self.reads = [a in needed for a in self._jaxpr.invars]
        known = zip(self._jaxpr.constvars, self._all_constants)
        pairs = [(a, constant) for a, constant in known if a in needed]
        self._names, self.constants = [a for a, _ in pairs], [constant for _, constant in pairs]

    def __call__(self, constants, *arguments: Any) -> Any:
        values: dict[Any, Any] = dict(zip(self._names, constants))
        values.update(zip(self._jaxpr.invars, jax.tree.leaves(arguments)))
        read = lambda a: a.val if isinstance(a, Literal) else values[a]
        for equation in self._equations:
            found = equation.primitive.bind(*map(read, equation.invars), **equation.params)
            results = found if equation.primitive.multiple_results else [found]
            values.update(zip(equation.outvars, results))
        return jax.tree.unflatten(jax.tree.structure(self.result), map(read, self._outputs))


def _needed(jaxpr, outputs) -> tuple[list, set]:
    """The equations on which the outputs depend, and all that they read."""
    needed, kept = {a for a in outputs if not isinstance(a, Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if needed & set(equation.outvars):
            kept.append(equation)
            needed |= {a for a in equation.invars if not isinstance(a, Literal)}
    return kept[::-1], needed


def _written_out(rules, closed: ClosedJaxpr, arguments) -> list:
    """The results of a program, computed by operations that kernels have."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts))
    values.update(zip(jaxpr.invars, arguments))
    for equation in jaxpr.eqns:
        inputs = [a.val if isinstance(a, Literal) else values[a] for a in equation.invars]
        name = equation.primitive.name
        if name in _CALLS:
            results = _CALLS[name](rules, equation, *inputs)
        elif name in rules and not any(map(_is_key, inputs)):
            results = rules[name](equation, *inputs)
        else:
            results = equation.primitive.bind(*inputs, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results))
    return [a.val if isinstance(a, Literal) else values[a] for a in jaxpr.outvars]


def _is_key(a) -> bool:
    """Whether an array holds keys of random numbers, which are no numbers."""
    return jnp.issubdtype(jnp.result_type(a), jax.dtypes.extended)


def _call(name):
    return lambda rules, equation, *inputs: _written_out(
        rules, _closed(equation.params[name]), inputs
    )


def _closed(jaxpr) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _cond(rules, equation, index, *inputs):
    branches = equation.params['branches']
    if isinstance(index, int):  # the platform, which is known
        return _written_out(rules, branches[index], inputs)
    run = lambda branch: lambda *inputs: _written_out(rules, branch, inputs)
    return lax.switch(index, [run(branch) for branch in branches], *inputs)


def _scan(rules, equation, *inputs):
    names = 'jaxpr', 'num_consts', 'num_carry', 'length', 'reverse', 'unroll'
    jaxpr, consts, carries, length, reverse, unroll = (equation.params[n] for n in names)
    fixed, carry, rows = inputs[:consts], inputs[consts:][:carries], inputs[consts + carries :]

    def step(carry, row):
        results = _written_out(rules, jaxpr, (*fixed, *carry, *row))
        return tuple(results[:carries]), tuple(results[carries:])

    carry, rows = lax.scan(step, tuple(carry), tuple(rows), length, reverse, unroll)
    return [*carry, *rows]


def _platform(rules, equation):
    """The place of the default, which is meant for accelerators."""
    return [equation.params['platforms'].index(None)]


_CALLS: dict[str, Callable] = {
    'jit': _call('jaxpr'),
    'pjit': _call('jaxpr'),  # its name in earlier releases of JAX
    'closed_call': _call('call_jaxpr'),
    'custom_jvp_call': _call('call_jaxpr'),
    'custom_vjp_call': _call('call_jaxpr'),
    'checkpoint': _call('jaxpr'),
    'remat2': _call('jaxpr'),
    'optimization_barrier': lambda rules, equation, *inputs: inputs,
    'platform_index': _platform,
    'cond': _cond,
    'scan': _scan,
}
