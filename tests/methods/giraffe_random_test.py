"""Giraffe's randomised positions: the rule by hand, the distribution, padding, packing,
evaluation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.giraffe_random import giraffe_random_ids
from tests.golden_files import golden, golden_suite
from tests.refusals import refused

GOLDEN = golden('giraffe_random')['values']
ENCODING = pj.make('giraffe_random()')


def ids_of(tok, key=0):
    return np.asarray(ENCODING.place(tok, key=jax.random.key(key)).pos)


def ids_by_hand(golden):
    return giraffe_random_ids(jnp.array([golden['uniform']]))[0]


test_golden = golden_suite(
    'giraffe_random', dict.fromkeys(('squeezed.ids', 'kept.ids'), ids_by_hand), rtol=1e-6
)


def test_increments_and_the_last_position():
    rows, length = 400, 64
    ids = ids_of(pj.Tokens.of(valid=np.ones((rows, length), bool)))
    steps = np.diff(ids, axis=1, prepend=0)
    assert ids.dtype == np.float32 and steps.min() > 0 and steps.max() < GOLDEN['largest_increment']
    last = ids[:, -1]
    # Half the sums are squeezed.
    assert last.max() == length and 0.3 < (last == length).mean() < 0.7
    # A squeezed row has the mean 1, any other one less; its expected lack is that of half a normal
    # distribution.
    deviation = (4 * GOLDEN['variance_uniform'] / length) ** 0.5
    lack = deviation / (2 * np.pi) ** 0.5
    assert steps.mean() == pytest.approx(
        GOLDEN['mean_increment'] - lack, abs=4 * 0.6 * deviation / rows**0.5
    )


def test_no_position_exceeds_the_length_by_rounding():
    ids = ids_of(pj.Tokens.of(valid=np.ones((64, 2047), bool)), 5)
    assert ids.max() == 2047 and np.diff(ids, axis=1).min() >= 0


def test_one_draw_per_row_and_key():
    tok = pj.Tokens.of(valid=np.ones((3, 20), bool))
    first, again, other = ids_of(tok, 1), ids_of(tok, 1), ids_of(tok, 2)
    np.testing.assert_array_equal(first, again)
    assert len({tuple(row) for row in first}) == 3 and (first != other).any(1).all()
    assert ids_of(pj.Tokens.of(length=20)).shape == (1, 20)


def test_evaluation_leaves_positions_alone():
    tok = pj.Tokens.of(positions=[[0.5, 7.0, 9.0]])
    assert ENCODING.place(tok) is tok
    assert ENCODING.place(pj.Tokens.of(length=3)).pos.tolist() == [[0, 1, 2]]


def test_padding_on_either_side_is_not_counted():
    valid = np.array([[False] * 4 + [True] * 7, [True] * 7 + [False] * 4])
    for key in range(8):
        ids = ids_of(pj.Tokens.of(valid=valid), key)
        for row, real in zip(ids, valid):
            steps = np.diff(row[real], prepend=0)
            assert 0 < steps.min() and steps.max() < 2 and row[real][-1] <= 7
    lasts = np.array([ids_of(pj.Tokens.of(valid=valid), key)[[0, 1], [-1, 6]] for key in range(20)])
    assert ((lasts == 7).any(0) & (lasts < 7).any(0)).all()


def test_packed_documents_are_scaled_by_their_own_length():
    segment = np.array([[4] * 3 + [9] * 6 + [2] * 5])
    squeezed = set()
    for key in range(20):
        ids, least = ids_of(pj.Tokens.of(segment=segment), key)[0], np.finfo(np.float32).tiny
        uniform = jax.random.uniform(jax.random.key(key), (1, 14), minval=least)
        raw = np.cumsum(2 * np.asarray(uniform)[0])
        for start, size in ((0, 3), (3, 6), (9, 5)):
            expected = raw[:size] * size / max(raw[size - 1], size)
            np.testing.assert_allclose(ids[start : start + size], expected, rtol=1e-6)
            squeezed |= {size} if raw[size - 1] > size else set()
    assert squeezed == {3, 6, 5}


def test_tokens_that_share_a_position_go_on_sharing_it():
    ids = ids_of(pj.Tokens.of(positions=[[0, 3, 2, 1, 3, 2, 1]]))[0]
    np.testing.assert_array_equal(ids[1:4], ids[4:])
    assert ids[0] < ids[3] < ids[2] < ids[1] <= 4


def test_training_visits_distances_between_those_of_tokens():
    """Why the paper randomises: the relative positions seen are no longer the integers below L, but
    fill the range.
    """
    tok = pj.Tokens.of(valid=np.ones((500, 16), bool))
    ids = ids_of(tok)
    distances = (ids[:, :, None] - ids[:, None, :])[:, *np.tril_indices(16, -1)].ravel()
    share, _ = np.histogram(distances % 1.0, bins=8, range=(0, 1))
    np.testing.assert_allclose(share / len(distances), 1 / 8, atol=0.02)


def test_rows_may_share_positions_and_differ_in_padding_or_segments():
    tok = pj.Tokens.of(length=5)
    for name, rows in (
        ('valid', [[True] * 5, [True] * 3 + [False] * 2]),
        ('segment', [[0] * 5, [0, 0, 0, 1, 1]]),
    ):
        leaf = {name: jnp.array(rows)}
        ids = ids_of(dataclasses.replace(tok, **leaf))
        assert ids.shape == (2, 5) and ids[0, -1] <= 5 and ids[1, 2] <= 3


def at(positions):
    return lambda: ids_of(pj.Tokens.of(positions=positions))


test_wrong_calls = refused() | {
    r'needs integer positions \[B, L\], got float32 \(1, 2\)': at([[0.5, 1.0]]),
    r'got int32 \(1, 1, 2\)': at([[[0, 1]]]),
    'position 7 is not in 0 .. 2': at([[0, 7, 2]]),
    'position -1 is not in 0 .. 2': at([[0, -1, 2]]),
}


def test_traced_positions_that_do_not_exist_are_nan():
    place = lambda pos: ENCODING.place(pj.Tokens.of(positions=pos), key=jax.random.key(0)).pos
    found = jax.jit(place)(jnp.array([[0, -1, 2]]))
    assert np.isnan(found).tolist() == [[False, True, False]]
