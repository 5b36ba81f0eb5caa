"""Uni-Encoder: the sheet's ids, three masks, scores under permutation, duplication, padding; the
limits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.model import TransformerConfig
from posenc_jax.lab.model.candidate_scorer import CandidateScorer
from posenc_jax.methods.uni_encoder import (
    candidate_means,
    uni_encoder_ids,
    uni_encoder_layout,
    uni_encoder_loss,
    uni_encoder_masks,
)
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('uni_encoder')['values']
LAYOUT = uni_encoder_ids(GOLDEN['context'], GOLDEN['candidates'])
MARKS = dict(cls=1, sep=2)
CONTEXT, CANDIDATES = [5, 6, 7], [[8, 3], [4, 4, 9, 5], [7]]


def make(shape='arrow', spec='uni_encoder(shape={!r}) | rope()'):
    return pj.make(spec.format(shape), model_dim=16, head_dim=8)


def scorer(shape='arrow', **fields):
    encoding = f'uni_encoder(shape={shape!r}) | rope()'
    sizes = dict(
        vocab_size=11, train_len=8, layers=2, width=16, heads=2, encoding=encoding, kind='encoder'
    )
    return CandidateScorer(TransformerConfig(**{**sizes, **fields}), rngs=nnx.Rngs(0))


read = jax.jit(lambda net, count, layout: net(**layout, candidates=count)[0], static_argnums=1)


def scores(net, candidates, context=CONTEXT, **options):
    layout = uni_encoder_layout([context], [candidates], **MARKS, **options)
    return np.asarray(read(net, len(candidates), layout))[0]


def test_golden_ids():
    assert LAYOUT[:, 0].tolist() == GOLDEN['ids']
    assert LAYOUT[:, 1].tolist() == [0] * 6 + [1] * 3 + [2] * 5 + [3] * 2


@pytest.mark.parametrize('shape', ['arrow', 'diag', 'square'])
def test_golden_masks(shape):
    part = make(shape).parts[0]
    tok = part.place(pj.Tokens.of(positions=LAYOUT[None]))
    allowed = part.mask(tok, tok)
    allowed = (
        np.ones((16, 16), bool)
        if shape == 'square' and allowed is None
        else np.asarray(allowed)[0, 0]
    )
    firsts = [0, 6, 9, 14]
    assert allowed[firsts].sum(1).tolist() == GOLDEN['seen'][shape]
    number = LAYOUT[:, 1]
    for i in range(16):
        for j in range(16):
            own = number[i] == number[j]
            expected = {'arrow': own or 0 in (number[i], number[j]), 'diag': own, 'square': True}[
                shape
            ]
            assert allowed[i, j] == expected


def test_layout_of_a_batch():
    layout = uni_encoder_layout([CONTEXT, [9]], [CANDIDATES, [[3], [4]]], pad=10, **MARKS)
    assert layout['tokens'][0].tolist() == [1, 5, 6, 7, 2, 1, 8, 3, 2, 1, 4, 4, 9, 5, 2, 1, 7, 2]
    assert layout['tokens'][1].tolist() == [1, 9, 2, 1, 3, 2, 1, 4, 2] + [10] * 9
    assert layout['positions'][1, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5] + [0] * 9
    assert layout['positions'][1, :, 1].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [-1] * 9
    assert layout['valid'].sum(1).tolist() == [18, 9]


@pytest.mark.full_but_one
@pytest.mark.parametrize('shape', ['arrow', 'diag', 'square'])
def test_permuting_candidates_permutes_scores(shape):
    net = scorer(shape)
    plain = scores(net, CANDIDATES)
    np.testing.assert_allclose(
        scores(net, [CANDIDATES[i] for i in (2, 0, 1)]), plain[[2, 0, 1]], atol=1e-5
    )
    assert np.ptp(plain) > 0.05


@pytest.mark.full
def test_equal_candidates_score_equally():
    twice = scores(scorer(), [CANDIDATES[0], CANDIDATES[1], CANDIDATES[0]])
    assert twice[0] == pytest.approx(twice[2], abs=1e-5) and abs(twice[0] - twice[1]) > 1e-3


@pytest.mark.full
def test_what_a_score_depends_on():
    """A candidate's score: with 'diag' on itself alone, with 'arrow' on others only through the
    context's rows.
    """
    other, extra = [[8, 3], [9, 9], [7]], [*CANDIDATES, [6, 6]]
    diag, arrow = scorer('diag'), scorer('arrow')
    alone = scores(diag, CANDIDATES)
    np.testing.assert_allclose(scores(diag, other)[[0, 2]], alone[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(scores(diag, extra)[:3], alone, atol=1e-6)
    np.testing.assert_allclose(scores(diag, CANDIDATES, context=[9, 9, 9]), alone, atol=1e-5)
    assert np.abs(scores(arrow, extra)[:3] - scores(arrow, CANDIDATES)).max() > 1e-4
    # The context's rows have read nothing yet when candidates read them.
    shallow = scorer('arrow', layers=1)
    np.testing.assert_allclose(scores(shallow, extra)[:3], scores(shallow, CANDIDATES), atol=1e-6)
    assert (
        np.abs(scores(shallow, CANDIDATES, context=[9, 9, 9]) - scores(shallow, CANDIDATES)).max()
        > 1e-3
    )


@pytest.mark.full
def test_a_single_candidate_is_a_cross_encoder():
    """With one candidate nothing is hidden: the arrow is full attention at positions 0, 1, 2,
    ....
    """
    layout = uni_encoder_layout([CONTEXT], [[[8, 3]]], **MARKS)
    assert layout['positions'][0, :, 0].tolist() == list(range(9))
    arrow, square = (read(scorer(shape), 1, layout) for shape in ('arrow', 'square'))
    np.testing.assert_allclose(arrow, square, atol=1e-6)


@pytest.mark.full
def test_padding_neither_sees_nor_is_seen():
    net, rows = scorer(), [(CONTEXT, CANDIDATES), ([9], [[3], [4]])]
    layout = uni_encoder_layout(*map(list, zip(*rows)), **MARKS)
    together = np.asarray(read(net, 3, layout))
    np.testing.assert_allclose(together[0], scores(net, CANDIDATES), atol=1e-5)
    np.testing.assert_allclose(together[1, :2], scores(net, [[3], [4]], context=[9]), atol=1e-5)
    assert together[1, 2] == -np.inf
    other = dict(layout, tokens=np.where(layout['valid'], layout['tokens'], 10))
    np.testing.assert_allclose(read(net, 3, other), together, atol=1e-6)


@pytest.mark.full
def test_the_mask_streams():
    encoding = pj.make('uni_encoder() | rope()', causal=False, model_dim=16, head_dim=8)
    tok = encoding.place(pj.Tokens.of(positions=LAYOUT[None]))
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 16, 2, 8)) for i in range(3))
    arguments = encoding.project(q, k, v, tok, tok)
    np.testing.assert_allclose(
        pj.attend(encoding, *arguments, block=(4, 3), applied=pj.TOKEN_STAGE),
        pj.attend(encoding, *arguments, implementation='dense', applied=pj.TOKEN_STAGE),
        atol=1e-5,
    )


@pytest.mark.full
def test_candidates_share_positions_but_not_types():
    encoding = make()
    tok = encoding.place(pj.Tokens.of(positions=LAYOUT[None]))
    added = np.asarray(encoding.embed(jnp.zeros((1, 16, 16)), tok))[0]
    types = np.asarray(encoding.parts[0].types[...])
    np.testing.assert_array_equal(added, types[(LAYOUT[:, 1] > 0).astype(int)])
    q = jnp.ones((1, 16, 2, 8))
    turned = np.asarray(encoding.project(q, q, q, tok, tok)[1])[0]
    np.testing.assert_array_equal(turned[[6, 7, 8]], turned[[9, 10, 11]])
    plain = encoding.place(pj.Tokens.of(length=3))
    assert plain.pos.tolist() == [[0, 1, 2]] and not plain.feats['uni_encoder'].any()


@pytest.mark.full
def test_loss_by_hand():
    given = jnp.array([[1.0, 2.0, -jnp.inf], [0.0, 0.5, 1.0]])
    golden = jnp.array([0, 2])
    p = [np.exp(1) / (np.exp(1) + np.exp(2)), np.exp(1) / (1 + np.exp(0.5) + np.exp(1))]
    assert float(uni_encoder_loss(given, golden)) == pytest.approx(-np.log(p).mean(), rel=1e-5)
    logits, targets = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), jnp.int32)
    masked = jnp.array([[True, False, False], [False, True, False]])
    both = float(uni_encoder_loss(given, golden, logits, targets, masked))
    assert both == pytest.approx(-np.log(p).mean() + np.log(4), rel=1e-5)


@pytest.mark.full
def test_a_loss_that_has_no_meaning_is_refused():
    given, golden, of = jnp.zeros((3, 2)), jnp.array([0, 1, 1]), jnp.array
    logits, targets, masked = (
        jnp.zeros((3, 5, 4)),
        jnp.zeros((3, 5), jnp.int32),
        jnp.ones((3, 5), bool),
    )
    for arguments, message in (
        ((given, of([0, -1, 1])), 'the golden candidate lies in 0 .. 1, got -1'),
        ((given, of([0, 5, 1])), 'the golden candidate lies in 0 .. 1, got 5'),
        ((given, [0, 5, 1]), 'got 5'),
        ((given, of([0.0, 1.0, 1.0])), 'is an integer, got float32'),
        (
            (given, of([0])),
            r'scores \[B, C\] and the golden candidate of each row \[B\], got \(3, 2\) and \(1,\)',
        ),
        ((given[0], golden[:2]), r'got \(2,\) and \(2,\)'),
        ((given, golden, logits), r'together, got \(3, 5, 4\), None, None'),
        ((given, golden, None, targets, masked), r'got None, \(3, 5\), \(3, 5\)'),
        ((given, golden, logits, targets, masked[:1]), r'got \(3, 5, 4\), \(3, 5\), \(1, 5\)'),
        ((given, golden, logits, targets + 4, masked), 'a target lies in 0 .. 3, got 4'),
    ):
        with pytest.raises(ValueError, match=message):
            uni_encoder_loss(*arguments)
    assert float(jax.jit(uni_encoder_loss)(given, golden)) == pytest.approx(np.log(2), rel=1e-5)


def test_masks_are_fifteen_percent_of_what_is_no_marker_by_the_rule_of_bert():
    tokens = np.random.default_rng(0).integers(0, 50, (40, 500))
    read, chosen = uni_encoder_masks(
        tokens, np.random.default_rng(1), mask=49, vocab_size=50, keep=(0, 1, 2)
    )
    assert not chosen[tokens < 3].any() and (read == tokens)[~chosen].all()
    assert chosen[tokens >= 3].mean() == pytest.approx(
        0.15, abs=0.01
    )  # 18,800 tokens: four standard deviations
    now, was = read[chosen], tokens[chosen]
    assert (now == 49).mean() == pytest.approx(0.8 + 0.1 / 50 + 0.1 / 47, abs=0.03)
    assert (now == was)[was != 49].mean() == pytest.approx(0.1 + 0.1 / 50, abs=0.025)
    nothing = uni_encoder_masks(
        tokens, np.random.default_rng(1), mask=49, vocab_size=50, keep=(), rate=0.0
    )
    assert not nothing[1].any() and (nothing[0] == tokens).all()


def test_masks_that_do_not_fit_are_refused():
    mask = lambda **given: uni_encoder_masks(
        np.array([[3, 9]]),
        np.random.default_rng(0),
        **{'mask': 9, 'vocab_size': 10, 'keep': (), **given},
    )
    for given, message in (
        ({'rate': 1.5}, 'a share between 0 and 1, got 1.5'),
        ({'mask': 10}, r'mask lies in 0 \.\. 9, got 10'),
        ({'vocab_size': 9, 'mask': 2}, r'a token lies in 0 \.\. 8, got 9'),
    ):
        with pytest.raises(ValueError, match=message):
            mask(**given)


@pytest.mark.full
def test_it_learns_to_match():
    """Which of four candidates repeats the token of the context: the golden response of its row,
    others are of other rows.
    """
    net = scorer(layers=1)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    optimizer = optax.adam(1e-2)
    rng = np.random.default_rng(0)

    def batch():
        words = rng.permuted(np.tile(np.arange(3, 11), (1, 1)), axis=1)[0, :4]
        layout = uni_encoder_layout([[w] for w in words], [[[w] for w in words]] * 4, **MARKS)
        return {name: jnp.asarray(a) for name, a in layout.items()}

    run = lambda params, batch: nnx.merge(graphdef, params, rest)(**batch, candidates=4)[0]
    loss = jax.jit(lambda params, batch: uni_encoder_loss(run(params, batch), jnp.arange(4)))

    @jax.jit
    def step(params, state, batch):
        gradient = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    state, before = optimizer.init(params), float(loss(params, batch()))
    for _ in range(150):
        params, state = step(params, state, batch())
    after = [loss(params, batch()) for _ in range(4)]
    assert before > 1.0 and max(after) < 0.3


def test_means_of_candidates():
    hidden = jax.random.normal(jax.random.key(0), (1, 16, 4))
    means = candidate_means(hidden.astype(jnp.bfloat16), jnp.asarray(LAYOUT[None, :, 1]), 3)
    assert means.dtype == jnp.float32
    rounded = np.asarray(hidden.astype(jnp.bfloat16), np.float32)[0]
    np.testing.assert_allclose(
        means[0], [rounded[6:9].mean(0), rounded[9:14].mean(0), rounded[14:].mean(0)], atol=1e-6
    )


def test_wrong_input_says_what_is_wrong():
    for arguments in ((0, [1]), (2, []), (2, [1, 0]), (2.5, [1])):
        with pytest.raises(ValueError, match='a context and candidates of at least one token'):
            uni_encoder_ids(*arguments)
    with pytest.raises(ValueError, match='got 1 contexts and 2 lists'):
        uni_encoder_layout([[3]], [[[3]], [[3]]], **MARKS)
    with pytest.raises(ValueError, match='candidate 1 of row 0 has 3 tokens, at most 2 are read'):
        uni_encoder_layout([[3]], [[[3], [3, 3, 3]]], max_len=2, **MARKS)
    for texts, marks, found in (
        (([[3.7]], [[[3]]]), MARKS, r'got \[3.7\] in the context of row 0'),
        (([[[3]]], [[[3]]]), MARKS, r'got \[\[3\]\] in the context of row 0'),
        (([[3]], [[[3], [-2]]]), MARKS, r'got \[-2\] in the candidate 1 of row 0'),
        (([[3]], [[[3]]]), MARKS | {'pad': 0.5}, r'got \[.*0.5\] in cls, sep and pad'),
    ):
        with pytest.raises(ValueError, match=f'token ids are integers of at least 0, {found}'):
            uni_encoder_layout(*texts, **marks)
    layout = uni_encoder_layout([[3]], [[[3], [4]]], **MARKS)
    with pytest.raises(ValueError, match='got candidates=1 for 2 of them in the positions'):
        scorer()(**layout, candidates=1)
    assert scorer()(**layout, candidates=3)[0][0, 2] == -jnp.inf
    with pytest.raises(ValueError, match='got candidates=None for positions that are not known'):
        jax.eval_shape(
            lambda positions: scorer()(layout['tokens'], positions)[0], layout['positions']
        )
    with pytest.raises(SpecError, match="shape='round' is not one of 'arrow', 'diag', 'square'"):
        pj.make('uni_encoder(shape="round")', model_dim=16)
    place = lambda positions: make().place(pj.Tokens.of(positions=positions))
    with pytest.raises(
        ValueError, match=r'id and part, or \[B, L\], all context, got float32 \(1, 2\)'
    ):
        place([[0.5, 1.0]])
    with pytest.raises(ValueError, match=r'got int32 \(1, 1, 3\)'):
        place([[[0, 0, 0]]])
    with pytest.raises(ValueError, match='part -1; the context is part 0, candidates count from 1'):
        place([[[0, -1]]])
    with pytest.raises(ValueError, match="needs a model of kind 'encoder', got 'decoder'"):
        scorer(kind='decoder')
    with pytest.raises(ValueError, match=r'needs uni_encoder\(\) in every encoding, got rope\(\)'):
        scorer(encoding='rope()')
    with pytest.raises(ValueError, match=r'positions \[B, L, 2\], id and part, got \(1, 3\)'):
        scorer()(jnp.ones((1, 3), jnp.int32), jnp.zeros((1, 3), jnp.int32))
