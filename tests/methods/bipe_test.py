"""Bilevel positions: the sheet's ids and slopes, the two limits, decoding by what is written,
packing, padding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.methods.bipe import bipe_ids, bipe_slopes
from posenc_jax.methods.hirope import hirope_ids
from tests.golden_files import golden, golden_suite
from tests.methods.models import decoded, model_of, read, text
from tests.methods.pairs import attend, qkv
from tests.refusals import refused

GOLDEN = golden('bipe')['values']
SPEC = 'bipe(separators=(1, 3))'
SLOPES = ', '.join(map(str, bipe_slopes(2)))
FORMS = {'rope': 'rope()', 'alibi': f'alibi(slopes=({SLOPES}))'}
ENDS = (1, 3)  # the separators of `SPEC`


def make(spec=SPEC):
    return pj.make(spec, heads=2, head_dim=8, model_dim=16, train_len=8, rngs=nnx.Rngs(0))


def placed(ids, spec=SPEC, **known):
    """The places within segments, and the numbers of the segments."""
    tok = make(spec).place(pj.Tokens.of(ids=ids, **known))
    return np.asarray(tok.feats['bipe'][..., 0]), np.asarray(tok.pos)


def golden_ids(number):
    spec = f'bipe(separators={tuple(GOLDEN["separators"])})'
    return placed([GOLDEN['tokens']], spec)[number][0]


test_golden = golden_suite('bipe') | {
    'intra': lambda: golden_ids(0),
    'inter': lambda: golden_ids(1),
    'slopes_4': (lambda: bipe_slopes(4), {'atol': 5e-4}),
    'slopes_12': (lambda: bipe_slopes(12), {'atol': 5e-4}),
}


def test_ids_one_by_one():
    """The two integers that a sequence carries from token to token: after a separator intra = 0 and
    inter grows by one.
    """
    ends = np.random.default_rng(1).random((4, 50)) < 0.3
    for row, intra, inter in zip(ends, *bipe_ids(jnp.asarray(ends))):
        state, expected = (0, 0), []
        for end in row:
            expected.append(state)
            state = (0, state[1] + 1) if end else (state[0] + 1, state[1])
        assert list(zip(intra.tolist(), inter.tolist())) == expected


@pytest.mark.full_but_one
@pytest.mark.parametrize('form', FORMS)
def test_without_separators_it_is_a_learned_table_alone(form):
    encoding = make(f'{SPEC} | {FORMS[form]}')
    tok = encoding.place(pj.Tokens.of(ids=[[0, 2, 4, 5, 6, 7]]))
    table = make('learned_absolute(max_len=8)')
    table.vectors = encoding.parts[0].vectors
    x, arrays = jnp.ones((1, 6, 16)), qkv(6, heads=2)
    np.testing.assert_array_equal(encoding.embed(x, tok), table.embed(x, pj.Tokens.of(length=6)))
    out, plain = attend(encoding, *arrays, tok), attend(make('nope()'), *arrays)
    np.testing.assert_allclose(out, plain, atol=1e-6)


@pytest.mark.parametrize('form', FORMS)
def test_a_separator_after_every_token_leaves_the_other_encoding(form):
    encoding, other = make(f'{SPEC} | {FORMS[form]}'), make(FORMS[form])
    tok = encoding.place(pj.Tokens.of(ids=[[1, 3, 3, 1, 1, 3]]))
    np.testing.assert_array_equal(tok.pos, [[0, 1, 2, 3, 4, 5]])
    added = encoding.embed(jnp.zeros((1, 6, 16)), tok)
    assert (added == added[:, :1]).all()  # the same vector everywhere
    out, plain = attend(encoding, *qkv(6, heads=2), tok), attend(other, *qkv(6, heads=2))
    np.testing.assert_allclose(out, plain, atol=1e-6)


def test_places_beyond_the_table_share_its_last_row():
    encoding = make()
    tok = encoding.place(pj.Tokens.of(ids=jnp.zeros((1, 12), jnp.int32)))
    assert tok.feats['bipe'].max() == 11
    added = np.asarray(encoding.embed(jnp.zeros((1, 12, 16)), tok))
    assert (added[:, 8:] == added[:, 7:8]).all() and np.abs(added[:, 6] - added[:, 7]).max() > 1e-3


def test_segments_given_by_the_task_are_those_found():
    ids = text(2, 15)
    intra, inter = placed(ids)
    ended = np.cumsum(np.isin(ids, ENDS), axis=1)
    units = hirope_ids(jnp.asarray(np.pad(ended[:, :-1], ((0, 0), (1, 0)))))
    given = make('bipe()').place(pj.Tokens.of(positions=jnp.stack(units, axis=-1)))
    np.testing.assert_array_equal(given.feats['bipe'][..., 0], intra)
    np.testing.assert_array_equal(given.pos, inter)
    plain = make('bipe()').place(pj.Tokens.of(length=4))
    assert plain.pos.tolist() == [[0] * 4]
    assert plain.feats['bipe'][..., 0].tolist() == [[0, 1, 2, 3]]


def test_packing_starts_anew_and_padding_is_not_counted():
    first, second = text(1, 9, 1), text(1, 7, 2)
    alone = [placed(one) for one in (first, second)]
    both = placed(jnp.concatenate([first, second], 1), segment=[[0] * 9 + [1] * 7])
    for found, *parts in zip(both, *alone):
        np.testing.assert_array_equal(found, np.concatenate(parts, 1))
    filler = jnp.full((1, 5), 3)
    for parts, at in (((filler, first), 5), ((first, filler), 0)):
        real = (np.arange(14) >= at) & (np.arange(14) < at + 9)
        padded = placed(jnp.concatenate(parts, 1), valid=real[None])
        for found, expected in zip(padded, alone[0]):
            np.testing.assert_array_equal(found[:, real], expected)


@pytest.mark.full
@pytest.mark.parametrize('form', FORMS)
def test_decoding_places_by_what_has_been_read(form):
    model, ids = model_of(f'{SPEC} | {FORMS[form]}'), text(2, 18, 3)
    valid = np.arange(18)[None] >= [[0], [2]]
    tok = pj.Tokens.of(valid=valid)
    np.testing.assert_allclose(
        decoded(model, ids, 5, tok)[valid], np.asarray(read(model, ids, tok))[valid], atol=2e-5
    )


@pytest.mark.full
def test_evaluation_reads_the_ids():
    model, ids = model_of(f'{SPEC} | rope()'), text(2, 12, 5)
    nll, _ = scorer(model)(ids[:, :-1], ids[:, 1:], pj.Tokens.of(length=11))
    log_p = jax.nn.log_softmax(read(model, ids[:, :-1]))
    expected = -jnp.take_along_axis(log_p, ids[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(nll, expected, atol=1e-5)


def test_other_models_do_not_carry_ids():
    model, tok = model_of('rope()', layers=1), pj.Tokens.of(length=4)
    assert not model.reads_ids
    assert model.place(tok, jnp.zeros((1, 4), jnp.int32))[0].ids is None
    assert init_cache(model, tok).unplaced is None


def test_longer_texts_see_no_new_place_while_sentences_stay_short():
    """Why it extrapolates: with 4 times the text, `intra` stays in the trained range and `inter`
    grows with segments only.
    """
    sentence = [0, 2, 4, 5, 6, 1]
    short, long = (placed(jnp.asarray([sentence * n])) for n in (4, 16))
    assert short[0].max() == long[0].max() == 5 and long[1].max() == 15


def place(spec=SPEC, **tokens):
    return make(spec).place(pj.Tokens.of(**tokens))


def with_components(count):
    return lambda: place(ids=[[5, 1]], positions=np.zeros((1, 2, count), int))


LOST = r'would lose the components of \(1, 2, {}\): give positions \[B, L\]'
test_wrong_calls = refused() | {
    r'bipe\(separators=\(1, 3\)\) finds segments by token ids, which these tokens': lambda: place(
        length=3
    ),
    LOST.format(2): with_components(2),
    LOST.format(3): with_components(3),
    r'got float32 \(1, 2\)': lambda: place('bipe()', positions=[[0.5, 1.0]]),
    r'got int32 \(1, 1, 3\)': lambda: place('bipe()', positions=[[[0, 0, 0]]]),
    'place -2 within a segment; places count from 0': lambda: place(
        'bipe()', positions=[[[-2, 0]]]
    ),
    'scale must be positive, got 0': lambda: bipe_slopes(4, 0),
    'ids must be integers, got float32': lambda: pj.Tokens.of(ids=[[0.5]]),
}


@pytest.mark.parametrize('at', [0, 1, 4])
def test_padding_within_a_text_is_not_counted_either(at):
    """Also right behind a separator, and right behind the first token where that is one."""
    ids = np.array([[1, 5, 1, 6, 2, 3]])  # 1 ends a segment
    holes = np.insert(ids, [at + 1] * 2, 9, axis=1)
    for found, expected in zip(placed(holes, valid=holes != 9), placed(ids)):
        np.testing.assert_array_equal(found[holes != 9], expected[0])
