"""Programs on a mesh of the caller: Explicit axes, and the manual axes of `jax.shard_map`."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array


def explicit_spec(a: Array) -> PartitionSpec | None:
    """How an array is cut along Explicit mesh axes; None where its mesh has none of them.

    Raises:
      ValueError: the mesh of the array is not set.
    """
    sharding = jax.typeof(a).sharding
    if AxisType.Explicit not in (sharding.mesh.axis_types or ()) or sharding.mesh.size == 1:
        return None
    if AxisType.Explicit not in (jax.sharding.get_abstract_mesh().axis_types or ()):
        raise ValueError(
            'the arrays lie on a mesh with Explicit axes; call this inside '
            '`with jax.set_mesh(mesh):`'
        )
    return PartitionSpec(*sharding.spec, *[None] * (a.ndim - len(sharding.spec)))


def with_auto_axes(function: Callable, out_spec: Any, *arguments) -> Any:
    """`function(*arguments)` in a scope where the compiler places all arrays.

    Args:
      function: needs no placement of its own.
      out_spec: how its results are cut along the Explicit axes outside that scope.
      *arguments: pytrees of arrays. All arrays that the function reads are among them.
    """
    return jax.sharding.auto_axes(function, out_sharding=out_spec)(*arguments)


def compiler_cuts() -> bool:
    """Whether there are several devices and the compiler says what each computes: outside of a
    `jax.shard_map` over all axes of the mesh.
    """
    kinds = jax.sharding.get_abstract_mesh().axis_types or ()
    return jax.device_count() > 1 and not (kinds and set(kinds) == {AxisType.Manual})


def varying_axes(*trees: Any) -> tuple[str, ...]:
    """The manual mesh axes (of `jax.shard_map`) over which some leaf of the trees varies."""
    return tuple(sorted(set().union(*map(_varying, jax.tree.leaves(trees)))))


def _varying(a) -> frozenset[str]:
    kind = jax.typeof(a)
    return kind.manual_axis_type.varying if hasattr(kind, 'manual_axis_type') else kind.vma


def vary(tree: Any, axes: tuple[str, ...]) -> Any:
    """The tree with every leaf marked as varying over these manual mesh axes.

    `jax.shard_map` checks that loops and gradients keep such marks.
    """

    def cast(a):
        missing = tuple(axis for axis in axes if axis not in _varying(a))
        if not missing:
            return a
        if hasattr(jax.lax, 'pcast'):
            return jax.lax.pcast(a, missing, to='varying')
        return getattr(jax.lax, 'pvary')(a, missing)  # noqa: B009, its name before jax 0.9

    return jax.tree.map(cast, tree) if axes else tree
