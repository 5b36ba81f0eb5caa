"""The document mask: the numbers, Flax's packing mask, and which blocks it rules out."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import posenc_jax as pj
from posenc_jax.protocol.tokens import bounds
from tests.golden_files import golden

GOLDEN = golden('document')


def test_golden_mask():
    segments = jnp.asarray([GOLDEN['segments']])
    tok = pj.Tokens.of(segment=segments)
    mask = pj.make('document()').mask(tok, tok)
    assert mask[0, 0].astype(int).tolist() == GOLDEN['mask']
    np.testing.assert_array_equal(mask, linen.make_attention_mask(segments, segments, jnp.equal))


def test_it_is_shut_without_segments():
    tok = pj.Tokens.of(length=3)
    assert pj.make('document()').mask(tok, tok) is None
    assert pj.make('document()').may_see(bounds(tok), bounds(tok)) is True


def test_only_blocks_without_a_common_document_are_ruled_out():
    tok, document = pj.Tokens.of(segment=jnp.repeat(jnp.arange(4), 3)[None]), pj.make('document()')
    may = lambda q, k: bool(document.may_see(bounds(tok.slice(q, 3)), bounds(tok.slice(k, 3))))
    assert [may(3, k) for k in (0, 1, 3, 5, 6)] == [False, True, True, True, False]


def test_segments_on_one_side_are_an_error():
    segments, none = pj.Tokens.of(segment=[[0, 0, 1]]), pj.Tokens.of(length=3)
    for tq, tk, message in (
        (segments, none, 'the queries have segments and the keys have none'),
        (none, segments, 'the keys have segments and the queries have none'),
    ):
        with pytest.raises(ValueError, match=message):
            pj.make('document()').mask(tq, tk)
