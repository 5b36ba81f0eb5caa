"""A function of arrays as a program that a Pallas kernel can run.

Doors are written for XLA. A kernel knows fewer operations, and may not contain arrays that are
known while it is traced, such as a table of NumPy. A `Program` is the same function with calls
written out, without what its results do not need, and in operations that kernels have. Its
constants are arrays beside it, which the kernel gets as inputs.
"""

import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from posenc_jax.attention.kernels.lanes import OfRows
from posenc_jax.attention.kernels.look_up import Part, loaded
from posenc_jax.attention.kernels.operations import Operations, without_booleans
from posenc_jax.attention.kernels.padding import cut, widen
from posenc_jax.attention.kernels.sizes import NoKernelError
from posenc_jax.base.targets import INTERPRETED, of_tpu

_IN_KERNEL = contextvars.ContextVar[str | None]('the target of a program that is traced')


def in_kernel() -> bool:
    """Whether the function that is traced now will run in a kernel."""
    return _IN_KERNEL.get(None) is not None


def loads_entries() -> bool:
    """Whether that kernel can load entries of a table by their indices, as those of a GPU can."""
    target = _IN_KERNEL.get(None)
    return target is not None and not of_tpu(target)


def traced(target: str, function: Callable, *examples: Any) -> tuple[ClosedJaxpr, Any]:
    """A function as doors are traced in a kernel for a target, and the shapes of its result."""
    before = _IN_KERNEL.set(target)
    try:
        plain = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), examples)
        return jax.make_jaxpr(function, return_shape=True)(*plain)
    finally:
        _IN_KERNEL.reset(before)


class Program:
    """A traced function.

    Args:
      target: as for `targets.made_for`.
      function: a function of pytrees of arrays.
      *examples: pytrees of arrays or of `jax.ShapeDtypeStruct`, its arguments.

    Attributes:
      constants: the arrays that it reads beside its arguments.
      result: the pytree of `jax.ShapeDtypeStruct` that it returns.
      reads: for each array of the arguments, whether a result depends on it.

    Raises:
      NoKernelError: the function needs an operation that kernels of accelerators do not have.

    Example:
      >>> double = Program('interpreter', lambda x: 2 * x, jnp.ones(2))
      >>> double(double.constants, jnp.arange(2.0)).tolist()
      [0.0, 2.0]
    """

    def __init__(self, target: str, function: Callable, *examples: Any):
        closed, self.result = traced(target, function, *examples)
        operate = Operations(target)
        self._held, self._hold, self._room = operate.held, operate.hold, operate.room
        inputs = jax.tree.leaves(examples)
        flat = [jax.ShapeDtypeStruct(self._room(a.shape), a.dtype) for a in inputs]
        consts = [widen(a, self._room(jnp.shape(a))) for a in closed.consts]
        closed = ClosedJaxpr(closed.jaxpr, consts)
        write = lambda *arguments: _written_out(operate, closed, arguments)
        of_rows = [isinstance(a, OfRows) for a in inputs]
        flat = operate.simplified(jax.make_jaxpr(write)(*flat), of_rows)
        self._jaxpr, self._outputs = flat.jaxpr, flat.jaxpr.outvars
        self._all_constants = flat.consts
        self._restrict()
        if target not in INTERPRETED:
            for equation in at_any_depth(self._equations):
                _check(equation)

    def zeros(self) -> Any:
        """Zeros in the place of the results, to which these can be added."""
        zeros = lambda a: jnp.zeros(self._held(self._room(a.shape)), jnp.float32)
        return jax.tree.map(zeros, self.result)

    @property
    def loops(self) -> bool:
        """Whether there is a loop of a known length in it, such as one over the entries of a
        table.
        """
        return 'scan' in {equation.primitive.name for equation in at_any_depth(self._equations)}

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
        leaves = *constants, *jax.tree.leaves(arguments)
        names = *self._names, *self._jaxpr.invars
        hold = lambda a: self._hold(a, jnp.shape(a))
        given = dict(zip(names, leaves, strict=True))
        parts = {name: a for name, a in given.items() if isinstance(a, Part)}
        values = {name: hold(getattr(parts.get(name), 'array', a)) for name, a in given.items()}
        read = lambda a: a.val if isinstance(a, Literal) else values[a]
        for equation in self._equations:
            if equation.primitive.name == 'look_up':
                table, index = equation.invars
                results = [loaded(equation, parts.get(table) or read(table), read(index))]
            else:
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


