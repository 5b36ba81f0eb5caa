"""The sliding window: the numbers on one and on both sides, and which blocks it rules out."""

import itertools

import numpy as np

import posenc_jax as pj
from posenc_jax.protocol.tokens import bounds
from tests.golden_files import golden, golden_suite

GOLDEN = golden('window')


def mask(spec, causal, **tokens):
    tok = pj.Tokens.of(**tokens)
    return np.asarray(pj.make(spec, causal=causal).mask(tok, tok)[0, 0]).astype(int)


def band(causal):
    return lambda values: mask(f'window(size={values["size"]})', causal, length=values['length'])


test_golden = golden_suite('window', {'causal': band(True), 'both': band(False)})


def test_it_reads_indices_and_never_positions():
    assert mask('window(size=3)', True, positions=[[0, 100, 3, 3, 7]]).tolist() == GOLDEN['causal']


def test_a_window_as_long_as_the_sequence_hides_nothing():
    assert mask('window(size=6)', False, length=6).all()
    assert not mask('window(size=5)', False, length=6).all()


def seen_and_guessed(spec, starts):
    """Whether any pair of two blocks of four tokens is seen, and what `may_see` says of them."""
    tok, window = pj.Tokens.of(length=24), pj.make(spec)
    pairs = np.asarray(window.mask(tok, tok)[0, 0])
    for q, k in itertools.product(range(0, 24, 4), starts):
        may = bool(window.may_see(bounds(tok.slice(q, 4)), bounds(tok.slice(k, 4))))
        yield bool(pairs[q : q + 4, k : k + 4].any()), may


def test_blocks_are_ruled_out_only_where_no_pair_is_near():
    for size in (1, 2, 3, 5):
        assert all(seen == may for seen, may in seen_and_guessed(f'window(size={size})', range(20)))
    aligned = list(seen_and_guessed('window(size=3, aligned=True)', range(0, 24, 4)))
    assert all(may or not seen for seen, may in aligned)
    assert not all(may for _, may in aligned)


def test_aligned_blocks_see_themselves_and_the_block_before():
    rows = lambda causal, **tokens: (
        mask('window(size=2, aligned=True)', causal, **tokens).sum(-1).tolist()
    )
    assert rows(True, length=8) == [1, 2, 3, 4, 3, 4, 3, 4]
    assert rows(False, length=6) == [4, 4, 6, 6, 4, 4]
    assert rows(True, segment=[[1, 1, 1, 2, 2, 2, 2, 2]]) == [1, 2, 3, 1, 2, 3, 4, 3]
