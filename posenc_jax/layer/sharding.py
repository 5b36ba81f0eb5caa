"""The placement of arrays on a mesh: one table from roles to mesh axes.

Every variable names the role of each of its dimensions in `axes`; activations name theirs where
`constrain` is called. A leading dimension that `axes` does not name is the stack of layers and
stays whole.
"""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

MESH_AXES = ('data', 'fsdp', 'tensor', 'sequence')

# From roles to mesh axes. A role that is not listed is not cut (head_dim, the vocabulary, an
# encoding's own tables). Embeddings are cut along their width, since a gather from a table that is
# cut along its rows rebuilds the table.
ROLES: dict[str | None, str | tuple[str, ...]] = {
    'batch': ('data', 'fsdp'),
    'sequence': 'sequence',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'mlp': 'tensor',
    'width': 'fsdp',
}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, *, devices=None
) -> Mesh:
    """A mesh with the axes (data, fsdp, tensor, sequence); -1 for `data` takes the devices that are
    left.

    Args:
      data, fsdp, tensor, sequence: sizes of the axes.
      devices: the devices; None takes all devices of all processes.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or do not divide it.

    Example:
      >>> make_mesh(data=1, devices=jax.devices()[:1]).shape['tensor']
      1
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor, sequence]
    if min(sizes[1:]) < 1 or (data < 1 and data != -1):
        raise ValueError(
            f'mesh sizes must be positive (data may be -1), got {dict(zip(MESH_AXES, sizes))}'
        )
    if data == -1:
        parts, count = math.prod(sizes[1:]), len(devices)
        if count % parts:
            raise ValueError(
                f'mesh: tensor x fsdp x sequence = {parts} does not divide {count} '
                f'device{"s" * (count > 1)}; it can be {_divisors(count, parts)}; '
                f'on a CPU, mesh.cpu_devices={parts} splits it into that many devices'
            )
        sizes[0] = count // parts
    if math.prod(sizes) != (count := len(devices)):
        rest = math.prod(sizes[1:])
        raise ValueError(
            f'mesh {dict(zip(MESH_AXES, sizes))} needs {math.prod(sizes)} devices, there are '
            f'{count}; '
            + (
                f'tensor x fsdp x sequence can be {_divisors(count, rest)}'
                if count % rest
                else f'use mesh.data={count // rest}'
            )
        )
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def split_cpu(rows: int, count: int = 0) -> None:
    """Splits a CPU into several devices of one core or more; call it before any device is used.

    XLA runs small batched products, as in attention, on one core of a device, so two cores are
    faster as two devices than as one. Flags and settings of JAX or XLA that say how many devices
    there are take precedence over the choice by `rows`.

    Args:
      rows: rows that the devices will share, or 0.
      count: number of devices; 0 takes the largest that divides `rows`, up to one per core.

    Raises:
      ValueError: `count` is given, but JAX has started already with another number of devices.
    """
    decided = (
        'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
        or jax.config.jax_num_cpu_devices > 0  # pyright: ignore[reportAttributeAccessIssue]
    )
    if decided and not count:
        return
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    )
    try:
        jax.config.update(
            'jax_num_cpu_devices', count or max(n for n in range(1, cores + 1) if rows % n == 0)
        )
    except RuntimeError:
        if count and jax.local_device_count() != count:
            raise ValueError(
                f'{count} CPU devices asked for, but JAX runs already, with '
                f'{jax.local_device_count()}'
            ) from None
        return
    if count > cores:
        # A thread that waits in a collective keeps its place in XLA's pool, which has as many
        # threads as devices. All of them can wait for one that cannot start; XLA then ends the
        # process. Eight devices did so within 100 steps, and with four threads each in none of 600.
        os.environ.setdefault('PJRT_NPROC', str(4 * count))


def active_mesh():
    """The mesh set by `jax.set_mesh` if the table of this module applies to it, else None.

    It applies to meshes of several devices with the axes of `make_mesh`, all of them Auto. On
    another mesh, or inside `jax.shard_map`, arrays stay where the caller put them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    auto = {
        name for name, kind in zip(mesh.axis_names, mesh.axis_types or ()) if kind == AxisType.Auto
    }
    return None if mesh.empty or mesh.size == 1 or not auto >= set(MESH_AXES) else mesh


