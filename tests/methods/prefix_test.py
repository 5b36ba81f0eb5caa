"""The prefix mask: the numbers, documents with prefixes of their own, and the limiting case."""

import jax
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('prefix')


def mask(spec, **tokens):
    tok = pj.Tokens.of(**tokens)
    return pj.make(spec, causal=True).mask(tok, tok)[0, 0].astype(int)


def test_golden_mask():
    assert (
        mask(f'prefix(length={GOLDEN["prefix"]})', length=GOLDEN['length']).tolist()
        == GOLDEN['mask']
    )


def test_a_prefix_of_one_token_is_causal():
    np.testing.assert_array_equal(mask('prefix(length=1)', length=6), np.tril(np.ones((6, 6), int)))


@pytest.mark.full
def test_every_document_has_its_own_prefix():
    packed = mask('prefix(length=3)', segment=[[0] * 5 + [1] * 5])
    assert packed[:5, :5].tolist() == packed[5:, 5:].tolist() == GOLDEN['mask']
    assert not packed[:5, 5:].any() and not packed[5:, :5].any()


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'placing', ['randomized_pe(max_len=2048)', 'position_coupling(max_position=20)']
)
def test_the_prefix_counts_tokens_whatever_their_positions(placing):
    encoding = pj.make(f'{placing} | prefix(length=4)', causal=True, model_dim=8)
    tok = pj.Tokens.of(positions=[[0, 5, 4, 3, 2, 1, 5, 4]])
    placed = encoding.place(tok, key=jax.random.key(0))
    np.testing.assert_array_equal(
        encoding.mask(placed, placed)[0, 0], mask('prefix(length=4)', length=8)
    )


def test_padding_in_front_is_not_part_of_the_prefix():
    padded = mask('prefix(length=2)', valid=[[False, False, True, True, True]])
    assert padded[2:, 2:].tolist() == mask('prefix(length=2)', length=3).tolist()


def test_wrong_input():
    with pytest.raises(SpecError, match='prefix length must be at least 1, got 0'):
        pj.make('prefix(length=0)')
