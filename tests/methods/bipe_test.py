"""Bilevel positions: the sheet's ids and slopes, the two limits, decoding by what is written,
packing, padding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.lab.model import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.bipe import bipe_ids, bipe_slopes
from posenc_jax.methods.hirope import hierarchical_ids
from tests.golden_files import golden

GOLDEN = golden('bipe')['values']
SIZES = dict(heads=2, head_dim=8, model_dim=16, train_len=8)
SLOPES = ', '.join(map(str, bipe_slopes(2)))
FORMS = {'rope': 'rope()', 'alibi': f'alibi(slopes=({SLOPES}))'}
ENDS = (1, 3)  # separators of the small models below
read = jax.jit(lambda net, ids, tok=None: net(ids, tok))


def make(spec='bipe(separators=(1, 3))', **sizes):
    return pj.make(spec, **{**SIZES, **sizes})


def placed(ids, spec='bipe(separators=(1, 3))', **known):
    tok = make(spec).place(pj.Tokens.of(ids=ids, **known))
    return np.asarray(tok.feats['bipe'][..., 0]), np.asarray(tok.pos)


def model(form='rope', spec='bipe(separators=(1, 3))', **options):
    sizes = dict(vocab_size=9, train_len=16, layers=2, width=16, heads=2)
    return Transformer(
        TransformerConfig(encoding=f'{spec} | {FORMS[form]}', **sizes, **options), rngs=nnx.Rngs(0)
    )


def text(rows, length, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 9, (rows, length)), jnp.int32)


def test_golden_ids():
    intra, inter = placed([GOLDEN['tokens']], f'bipe(separators={tuple(GOLDEN["separators"])})')
    assert intra[0].tolist() == GOLDEN['intra'] and inter[0].tolist() == GOLDEN['inter']


def test_both_counts_start_again_in_a_packed_document():
    tokens, separators = GOLDEN['tokens'], tuple(GOLDEN['separators'])
    row = pj.Tokens.of(ids=[tokens * 2], segment=[[0] * len(tokens) + [1] * len(tokens)])
    tok = make(f'bipe(separators={separators})').place(row)
    assert tok.feats['bipe'][0, :, 0].tolist() == GOLDEN['intra'] * 2
    assert tok.pos[0].tolist() == GOLDEN['inter'] * 2


@pytest.mark.parametrize('heads', [4, 12])
def test_golden_slopes(heads):
    np.testing.assert_allclose(bipe_slopes(heads), GOLDEN[f'slopes_{heads}'], atol=5e-4)


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


@pytest.mark.full
def test_no_id_depends_on_its_own_token_or_a_later_one():
    ids = text(1, 20)
    t, place = np.arange(20)[:, None], np.arange(20)[None]
    others = jnp.where(place < t, ids, (ids + 1) % 9)  # in row t, tokens from t on are others
    for a, b in zip(placed(ids), placed(others)):
        np.testing.assert_array_equal(np.where(place <= t, b, a), np.broadcast_to(a, b.shape))


@pytest.mark.full_but_one
@pytest.mark.parametrize('form', FORMS)
def test_without_separators_it_is_a_learned_table_alone(form):
    encoding = make(f'bipe(separators=(1, 3)) | {FORMS[form]}')
    tok = encoding.place(pj.Tokens.of(ids=[[0, 2, 4, 5, 6, 7]]))
    table = make('learned_absolute(max_len=8)')
    table.vectors = encoding.parts[0].vectors
    x, q = jnp.ones((1, 6, 16)), jax.random.normal(jax.random.key(0), (1, 6, 2, 8))
    np.testing.assert_array_equal(encoding.embed(x, tok), table.embed(x, pj.Tokens.of(length=6)))
    out = pj.attend(encoding, *encoding.project(q, q, q, tok, tok), applied=pj.TOKEN_STAGE)
    np.testing.assert_allclose(out, pj.attend(make('nope()'), q, q, q, tok, tok), atol=1e-6)


@pytest.mark.parametrize('form', FORMS)
def test_a_separator_after_every_token_leaves_the_other_encoding(form):
    encoding, other = make(f'bipe(separators=(1, 3)) | {FORMS[form]}'), make(FORMS[form])
    tok = encoding.place(pj.Tokens.of(ids=[[1, 3, 3, 1, 1, 3]]))
    np.testing.assert_array_equal(tok.pos, [[0, 1, 2, 3, 4, 5]])
    added = encoding.embed(jnp.zeros((1, 6, 16)), tok)
    assert (added == added[:, :1]).all()  # the same vector everywhere
    q, plain = jax.random.normal(jax.random.key(0), (1, 6, 2, 8)), pj.Tokens.of(length=6)
    out = pj.attend(encoding, *encoding.project(q, q, q, tok, tok), applied=pj.TOKEN_STAGE)
    np.testing.assert_allclose(
        out,
        pj.attend(other, *other.project(q, q, q, plain, plain), applied=pj.TOKEN_STAGE),
        atol=1e-6,
    )


def test_a_segment_shares_one_rotation():
    """A query and the tokens of one segment meet through `inter` alone (the paper's D = inter_i -
    inter_j).
    """
    encoding = make('bipe(separators=(1, 3)) | rope()')
    tok = encoding.place(pj.Tokens.of(ids=[[0, 0, 1, 0, 0, 3, 0]]))
    q = jnp.ones((1, 7, 2, 8))
    turned = np.asarray(encoding.project(q, q, q, tok, tok)[1])
    for segment in ([0, 1, 2], [3, 4, 5]):
        assert (turned[:, segment] == turned[:, segment[:1]]).all()
    assert np.abs(turned[:, 2] - turned[:, 3]).max() > 0.1


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
    units = jnp.asarray(np.pad(ended[:, :-1], ((0, 0), (1, 0))))
    given = make('bipe()').place(
        pj.Tokens.of(positions=jnp.stack(hierarchical_ids(units), axis=-1))
    )
    np.testing.assert_array_equal(given.feats['bipe'][..., 0], intra)
    np.testing.assert_array_equal(given.pos, inter)
    plain = make('bipe()').place(pj.Tokens.of(length=4))
    assert plain.pos.tolist() == [[0] * 4] and plain.feats['bipe'][..., 0].tolist() == [
        [0, 1, 2, 3]
    ]


@pytest.mark.full
def test_packing_starts_anew_and_padding_is_not_counted():
    first, second = text(1, 9, 1), text(1, 7, 2)
    alone = [placed(one) for one in (first, second)]
    both = placed(jnp.concatenate([first, second], 1), segment=[[0] * 9 + [1] * 7])
    for number in range(2):
        np.testing.assert_array_equal(
            both[number], np.concatenate([alone[0][number], alone[1][number]], 1)
        )
    filler = jnp.full((1, 5), 3)
    for parts, at in (((filler, first), 5), ((first, filler), 0)):
        valid = np.zeros((1, 14), bool)
        valid[:, at : at + 9] = True
        padded = placed(jnp.concatenate(parts, 1), valid=valid)
        for number in range(2):
            np.testing.assert_array_equal(padded[number][:, at : at + 9], alone[0][number])


@pytest.mark.full
def test_decoding_places_by_what_has_been_read():
    net, ids = model('alibi'), text(2, 18, 3)
    full = np.asarray(read(net, ids))
    logits, cache = jax.jit(prefill)(net, init_cache(net, pj.Tokens.of(length=18)), ids[:, :5])
    rows, step = [logits], jax.jit(lambda cache, token: decode_step(net, cache, token))
    for t in range(5, 18):
        logits, cache = step(cache, ids[:, t])
        rows.append(logits[:, None])
    np.testing.assert_allclose(np.concatenate(rows, axis=1), full, atol=2e-5)


@pytest.mark.parametrize('rows', [1, 2])
@pytest.mark.full
def test_generate_equals_running_the_whole_text_again(rows):
    net, prompts = model(), text(rows, 6, 4)
    valid = None if rows == 1 else np.array([[True] * 6, [False] * 2 + [True] * 4])
    out = generate(net, prompts, max_new_tokens=9, temperature=0.0, valid=valid)
    known = None if valid is None else np.pad(valid, ((0, 0), (0, 9)), constant_values=True)
    logits = read(net, out, pj.Tokens.of(length=15, valid=known))
    np.testing.assert_array_equal(out[:, 6:], logits.argmax(-1)[:, 5:-1])


@pytest.mark.full
def test_evaluation_reads_the_ids():
    net, ids = model(), text(2, 12, 5)
    nll, _ = scorer(net)(ids[:, :-1], ids[:, 1:], pj.Tokens.of(length=11))
    expected = -jnp.take_along_axis(
        jax.nn.log_softmax(read(net, ids[:, :-1])), ids[:, 1:, None], axis=-1
    )[..., 0]
    np.testing.assert_allclose(nll, expected, atol=1e-5)


def test_other_models_do_not_carry_ids():
    cfg = TransformerConfig(
        vocab_size=9, train_len=16, layers=1, width=16, heads=2, encoding='rope()'
    )
    net = Transformer(cfg, rngs=nnx.Rngs(0))
    assert (
        not net.reads_ids
        and net.place(pj.Tokens.of(length=4), jnp.zeros((1, 4), jnp.int32))[0].ids is None
    )
    assert init_cache(net, pj.Tokens.of(length=4)).unplaced is None


def test_longer_texts_see_no_new_place_while_sentences_stay_short():
    """Why it extrapolates: with 4 times the text, `intra` stays in the trained range and `inter`
    grows with segments only.
    """
    sentence = [0, 2, 4, 5, 6, 1]
    short, long = (placed(jnp.asarray([sentence * n])) for n in (4, 16))
    assert short[0].max() == long[0].max() == 5 and long[1].max() == 15


def test_wrong_input_says_what_is_wrong():
    for separators in ((), (-1,), (3, 3)):
        found = separators[0] if separators else ''
        with pytest.raises(
            ValueError, match=rf'distinct token ids of at least 0, one or more, got \({found}'
        ):
            make(f'bipe(separators={separators})')
    with pytest.raises(ValueError, match='train_len must be at least 1, got 0'):
        make('bipe(train_len=0)')
    with pytest.raises(
        ValueError,
        match=r'bipe\(separators=\(1, 3\)\) finds segments by token ids, which these tokens',
    ):
        make().place(pj.Tokens.of(length=3))
    for components in (2, 3):
        tok = pj.Tokens.of(ids=[[5, 1]], positions=np.zeros((1, 2, components), int))
        with pytest.raises(
            ValueError,
            match=rf'would lose the components of \(1, 2, {components}\): give positions \[B, L\]',
        ):
            make().place(tok)
    with pytest.raises(ValueError, match=r'got float32 \(1, 2\)'):
        make('bipe()').place(pj.Tokens.of(positions=[[0.5, 1.0]]))
    with pytest.raises(ValueError, match=r'got int32 \(1, 1, 3\)'):
        make('bipe()').place(pj.Tokens.of(positions=[[[0, 0, 0]]]))
    with pytest.raises(ValueError, match='place -2 within a segment; places count from 0'):
        make('bipe()').place(pj.Tokens.of(positions=[[[-2, 0]]]))
    with pytest.raises(ValueError, match='scale must be positive, got 0'):
        bipe_slopes(4, 0)
    with pytest.raises(ValueError, match='ids must be integers, got float32'):
        pj.Tokens.of(ids=[[0.5]])


@pytest.mark.parametrize('at', [0, 1, 4])
def test_padding_within_a_text_is_not_counted_either(at):
    """Also right behind a separator, and right behind the first token where that is one."""
    ids = np.array([[1, 5, 1, 6, 2, 3]])  # 1 ends a segment
    alone = placed(jnp.asarray(ids))
    hole = np.array([[9, 9]])
    holes = np.concatenate([ids[:, : at + 1], hole, ids[:, at + 1 :]], axis=1)
    valid = holes != 9
    found = placed(jnp.asarray(holes), valid=valid)
    for number in range(2):
        np.testing.assert_array_equal(
            np.asarray(found[number])[valid], np.asarray(alone[number])[0]
        )
