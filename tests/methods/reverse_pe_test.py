"""Reverse positions: the newest token at 0 for every length, padding, packing, and no cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.methods.reverse_pe import reverse_pe_newest_first
from tests.golden_files import golden_suite
from tests.methods.models import model_of
from tests.refusals import refused

ENCODING = pj.make('reverse_pe() | sinusoidal()')


def code(width=4, **known):
    """What is added to zero vectors."""
    tok = ENCODING.place(pj.Tokens.of(**known))
    shape = (max(len(a) for a in jax.tree.leaves(tok)), tok.length, width)
    return np.asarray(ENCODING.embed(jnp.zeros(shape), tok))


test_golden = golden_suite('reverse_pe') | {
    'ids_5': lambda _: ENCODING.place(pj.Tokens.of(length=5)).pos[0],
    'newest': lambda _: code(length=300)[0, -1],
    'last_three': (lambda _: code(length=7)[0, -3:], {'atol': 1e-6}),
}


@pytest.mark.full
def test_the_last_rows_are_the_same_for_any_longer_input():
    """The paper's point: beyond the trained length only the oldest tokens have codes that were not
    seen.
    """
    longest = code(length=40)[0]
    for length in (1, 2, 5, 12, 39):
        np.testing.assert_array_equal(code(length=length)[0], longest[-length:])
    assert np.abs(longest[:28] - code(length=12)[0, :1]).max(-1).min() > 0.1


def test_positions_that_were_there_do_not_matter():
    given = pj.Tokens.of(positions=[[0.5, 9.0, -4.0]])
    assert ENCODING.place(given).pos.tolist() == [[2, 1, 0]]


def test_components_are_not_lost_silently():
    tok = pj.Tokens.of(positions=np.zeros((1, 3, 2), int))
    message = r'would lose the components of \(1, 3, 2\): give positions \[B, L\], or write'
    with pytest.raises(ValueError, match=message):
        ENCODING.place(tok)
    placed = pj.make('uni_encoder() | reverse_pe()', model_dim=4).place(tok)
    assert placed.pos.tolist() == [[2, 1, 0]]


def test_relative_encodings_see_time_run_backwards():
    """RoPE under reversed positions is RoPE with queries and keys that turn the other way."""
    q, k = (jax.random.normal(jax.random.key(i), (1, 6, 2, 8)) for i in (0, 1))
    back, plain = pj.make('reverse_pe() | rope()', head_dim=8), pj.make('rope()', head_dim=8)
    logits = lambda e, tok: jnp.einsum(
        'btnh,bsnh->bnts', *e.project(q, k, k, e.place(tok), e.place(tok))[:2]
    )
    expected = logits(plain, pj.Tokens.of(positions=-jnp.arange(6)[None]))
    np.testing.assert_allclose(logits(back, pj.Tokens.of(length=6)), expected, atol=1e-5)


def test_newest_first_reverses_the_real_tokens():
    tok = pj.Tokens.of(valid=[[False, True, True, True], [True, True, False, False]])
    x = jnp.arange(16.0).reshape(2, 4, 2)
    out = reverse_pe_newest_first(x, tok.last)
    np.testing.assert_array_equal(out[0, :3], x[0, :0:-1])
    np.testing.assert_array_equal(out[1, :2], x[1, 1::-1])
    np.testing.assert_array_equal(
        reverse_pe_newest_first(x, pj.Tokens.of(length=4).last), x[:, ::-1]
    )
    # slot 0 of an encoder's outputs is the same token that has position 0
    assert (reverse_pe_newest_first(ENCODING.place(tok).pos, tok.last)[:, 0] == 0).all()


PROMPT = jnp.ones((1, 3), jnp.int32)
NO_CACHE = (
    'reverse_pe gives every token another position when one is added, so there is nothing to cache'
)
small = functools.partial(model_of, 'reverse_pe() | sinusoidal()', layers=1)
test_a_cache_is_refused = refused() | {
    NO_CACHE: (
        lambda: init_cache(small(), pj.Tokens.of(length=8)),
        lambda: generate(small(), PROMPT, max_new_tokens=2, temperature=0.0),
    ),
    'generation needs a decoder': (
        lambda: init_cache(small(kind='encoder'), pj.Tokens.of(length=8))
    ),
}


def test_no_other_part_of_a_chain_brings_a_cache():
    chained = pj.make('reverse_pe() | rope(freqs=dynamic_ntk(train_len=8))', head_dim=8)
    assert chained.cached == 'none'
