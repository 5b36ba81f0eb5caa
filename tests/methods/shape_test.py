"""SHAPE: what is drawn, for whom, and the two rules of evaluation."""

import jax
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden_suite
from tests.refusals import refused


def place(spec, tok, key=None):
    key = None if key is None else jax.random.key(key)
    return np.asarray(pj.make(spec, train_len=5).place(tok, key=key).pos)


def evaluated(case):
    return place(f'shape(eval_offset={case["eval_offset"]})', pj.Tokens.of(length=4))[0]


test_golden = golden_suite('shape', {'paper.positions': evaluated, 'code.positions': evaluated})

ROWS = pj.Tokens.of(valid=np.ones((600, 5), bool))


def test_one_offset_for_each_row():
    pos = place('shape(offsets=8)', ROWS, 0)
    offsets = pos[:, 0]
    np.testing.assert_array_equal(pos, offsets[:, None] + np.arange(5))
    counts = np.bincount(offsets)  # each is expected 75 times, with a deviation of 8
    assert len(counts) == 8 and counts.min() > 40 and counts.max() < 110


def test_one_key_gives_one_draw():
    first, again, other = (place('shape()', ROWS, key) for key in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and first.max() < 500 + 4
    assert place('shape()', pj.Tokens.of(length=5), 0).shape == (1, 5)


def test_a_single_offset_shifts_nothing():
    np.testing.assert_array_equal(place('shape(offsets=1)', ROWS, 3)[0], np.arange(5))


def test_packed_documents_draw_apart():
    segment = np.array([[5] * 3 + [2] * 4 + [9] * 2] * 40)
    pos = place('shape(offsets=64)', pj.Tokens.of(segment=segment), 0)
    starts = pos[:, [0, 3, 7]]
    for number, (start, size) in enumerate(((0, 3), (3, 4), (7, 2))):
        expected = starts[:, number, None] + np.arange(size)
        np.testing.assert_array_equal(pos[:, start : start + size], expected)
    assert len({tuple(row) for row in starts}) > 35 and (starts[:, 0] != starts[:, 1]).mean() > 0.9


def test_padding_and_fractions_are_shifted_too():
    valid = [[False, True, True]]
    pos = place('shape(offsets=9)', pj.Tokens.of(positions=[[7.0, 0.5, 1.5]], valid=valid), 4)[0]
    assert pos[2] - pos[1] == 1 and pos[0] - pos[1] == 6.5 and pos[1] % 1 == 0.5


def with_table(offsets, eval_offset, rows):
    spec = f'shape({offsets=}, {eval_offset=}) | learned_absolute(max_len={rows})'
    return pj.make(spec, train_len=5, model_dim=4)


def test_a_table_has_a_row_for_every_shifted_position():
    """A position beyond it would be NaN in a compiled step, where positions are not known."""
    for offsets, eval_offset, rows in ((8, 0, 12), (8, 9, 14), (1, 0, 5)):
        with_table(offsets, eval_offset, rows)
        with pytest.raises(SpecError, match=rf'shape draws positions 0 \.\. {rows - 1}, .* has'):
            with_table(offsets, eval_offset, rows - 1)


test_wrong_calls = refused() | {
    r'shape needs positions with one component \[B, L\], got \(1, 1, 2\); .* sincos2d': (
        lambda: place('shape()', pj.Tokens.of(positions=[[[1, 2]]]))
    ),
    'shape offsets must be at least 1, got 0': lambda: place('shape(offsets=0)', ROWS),
    'shape eval_offset must be at least 0, got -1': lambda: place('shape(eval_offset=-1)', ROWS),
}
