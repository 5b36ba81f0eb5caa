import types
from typing import Any

import jax
import pytest
from jax.sharding import NamedSharding

from posenc_jax.lab.train.batches import WHOLE, shard_of
from posenc_jax.layer.sharding import make_mesh, spec_of

ROWS = 8


def of_devices(numbers, **sizes) -> Any:
    """The sharding of a batch as a process sees it that has these devices of eight."""
    whole: Any = NamedSharding(make_mesh(**sizes), spec_of(('batch', 'sequence')))
    own = {whole.mesh.devices.flat[number] for number in numbers}
    parts = lambda shape: {
        device: part for device, part in whole.devices_indices_map(shape).items() if device in own
    }
    return types.SimpleNamespace(mesh=whole.mesh, addressable_devices_indices_map=parts)


@pytest.mark.skipif(len(jax.devices()) < 8, reason='needs eight emulated devices')
def test_the_shard_of_a_process_has_the_rows_of_its_devices():
    for sizes, count in (
        (dict(data=8), 4),
        (dict(data=2, fsdp=4), 4),
        (dict(data=4, sequence=2), 4),
        (dict(data=1, fsdp=2, tensor=2, sequence=2), 2),  # two processes share each half
        (dict(data=1, tensor=8), 1),  # all of them need all rows
    ):
        for process in range(4):
            found = shard_of(of_devices((2 * process, 2 * process + 1), **sizes), ROWS)
            assert found == (process * count // 4, count)
    assert shard_of(of_devices(range(8), data=8), ROWS) == WHOLE


@pytest.mark.skipif(len(jax.devices()) < 8, reason='needs eight emulated devices')
def test_rows_that_are_no_piece_of_the_batch_are_cut_from_the_whole():
    for numbers in ((0, 7), (1, 2), (0, 1, 2)):
        assert shard_of(of_devices(numbers, data=8), ROWS) == WHOLE