def at_any_depth(equations: Iterable) -> Iterator:
    """The equations of a traced program, and those of the loops, branches and calls in them."""
    for equation in equations:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, 'eqns'):
                yield from at_any_depth(inner.eqns)


def _check(equation) -> None:
    """Refuses an operation that has no rule in the kernels of accelerators."""
    name, params = equation.primitive.name, equation.params
    if name.startswith('random_'):
        raise NoKernelError('does not draw random numbers in a tile')
    if name == 'scan' and (params['reverse'] or len(equation.outvars) > params['num_carry']):
        raise NoKernelError('does not loop over the rows of a tile')


def _written_out(operate, closed: ClosedJaxpr, arguments) -> list:
    """The results of a program, computed by operations that kernels have."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts))
    values.update(zip(jaxpr.invars, arguments))
    for equation in jaxpr.eqns:
        inputs = [a.val if isinstance(a, Literal) else values[a] for a in equation.invars]
        name = equation.primitive.name
        if name in _CALLS:
            results = _CALLS[name](operate, equation, *inputs)
        else:
            results = operate(equation, *inputs)
        values.update(zip(equation.outvars, results))
    return [a.val if isinstance(a, Literal) else values[a] for a in jaxpr.outvars]


def _call(name):
    return lambda operate, equation, *inputs: _written_out(
        operate, closed_jaxpr(equation.params[name]), inputs
    )


def closed_jaxpr(jaxpr) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _cond(operate, equation, index, *inputs):
    branches = equation.params['branches']
    if isinstance(index, int):  # the platform, which is known
        return _written_out(operate, branches[index], inputs)
    dtypes = [a.aval.dtype for a in equation.outvars]

    def run(branch):
        # A branch of Mosaic returns no booleans, and Triton takes either.
        return lambda *inputs: [*map(without_booleans, _written_out(operate.inner, branch, inputs))]

    found = lax.switch(index, [run(branch) for branch in branches], *inputs)
    return [a != 0 if dtype == jnp.bool_ else a for a, dtype in zip(found, dtypes)]


def _scan(operate, equation, *inputs):
    names = 'jaxpr', 'num_consts', 'num_carry', 'length', 'reverse', 'unroll'
    jaxpr, consts, carries, length, reverse, unroll = (equation.params[n] for n in names)
    fixed, carry, rows = inputs[:consts], inputs[consts:][:carries], inputs[consts + carries :]
    rows = [cut(row, (length, *row.shape[1:])) for row in rows]

    def step(carry, row):
        results = _written_out(operate.inner, jaxpr, (*fixed, *carry, *row))
        return tuple(results[:carries]), tuple(results[carries:])

    carry, rows = lax.scan(step, tuple(carry), tuple(rows), length, reverse, unroll)
    return [*carry, *(widen(row, (*operate.room((length,)), *row.shape[1:])) for row in rows)]


def _while(operate, equation, *inputs):
    names = 'cond_jaxpr', 'body_jaxpr', 'cond_nconsts', 'body_nconsts'
    cond, body, consts, more = (equation.params[n] for n in names)
    of_cond, of_body, carry = inputs[:consts], inputs[consts:][:more], inputs[consts + more :]
    run = lambda jaxpr, *arrays: _written_out(operate.inner, jaxpr, arrays)
    return lax.while_loop(
        lambda carry: run(cond, *of_cond, *carry)[0],
        lambda carry: run(body, *of_body, *carry),
        [*carry],
    )


def _platform(operate, equation):
    """The place of the default, which is meant for accelerators."""
    return [equation.params['platforms'].index(None)]


# The operations that call a function, and the name of the parameter that has it. 'pjit' is the name
# of 'jit' in earlier releases of JAX.
CALLS = {
    'jit': 'jaxpr', 'pjit': 'jaxpr', 'checkpoint': 'jaxpr', 'remat2': 'jaxpr',
    'closed_call': 'call_jaxpr', 'custom_jvp_call': 'call_jaxpr', 'custom_vjp_call': 'call_jaxpr',
}  # fmt: skip
_CALLS: dict[str, Callable] = {name: _call(inner) for name, inner in CALLS.items()} | {
    'optimization_barrier': lambda operate, equation, *inputs: inputs,
    'platform_index': _platform,
    'cond': _cond,
    'scan': _scan,
    'while': _while,
}
