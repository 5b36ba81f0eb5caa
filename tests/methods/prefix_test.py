"""The prefix mask: the numbers, documents with prefixes of their own, and the limiting case."""

import jax
import numpy as np
import pytest

import posenc_jax as pj
from tests.golden_files import golden_suite


def mask(spec, **tokens):
    tok = pj.Tokens.of(**tokens)
    return pj.make(spec, causal=True).mask(tok, tok)[0, 0].astype(int)


def golden_mask(values):
    return mask(f'prefix(length={values["prefix"]})', length=values['length'])


test_golden = golden_suite('prefix', {'mask': golden_mask})


def test_a_prefix_of_one_token_is_causal():
    np.testing.assert_array_equal(mask('prefix(length=1)', length=6), np.tril(np.ones((6, 6), int)))


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'placing', ['randomized_pe(max_len=2048)', 'position_coupling(max_position=20)']
)
def test_the_prefix_counts_tokens_whatever_their_positions(placing):
    encoding = pj.make(f'{placing} | prefix(length=4)', causal=True, model_dim=8)
    tok = pj.Tokens.of(positions=[[0, 5, 4, 3, 2, 1, 5, 4]])
    placed = encoding.place(tok, key=jax.random.key(0))
    expected = mask('prefix(length=4)', length=8)
    np.testing.assert_array_equal(encoding.mask(placed, placed)[0, 0], expected)
