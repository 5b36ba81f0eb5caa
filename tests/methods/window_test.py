"""The sliding window: the numbers on one and on both sides, and which blocks it rules out."""

import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import bounds
from tests.golden_files import golden

GOLDEN = golden('window')


def mask(spec, causal, **tokens):
    tok = pj.Tokens.of(**tokens)
    return np.asarray(pj.make(spec, causal=causal).mask(tok, tok)[0, 0]).astype(int)


def test_golden_masks():
    spec, length = f'window(size={GOLDEN["size"]})', GOLDEN['length']
    assert mask(spec, True, length=length).tolist() == GOLDEN['causal']
    assert mask(spec, False, length=length).tolist() == GOLDEN['both']


def test_it_reads_indices_and_never_positions():
    assert mask('window(size=3)', True, positions=[[0, 100, 3, 3, 7]]).tolist() == GOLDEN['causal']


def test_a_window_as_long_as_the_sequence_hides_nothing():
    assert (
        mask('window(size=6)', False, length=6).all()
        and not mask('window(size=5)', False, length=6).all()
    )


def test_blocks_are_ruled_out_only_where_no_pair_is_near():
    tok = pj.Tokens.of(length=24)
    for size in (1, 2, 3, 5):
        window = pj.make(f'window(size={size})')
        seen = np.asarray(window.mask(tok, tok)[0, 0])
        for q in range(0, 24, 4):
            for k in range(24 - 4):
                may = bool(window.may_see(bounds(tok.slice(q, 4)), bounds(tok.slice(k, 4))))
                assert may == seen[q : q + 4, k : k + 4].any(), (size, q, k)


def test_wrong_input():
    with pytest.raises(SpecError, match='window size must be at least 1, got 0'):
        pj.make('window(size=0)')


def test_aligned_blocks_see_themselves_and_the_block_before():
    assert mask('window(size=2, aligned=True)', True, length=8).sum(-1).tolist() == [
        1,
        2,
        3,
        4,
        3,
        4,
        3,
        4,
    ]
    assert mask('window(size=2, aligned=True)', False, length=6).sum(-1).tolist() == [
        4,
        4,
        6,
        6,
        4,
        4,
    ]
    packed = mask('window(size=2, aligned=True)', True, segment=[[1, 1, 1, 2, 2, 2, 2, 2]])
    assert packed.sum(-1).tolist() == [1, 2, 3, 1, 2, 3, 4, 3]


def test_aligned_blocks_are_ruled_out_only_where_no_pair_is_near():
    tok, window = pj.Tokens.of(length=24), pj.make('window(size=3, aligned=True)')
    seen, hidden = np.asarray(window.mask(tok, tok)[0, 0]), 0
    for q in range(0, 24, 4):
        for k in range(0, 24, 4):
            may = bool(window.may_see(bounds(tok.slice(q, 4)), bounds(tok.slice(k, 4))))
            assert may or not seen[q : q + 4, k : k + 4].any()
            hidden += not may
    assert hidden
