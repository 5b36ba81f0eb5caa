"""The rows of a batch that a process makes, and how they come to its devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from posenc_jax.lab.tasks import Batch
from posenc_jax.lab.train.step import DeviceBatch

Shard = tuple[int, int]
WHOLE: Shard = (0, 1)


def shard_of(sharding: NamedSharding, rows: int) -> Shard:
    """The shard of `Task.dataset` with the rows that the devices of this process read.

    It is `WHOLE` where these rows are not one of the equal pieces of the batch, for example because
    the devices of the mesh are in another order than the processes.

    Args:
      sharding: of a batch.
      rows: of the global batch; the mesh divides them.
    """
    parts: Any = sharding.addressable_devices_indices_map((rows, sharding.mesh.size)).values()
    own = np.unique([np.arange(rows)[part[0]] for part in parts])
    count, first = len(own), int(own[0])
    if own[-1] - first != count - 1 or first % count or rows % count:
        return WHOLE
    return first // count, rows // count


def device_batch(batch: Batch, sharding: NamedSharding, shard: Shard = WHOLE) -> DeviceBatch:
    """A batch as arrays over all devices.

    Args:
      batch: the rows of `shard`, in which the devices of this process find all of theirs.
      sharding: of the global batch.
      shard: see `shard_of`.
    """
    pieces = sharding.mesh.shape['sequence']

    def put(array):
        own = sharding
        # One target for the row, and the pixels of an image, are not cut along the sequence.
        if array.shape[1:2] == (1,) or array.ndim == 4:
            own = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
        shape = len(array) * shard[1], *array.shape[1:]
        local = array
        if not own.is_fully_addressable:
            parts: Any = own.addressable_devices_indices_map(shape).values()
            places = [
                np.unique([np.arange(size)[part[axis]] for part in parts])
                for axis, size in enumerate(shape)
            ]
            places[0] = places[0] - shard[0] * len(array)
            local = array[np.ix_(*places)]
        return jax.make_array_from_process_local_data(own, local, shape)

    if 'source' in batch and pieces > 1:
        batch = divisible(batch, pieces)
    return {name: put(array) for name, array in batch.items()}


def divisible(batch: Batch, pieces: int) -> Batch:
    """A batch whose source and target are padded on the right to multiples of `pieces`. The task
    sets both widths; where they are n and n + 1, one of them is odd for every n.
    """
    known = {'source_valid': np.ones(batch['source'].shape, bool), **batch}
    columns = lambda a: [(0, 0), (0, -a.shape[1] % pieces), *[(0, 0)] * (a.ndim - 2)]
    return {name: np.pad(array, columns(array)) for name, array in known.items()}
