"""The pipeline of batches: seeds, shards, masks, and rows of different lengths."""

import subprocess
import sys
import zlib

import numpy as np
import pytest

from posenc_jax.lab.tasks import batch_iterator
from posenc_jax.lab.tasks.sequences import join_ragged, next_token_batch
from posenc_jax.lab.tasks.task import SPLITS, batch_rng, length_range, shard_rows
from tests.lab.tasks.rows import make


@pytest.mark.parametrize(
    'bad, message',
    [
        (dict(batch_size=5, shard=(0, 2)), 'nearest: 4 or 6'),
        (dict(batch_size=1, shard=(0, 2)), 'nearest: 2'),
        (dict(shard=(2, 2)), 'process'),
        (dict(batch_size=0), 'at least 1'),
        (dict(seed=-1), 'seed'),
        (dict(seed=2**32), 'seed'),
        (dict(seed=1.5), 'seed'),
        (dict(split='valid'), "did you mean 'validation'"),
        (dict(length=0), 'at least'),
    ],
)
@pytest.mark.parametrize('spec', ['copy()', 'language()'])
def test_wrong_pipeline_arguments_fail_when_the_dataset_is_made(spec, bad, message):
    good = dict(length=8, batch_size=4, seed=0)
    make(spec).dataset(**good)
    with pytest.raises(ValueError, match=message):
        make(spec).dataset(**(good | bad))


def test_seed_and_index_are_not_interchangeable():
    draws = [
        batch_rng(seed, s, i).integers(2**62) for s in SPLITS for seed in range(4) for i in range(4)
    ]
    assert len(set(draws)) == len(draws)
    assert batch_rng(1, 'train', 0).integers(2**62) != batch_rng(0, 'train', 2**32).integers(2**62)


def test_known_first_draws_stay_the_same_on_every_machine():
    # PCG64 keyed by SeedSequence([crc32('train'), 5], spawn_key=(7,)), written out with numpy
    # alone.
    sequence = np.random.SeedSequence([zlib.crc32(b'train'), 5], spawn_key=(7,))
    expected = np.random.Generator(np.random.PCG64(sequence)).integers(0, 1000, 4)
    np.testing.assert_array_equal(batch_rng(5, 'train', 7).integers(0, 1000, 4), expected)


def test_mask_convention():
    # s = p0 p1 a0 a1 E and padding; the answer begins at 2, N = 5: 1 <= t <= 3.
    batch = next_token_batch(np.array([[10, 11, 20, 21, 30, 0, 0]]), np.array([5]), np.array([2]))
    np.testing.assert_array_equal(batch['tokens'], [[10, 11, 20, 21, 30, 0]])
    np.testing.assert_array_equal(batch['targets'], [[11, 20, 21, 30, 0, 0]])
    np.testing.assert_array_equal(batch['loss_mask'], [[0, 1, 1, 1, 0, 0]])


def test_join_ragged():
    pieces = [
        (np.array([[1, 2, 3], [4, 5, 6]]), np.array([3, 1])),
        (np.array([[9]]), np.array([1, 1])),
    ]
    rows, ends = join_ragged(pieces, 5, 0)
    np.testing.assert_array_equal(rows, [[1, 2, 3, 9, 0], [4, 9, 0, 0, 0]])
    np.testing.assert_array_equal(ends, [4, 2])


def test_length_range_takes_lists_and_numpy_ints():
    assert length_range([1, 3], 1, 'n') == (1, 3)
    assert length_range(np.int64(3), 1, 'n') == (3, 3)
    assert shard_rows(6, (1, 3)) == slice(2, 4)


def test_prefetch_is_bounded():
    import grain

    made = []
    iterator = batch_iterator(
        grain.MapDataset.range(1000).map(lambda i: made.append(i) or i), prefetch=2
    )
    assert [next(iterator) for _ in range(5)] == list(range(5))
    assert len(made) <= 5 + 3


@pytest.mark.full
def test_importing_tasks_is_light():
    heavy = ('grain', 'tensorflow_datasets', 'tensorflow')
    shown = f'print([name for name in {heavy} if name in sys.modules])'
    code = f'import sys, posenc_jax.lab.tasks; {shown}'
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        ).stdout
        == '[]\n'
    )
