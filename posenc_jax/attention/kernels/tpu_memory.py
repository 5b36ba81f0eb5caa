"""The memory of a TPU core: how a kernel keeps its state there, and what there is no room for."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from posenc_jax.attention.kernels.sizes import NoKernelError
from posenc_jax.attention.kernels.visits import Visits
from posenc_jax.base.memory import readable

_TPU_BYTES = 16 * 2**20  # what XLA gives a kernel of the vector memory of a core
# The scalar memory of a core has 1 MiB from TPU v4 on, of which the compiler uses some.
_TPU_SCALARS = 2**20 - 8 * 2**10


def _flat(shape: Sequence[int]) -> tuple[int, ...]:
    """Without axes of one entry in front, and with two axes at least, as a TPU stores arrays."""
    shape = (1, 1, *shape)
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def scratch_of(state) -> list[jax.ShapeDtypeStruct]:
    """How the arrays of a state are kept."""
    kind = lambda a: jnp.int32 if a.dtype == jnp.bool_ else a.dtype
    return [jax.ShapeDtypeStruct(_flat(a.shape), kind(a)) for a in jax.tree.leaves(state)]


def from_scratch(ref, like):
    """An array of a state."""
    a = ref[...].reshape(like.shape) if like.shape else ref[0, 0]
    return a != 0 if like.dtype == jnp.bool_ else a


def check_memory(specs: Sequence[pl.BlockSpec], dtypes: Sequence[Any], once) -> None:
    """Refuses parts that the memory of a TPU core surely does not hold: those of a step, twice, as
    those of the next one come while it is computed; and the state and one tile of logits, `once`.
    What the doors make beside these is known to the compiler alone.
    """
    parts = [(spec.block_shape or (), dtype, 2) for spec, dtype in zip(specs, dtypes, strict=True)]
    parts += [(a.shape, a.dtype, 1) for a in once]
    sizes = {}
    for shape, dtype, copies in parts:
        shape = tuple(n for n in shape if isinstance(n, int))
        *front, rows, lanes = [1, 1, *shape]
        tile = -(-rows // 8) * 8 * -(-lanes // 128) * 128  # a TPU stores tiles of 8 x 128
        bytes_of_one = math.prod(front) * tile * jnp.dtype(dtype).itemsize
        sizes[shape] = sizes.get(shape, 0) + copies * bytes_of_one
    if (needed := sum(sizes.values())) > _TPU_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        raise NoKernelError(
            f'would need {readable(needed)} of the memory of a TPU core, which has '
            f'{readable(_TPU_BYTES)}, most of it for arrays of shape {largest}',
            'use a smaller block (--config.model.block) or a smaller table',
        )


def check_scalars(visits: Visits, tables) -> None:
    """Refuses tables of visits that the scalar memory of a TPU core does not hold."""
    if (numbers := sum(a.size for a in tables)) * 4 > _TPU_SCALARS:
        rows = f' in each of {visits.rows} rows' if visits.rows > 1 else ''
        raise NoKernelError(
            f'would need the order of {visits.own} x {visits.others} blocks{rows}, which is '
            f'{numbers:,} numbers, and the scalar memory of a TPU core has room for '
            f'{_TPU_SCALARS // 4:,}',
            'use a larger block (--config.model.block) or fewer packed or padded rows, cut the '
            'sequence (mesh.sequence)',
        )
