import numpy as np
import pytest

from posenc_jax.lab.tasks.language.packing import best_fit_decreasing, pack_documents, packed_batch
from posenc_jax.lab.tasks.language.windows import crops, windows


def test_best_fit_decreasing():
    assert best_fit_decreasing(np.array([2, 6, 4, 5, 3, 1]), 7) == [[1, 5], [3, 0], [2, 4]]


@pytest.mark.parametrize('length', [4, 7, 64])
def test_every_token_but_each_documents_first_is_a_target_once(length):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 256, size).astype(np.int32) for size in rng.integers(1, 30, 40)]
    packed = pack_documents(documents, length)
    batch = packed_batch(packed, np.arange(packed.rows))
    scored = batch['loss_mask'] == 1
    expected = np.concatenate([document[1:] for document in documents])
    np.testing.assert_array_equal(np.sort(batch['targets'][scored]), np.sort(expected))
    assert (batch['segment'] > 0)[scored].all() and (batch['segment'][~scored] == 0).all()
    assert packed.rows <= -(-len(expected) // length) * 1.25 + 1


def test_a_segment_is_a_run_of_one_document():
    documents = [np.arange(100 * k, 100 * k + size) for k, size in enumerate([9, 3, 5, 2, 4, 23])]
    packed = pack_documents(documents, 8)
    batch = packed_batch(packed, np.arange(packed.rows))
    for tokens, targets, segment in zip(batch['tokens'], batch['targets'], batch['segment']):
        assert (np.diff(segment[segment > 0]) >= 0).all()  # in order, padding on the right
        assert (np.diff(np.flatnonzero(segment == 0)) == 1).all() and (segment[0] == 1)
        for number in range(1, segment.max() + 1):
            inside = segment == number
            assert (np.diff(tokens[inside]) == 1).all()
            np.testing.assert_array_equal(targets[inside], tokens[inside] + 1)
            assert len(set(targets[inside] // 100)) == 1


def test_rows_beyond_the_last_are_padding():
    packed = pack_documents([np.arange(5)], 8)
    batch = packed_batch(packed, np.array([0, 1]))
    assert batch['loss_mask'].sum(axis=1).tolist() == [4, 0]
    assert not batch['segment'][1].any()


def test_windows_score_every_target_once_and_pad_the_rest():
    stream = np.arange(100, 111)
    batch = windows(stream, np.arange(4), 4)
    np.testing.assert_array_equal(batch['targets'][batch['loss_mask'] == 1], stream[1:])
    np.testing.assert_array_equal(batch['loss_mask'].sum(axis=1), [4, 4, 2, 0])
    np.testing.assert_array_equal(batch['tokens'][2], [108, 109, 0, 0])


def test_crops():
    batch = crops(np.arange(10), np.array([0, 5]), 4)
    np.testing.assert_array_equal(batch['tokens'], [[0, 1, 2, 3], [5, 6, 7, 8]])
    np.testing.assert_array_equal(batch['targets'], [[1, 2, 3, 4], [6, 7, 8, 9]])
