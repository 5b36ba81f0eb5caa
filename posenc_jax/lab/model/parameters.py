"""Choices of the parameters of a model: a value for each of them; which of them decay."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from posenc_jax.protocol.encoding import Encoding


def map_params(model: nnx.Module, rule: Callable[[tuple, nnx.Variable], Any]) -> dict[str, Any]:
    """`rule(path, variable)` for every parameter, as a tree like that of the parameters."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param), lambda v: v)
    is_variable = lambda x: isinstance(x, nnx.Variable)
    keys = lambda path: tuple(key.key for key in path)
    return jax.tree_util.tree_map_with_path(
        lambda path, v: rule(keys(path), v), params, is_leaf=is_variable
    )


def decays(model: nnx.Module) -> dict[str, Any]:
    """The parameters that weight decay applies to, as a tree of booleans like that of the
    parameters.

    These are the arrays outside encodings that have at least two axes of their own; the stack of
    layers does not count as one. So norms, biases, and what an encoding learns do not decay. A
    variable with the metadata `decays=False` does not either.
    """
    encodings = [path for path, module in nnx.iter_modules(model) if isinstance(module, Encoding)]

    def rule(path, variable):
        axes = variable.get_metadata().get('axes')
        own = variable.get_value().ndim if axes is None else len(axes)
        if not variable.get_metadata().get('decays', True):
            return False
        return own >= 2 and not any(path[: len(prefix)] == prefix for prefix in encodings)

    return map_params(model, rule)