def spec_of(roles: tuple[str | None, ...], ndim: int | None = None) -> PartitionSpec:
    """How an array is cut, from the roles of its last dimensions. If it has `ndim` dimensions, more
    than roles, the first ones are not cut.
    """
    lead = 0 if ndim is None else ndim - len(roles)
    return PartitionSpec(*(None,) * lead, *(ROLES.get(role) for role in roles))


def constrain(x: Array, *roles: str | None) -> Array:
    """Fixes the layout of an activation by the roles of its dimensions; one of size 1 is not cut.
    Without a mesh it does nothing.
    """
    if active_mesh() is None:
        return x
    cut = tuple(role if size > 1 else None for role, size in zip(roles, x.shape))
    return jax.lax.with_sharding_constraint(x, spec_of(cut))


def mesh_parts(mesh, entry) -> int:
    """Into how many parts the mesh axes of an entry of a spec cut a dimension."""
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return math.prod(mesh.shape[name] for name in names)


def _divisors(size: int, parts: int) -> str:
    """The numbers of parts into which a size can be cut, up to twice those that were asked for."""
    *found, last = (n for n in range(1, min(size, 2 * parts) + 1) if size % n == 0)
    return f'{", ".join(map(str, found))} or {last}' if found else f'{last}'


def uncut(size: int, mesh, entry) -> str:
    """The end of a message about a size that does not fit the mesh axes of `entry`."""
    names = (entry,) if isinstance(entry, str) else entry
    parts, asked = mesh_parts(mesh, entry), ' x '.join(f'mesh.{name}' for name in names)
    choices = _divisors(math.gcd(size, mesh.size), parts)
    return f'cannot be cut into {parts} parts; of {mesh.size} devices, {asked} can be {choices}'


def nearest_multiple(size: int, parts: int) -> int:
    """The positive multiple of `parts` that is nearest to `size`, the larger of two.

    Example:
      >>> nearest_multiple(36, 8), nearest_multiple(33, 8), nearest_multiple(3, 8)
      (40, 32, 8)
    """
    return max(1, (size + parts // 2) // parts) * parts


def whole_rows(mesh: Mesh | None, rows: int) -> int:
    """The smallest number of rows, not below `rows`, that a mesh cuts evenly."""
    parts = 1 if mesh is None else mesh_parts(mesh, ROLES['batch'])
    return -(-rows // parts) * parts


def check_cut(mesh, what: str, shape: tuple[int, ...], spec: PartitionSpec) -> None:
    """Refuses a shape that the mesh axes of a spec do not divide."""
    for size, entry in zip(shape, spec):
        if size % (parts := mesh_parts(mesh, entry)):
            raise ValueError(
                f'{what} of shape {shape}: {size} {uncut(size, mesh, entry)}; the nearest size '
                f'that can be cut is {nearest_multiple(size, parts)}'
            )


def param_shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """The `NamedSharding` of every variable of a state, from its `axes` and the table of roles. A
    variable without `axes` is replicated.

    Raises:
      ValueError: a dimension that its mesh axes do not divide, with the numbers.
    """

    def sharding(path, variable):
        shape = jnp.shape(variable.get_value())
        spec = spec_of(variable.get_metadata().get('axes') or (), len(shape))
        check_cut(mesh, jax.tree_util.keystr(path), shape, spec)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(
        sharding, state, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )


def placed(state: nnx.State, mesh: Mesh) -> nnx.State:
    """A state, the same in all processes, on the devices of a mesh; errors as for
    `param_shardings`.
    """
    if jax.process_count() > 1:  # an array on a device of one process goes through its memory
        state = jax.tree.map(lambda a: np.asarray(a) if a.is_fully_addressable else a, state)
    return jax.device_put(state, param_shardings(state, mesh))


def dict_shapes(state: nnx.State, mesh: Mesh) -> dict[str, Any]:
    """A state as nested plain dicts of `ShapeDtypeStruct` with shardings; errors as for
    `param_shardings`.
    """
    shapes, shardings = nnx.to_pure_dict(state), jax.tree.leaves(param_shardings(state, mesh))
    place = lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    return jax.tree.map(place, shapes, jax.tree.unflatten(jax.tree.structure(shapes), shardings))
