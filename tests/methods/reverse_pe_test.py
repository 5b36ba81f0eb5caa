"""Reverse positions: the newest token at 0 for every length, padding, packing, and no cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.reverse_pe import newest_first
from tests.golden_files import golden

GOLDEN = golden('reverse_pe')['values']
ENCODING = pj.make('reverse_pe() | sinusoidal()')


def code(width=4, **known):
    """What is added to zero vectors."""
    tok = ENCODING.place(pj.Tokens.of(**known))
    shape = (max(len(a) for a in jax.tree.leaves(tok)), tok.length, width)
    return np.asarray(ENCODING.embed(jnp.zeros(shape), tok))


def test_golden_ids_and_codes():
    assert ENCODING.place(pj.Tokens.of(length=5)).pos[0].tolist() == GOLDEN['ids_5']
    np.testing.assert_allclose(code(length=7)[0, -3:], GOLDEN['last_three'], atol=1e-6)


@pytest.mark.full_but_one
@pytest.mark.parametrize('length', [1, 2, 9, 300])
def test_the_newest_has_one_code_at_every_length(length):
    np.testing.assert_array_equal(code(length=length)[0, -1], GOLDEN['newest'])


@pytest.mark.full
def test_the_last_rows_are_the_same_for_any_longer_input():
    """The paper's point: beyond the trained length only the oldest tokens have codes that were not
    seen.
    """
    longest = code(length=40)[0]
    for length in (5, 12, 39):
        np.testing.assert_array_equal(code(length=length)[0], longest[-length:])
    assert np.abs(longest[:28] - code(length=12)[0, :1]).max(-1).min() > 0.1


@pytest.mark.full
def test_padding_leaves_the_codes_of_real_tokens():
    alone = code(length=6)[0]
    valid = np.zeros((2, 10), bool)
    valid[0, 4:] = valid[1, :6] = True
    padded = code(valid=valid)
    np.testing.assert_array_equal(padded[0, 4:], alone)
    np.testing.assert_array_equal(padded[1, :6], alone)
    assert not padded[~valid].any()


@pytest.mark.full
def test_packed_documents_count_apart():
    tok = ENCODING.place(pj.Tokens.of(segment=[[7, 7, 7, 2, 2, 2, 2, 5]]))
    assert tok.pos.tolist() == [[2, 1, 0, 3, 2, 1, 0, 0]]


def test_positions_that_were_there_do_not_matter():
    given = pj.Tokens.of(positions=[[0.5, 9.0, -4.0]])
    assert ENCODING.place(given).pos.tolist() == [[2, 1, 0]]


def test_components_are_not_lost_silently():
    tok = pj.Tokens.of(positions=np.zeros((1, 3, 2), int))
    with pytest.raises(
        ValueError,
        match=r'would lose the components of \(1, 3, 2\): give positions \[B, L\], or write',
    ):
        ENCODING.place(tok)
    assert pj.make('uni_encoder() | reverse_pe()', model_dim=4).place(tok).pos.tolist() == [
        [2, 1, 0]
    ]


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
    out = newest_first(x, tok.last)
    np.testing.assert_array_equal(out[0, :3], x[0, :0:-1])
    np.testing.assert_array_equal(out[1, :2], x[1, 1::-1])
    np.testing.assert_array_equal(newest_first(x, pj.Tokens.of(length=4).last), x[:, ::-1])
    # slot 0 of an encoder's outputs is the same token that has position 0
    assert (newest_first(ENCODING.place(tok).pos, tok.last)[:, 0] == 0).all()


def model(kind, encoding='reverse_pe() | sinusoidal()'):
    cfg = TransformerConfig(
        vocab_size=7, train_len=8, layers=1, width=16, heads=2, encoding=encoding, kind=kind
    )
    return Transformer(cfg, rngs=nnx.Rngs(0))


@pytest.mark.full
def test_a_padded_encoder_is_the_unpadded_one():
    net, ids = model('encoder'), jnp.array([[1, 2, 3, 4]])
    padded = net(
        jnp.array([[6, 6, 1, 2, 3, 4]]),
        pj.Tokens.of(valid=[[False, False, True, True, True, True]]),
    )
    np.testing.assert_allclose(padded[:, 2:], net(ids), atol=1e-5)
    assert np.abs(net(ids) - model('encoder', 'sinusoidal()')(ids)).max() > 1e-2


def test_a_cache_is_refused():
    expected = (
        'reverse_pe gives every token another position when one is added, so there is '
        'nothing to cache'
    )
    with pytest.raises(ValueError, match=expected):
        init_cache(model('decoder'), pj.Tokens.of(length=8))
    with pytest.raises(ValueError, match=expected):
        generate(model('decoder'), jnp.ones((1, 3), jnp.int32), max_new_tokens=2, temperature=0.0)
    with pytest.raises(ValueError, match='generation needs a decoder'):
        init_cache(model('encoder'), pj.Tokens.of(length=8))
    assert (
        pj.make('reverse_pe() | rope(freqs=dynamic_ntk(train_len=8))', head_dim=8).cached == 'none'
    )


@pytest.mark.parametrize('last, found', [(9, '9 .. 9'), ([0, -3], '-3 .. 0')])
def test_the_newest_is_one_of_the_row(last, found):
    with pytest.raises(ValueError, match=f'last lies in 0 .. 2, got {found}'):
        newest_first(jnp.zeros((2, 3)), jnp.asarray(last))
