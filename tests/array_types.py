"""Checks of array annotations, which run at every call of a function while the tests run.

`tests/conftest.py` passes `check` to jaxtyping's import hook, which applies it to every function.
"""

import contextlib
import functools
import types
import typing

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

_CHECKER = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def check(function):
    """The function with its arguments and result checked against the annotations that name arrays.

    The other annotations are left alone: what a user gives in the place of a number or a name is
    refused by the package itself, with a message that other tests read. So are constructors: JAX
    calls those of pytrees with whatever stands in the place of an array, such as an axis number.
    """
    hints = {name: hint for name, hint in function.__annotations__.items() if _names_array(hint)}
    function.__annotations__ = {name: _with_numpy(hint) for name, hint in hints.items()}
    return _CHECKER(function)


def only_with_arrays(jaxtyped):
    """jaxtyping's decorator, which then leaves classes, constructors and functions alone that
    `check` would not check. A call of a decorated function costs a tenth of a millisecond.
    """

    def decorator(*, typechecker):
        decorate = jaxtyped(typechecker=typechecker)
        return lambda function: decorate(function) if _is_checked(function) else function

    return decorator


def _is_checked(function) -> bool:
    return (
        isinstance(function, types.FunctionType)
        and function.__name__ != '__init__'
        and any(map(_names_array, function.__annotations__.values()))
    )


def _is_array(hint) -> bool:
    return isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)


def _names_array(hint) -> bool:
    return _is_array(hint) or any(map(_names_array, typing.get_args(hint)))


_SCALARS = {int: int | np.integer, float: float | np.floating}


def _with_numpy(hint):
    """The annotation with NumPy's arrays beside JAX's, since functions of JAX take either, and with
    NumPy's scalars, which NumPy gives in the place of numbers and of arrays without axes.
    """
    if _is_array(hint) and hint.array_type in (jax.Array, np.ndarray):
        either = hint | hint.dtype[np.ndarray, hint.dim_str]
        axes = hint.dim_str.split()
        may_be_none = all(axis.startswith(('...', '*', '#*')) for axis in axes)
        return either | np.generic if may_be_none else either
    parts = tuple(typing.get_args(hint))
    if not parts or not _names_array(hint):
        return hint
    if isinstance(hint, type(int | str)):
        parts = [_SCALARS.get(part, part) for part in map(_with_numpy, parts)]
        return functools.reduce(lambda one, other: one | other, parts)
    origin = typing.get_origin(hint)
    return origin[tuple(map(_with_numpy, parts))] if isinstance(origin, type) else hint


def unchecked(raises):
    """`pytest.raises` without these checks inside: the package itself refuses arrays of a wrong
    shape, and tests read how.
    """

    @contextlib.contextmanager
    def within(context):
        before = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update('jaxtyping_disable', True)
        try:
            with context as raised:
                yield raised
        finally:
            jaxtyping.config.update('jaxtyping_disable', before)

    @functools.wraps(raises)
    def wrapped(*args, **kwargs):
        return within(raises(*args, **kwargs))

    return wrapped
