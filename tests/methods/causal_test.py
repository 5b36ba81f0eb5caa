"""The causal mask: the numbers, Flax's mask, and what it reads."""

import jax.numpy as jnp
import numpy as np
from flax import linen

import posenc_jax as pj
from posenc_jax.protocol.tokens import bounds
from tests.golden_files import golden

GOLDEN = golden('causal')


def test_golden_mask():
    tok = pj.Tokens.of(length=GOLDEN['length'])
    mask = pj.make('causal()').mask(tok, tok)
    assert mask[0, 0].astype(int).tolist() == GOLDEN['mask']
    np.testing.assert_array_equal(mask, linen.make_causal_mask(jnp.ones((1, GOLDEN['length']))))


def test_it_reads_indices_and_never_positions():
    tok = pj.Tokens.of(positions=[[4, 3, 2, 1, 0]])
    assert pj.make('causal()').mask(tok, tok)[0, 0].astype(int).tolist() == GOLDEN['mask']


def test_only_blocks_that_lie_later_are_ruled_out():
    tok, causal = pj.Tokens.of(length=12), pj.make('causal()')
    may = lambda q, k: bool(causal.may_see(bounds(tok.slice(q, 4)), bounds(tok.slice(k, 4))))
    assert [may(4, k) for k in (0, 4, 7, 8)] == [True, True, True, False]
