"""Uni-Encoder: the sheet's ids, three masks, scores under permutation, duplication, padding; the
limits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.model import TransformerConfig
from posenc_jax.lab.model.candidate_scorer import CandidateScorer
from posenc_jax.methods.uni_encoder import (
    uni_encoder_ids,
    uni_encoder_layout,
    uni_encoder_loss,
    uni_encoder_masks,
    uni_encoder_means,
)
from tests.golden_files import golden, golden_suite
from tests.methods.models import SIZES, descend
from tests.refusals import refused

GOLDEN = golden('uni_encoder')['values']
LAYOUT = uni_encoder_ids(GOLDEN['context'], GOLDEN['candidates'])
MARKS = dict(cls=1, sep=2)
CONTEXT, CANDIDATES = [5, 6, 7], [[8, 3], [4, 4, 9, 5], [7]]


SHAPES = ['arrow', 'diag', 'square']


def make(shape='arrow'):
    return pj.make(f'uni_encoder(shape={shape!r}) | rope()', model_dim=16, head_dim=8)


def scorer(shape='arrow', **fields):
    fields = {'encoding': f'uni_encoder(shape={shape!r}) | rope()', 'kind': 'encoder', **fields}
    return CandidateScorer(TransformerConfig(**{**SIZES, **fields}), rngs=nnx.Rngs(0))


read = jax.jit(lambda net, count, layout: net(**layout, candidates=count)[0], static_argnums=1)


def scores(net, candidates, context=CONTEXT, **options):
    layout = uni_encoder_layout([context], [candidates], **MARKS, **options)
    return np.asarray(read(net, len(candidates), layout))[0]


def mask(shape):
    part = make(shape).parts[0]
    tok = part.place(pj.Tokens.of(positions=LAYOUT[None]))
    allowed = part.mask(tok, tok)
    return np.ones((16, 16), bool) if allowed is None else np.asarray(allowed)[0, 0]


FIRSTS = [0, 6, 9, 14]  # the first tokens of the context and of the candidates
test_golden = golden_suite('uni_encoder') | {
    'ids': lambda _: LAYOUT[:, 0],
    'seen.*': lambda _, shape: mask(shape)[FIRSTS].sum(1),
}


@pytest.mark.parametrize('shape', SHAPES)
def test_masks(shape):
    number = LAYOUT[:, 1]
    assert number.tolist() == [0] * 6 + [1] * 3 + [2] * 5 + [3] * 2
    own = number[:, None] == number
    arrow = own | (number == 0) | (number[:, None] == 0)
    expected = {'arrow': arrow, 'diag': own, 'square': True}[shape]
    np.testing.assert_array_equal(mask(shape), np.broadcast_to(expected, (16, 16)))


def test_layout_of_a_batch():
    layout = uni_encoder_layout([CONTEXT, [9]], [CANDIDATES, [[3], [4]]], pad=10, **MARKS)
    assert layout['tokens'][0].tolist() == [1, 5, 6, 7, 2, 1, 8, 3, 2, 1, 4, 4, 9, 5, 2, 1, 7, 2]
    assert layout['tokens'][1].tolist() == [1, 9, 2, 1, 3, 2, 1, 4, 2] + [10] * 9
    assert layout['positions'][1, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5] + [0] * 9
    assert layout['positions'][1, :, 1].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [-1] * 9
    assert layout['valid'].sum(1).tolist() == [18, 9]


@pytest.mark.full_but_one
@pytest.mark.parametrize('shape', SHAPES)
def test_permuting_candidates_permutes_scores(shape):
    net = scorer(shape)
    plain = scores(net, CANDIDATES)
    permuted = scores(net, [CANDIDATES[i] for i in (2, 0, 1)])
    np.testing.assert_allclose(permuted, plain[[2, 0, 1]], atol=1e-5)
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
    alone = scores(shallow, CANDIDATES)
    np.testing.assert_allclose(scores(shallow, extra)[:3], alone, atol=1e-6)
    assert np.abs(scores(shallow, CANDIDATES, context=[9, 9, 9]) - alone).max() > 1e-3


@pytest.mark.full
def test_a_single_candidate_is_a_cross_encoder():
    """With one candidate nothing is hidden: the arrow is full attention at 0, 1, 2, and so on."""
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


SCORES, BEST = jnp.zeros((3, 2)), jnp.array([0, 1, 1])
LOGITS, TARGETS = jnp.zeros((3, 5, 4)), jnp.zeros((3, 5), jnp.int32)
MASKED = jnp.ones((3, 5), bool)


def loss_of(*arguments):
    return lambda: uni_encoder_loss(*arguments)


test_a_loss_that_has_no_meaning = refused() | {
    'the golden candidate lies in 0 .. 1, got -1': loss_of(SCORES, jnp.array([0, -1, 1])),
    'the golden candidate lies in 0 .. 1, got 5': loss_of(SCORES, jnp.array([0, 5, 1])),
    'got 5': loss_of(SCORES, [0, 5, 1]),
    'is an integer, got float32': loss_of(SCORES, jnp.array([0.0, 1.0, 1.0])),
    r'scores \[B, C\] and the golden candidate of each row \[B\], got \(3, 2\) and \(1,\)': (
        loss_of(SCORES, jnp.array([0]))
    ),
    r'got \(2,\) and \(2,\)': loss_of(SCORES[0], BEST[:2]),
    r'together, got \(3, 5, 4\), None, None': loss_of(SCORES, BEST, LOGITS),
    r'got None, \(3, 5\), \(3, 5\)': loss_of(SCORES, BEST, None, TARGETS, MASKED),
    r'got \(3, 5, 4\), \(3, 5\), \(1, 5\)': loss_of(SCORES, BEST, LOGITS, TARGETS, MASKED[:1]),
    'a target lies in 0 .. 3, got 4': loss_of(SCORES, BEST, LOGITS, TARGETS + 4, MASKED),
}


def test_the_loss_of_traced_labels():
    assert float(jax.jit(uni_encoder_loss)(SCORES, BEST)) == pytest.approx(np.log(2), rel=1e-5)


def masks(tokens, rng, **options):
    given = dict(mask=49, vocab_size=50, keep=(0, 1, 2)) | options
    return uni_encoder_masks(tokens, np.random.default_rng(rng), **given)


def test_masks_are_fifteen_percent_of_what_is_no_marker_by_the_rule_of_bert():
    tokens = np.random.default_rng(0).integers(0, 50, (40, 500))
    read, chosen = masks(tokens, 1)
    assert not chosen[tokens < 3].any() and (read == tokens)[~chosen].all()
    # 18,800 tokens: four standard deviations.
    assert chosen[tokens >= 3].mean() == pytest.approx(0.15, abs=0.01)
    now, was = read[chosen], tokens[chosen]
    assert (now == 49).mean() == pytest.approx(0.8 + 0.1 / 50 + 0.1 / 47, abs=0.03)
    assert (now == was)[was != 49].mean() == pytest.approx(0.1 + 0.1 / 50, abs=0.025)
    unmasked, chosen = masks(tokens, 1, keep=(), rate=0.0)
    assert not chosen.any() and (unmasked == tokens).all()


TWO = np.array([[3, 9]])
test_masks_that_do_not_fit = refused() | {
    'a share between 0 and 1, got 1.5': lambda: masks(TWO, 0, rate=1.5),
    r'mask lies in 0 \.\. 9, got 10': lambda: masks(TWO, 0, mask=10, vocab_size=10),
    r'a token lies in 0 \.\. 8, got 9': lambda: masks(TWO, 0, mask=2, vocab_size=9),
}


@pytest.mark.full
def test_it_learns_to_match():
    """Which of four candidates repeats the token of the context: the golden response of its row,
    others are of other rows.
    """
    graphdef, params, rest = nnx.split(scorer(layers=1), nnx.Param, ...)
    layout = uni_encoder_layout([[3]] * 4, [[[3]] * 4] * 4, **MARKS)
    template = jnp.asarray(layout.pop('tokens'))
    places = np.nonzero(template == 3)  # of the words of the context and of the candidates

    def loss(params, key):
        words = jax.random.permutation(key, jnp.arange(3, 11))[:4]
        of_row = jnp.concatenate([words[:, None], jnp.tile(words, (4, 1))], axis=1)
        tokens = template.at[places].set(of_row.ravel())
        scored = nnx.merge(graphdef, params, rest)(tokens, **layout, candidates=4)[0]
        return uni_encoder_loss(scored, jnp.arange(4))

    _, losses = descend(loss, params, steps=150, rate=1e-2)
    assert losses[0] > 1.0 and losses[-4:].max() < 0.3


def test_means_of_candidates():
    hidden = jax.random.normal(jax.random.key(0), (1, 16, 4))
    means = uni_encoder_means(hidden.astype(jnp.bfloat16), jnp.asarray(LAYOUT[None, :, 1]), 3)
    assert means.dtype == jnp.float32
    rounded = np.asarray(hidden.astype(jnp.bfloat16), np.float32)[0]
    np.testing.assert_allclose(
        means[0], [rounded[6:9].mean(0), rounded[9:14].mean(0), rounded[14:].mean(0)], atol=1e-6
    )


NO_IDS = 'token ids are integers of at least 0, got '
PAIR = uni_encoder_layout([[3]], [[[3], [4]]], **MARKS)


def layout(*texts, **options):
    return uni_encoder_layout(*texts, **{**MARKS, **options})


def place(positions):
    return make().place(pj.Tokens.of(positions=positions))


def traced_scores():
    jax.eval_shape(lambda pos: scorer()(PAIR['tokens'], pos)[0], PAIR['positions'])


THREE = jnp.ones((1, 3), jnp.int32)
test_wrong_input = refused() | {
    'got 1 contexts and 2 lists': lambda: layout([[3]], [[[3]], [[3]]]),
    'candidate 1 of row 0 has 3 tokens, at most 2 are read': (
        lambda: layout([[3]], [[[3], [3, 3, 3]]], max_len=2)
    ),
    NO_IDS + r'\[3.7\] in the context of row 0': lambda: layout([[3.7]], [[[3]]]),
    NO_IDS + r'\[\[3\]\] in the context of row 0': lambda: layout([[[3]]], [[[3]]]),
    NO_IDS + r'\[-2\] in the candidate 1 of row 0': lambda: layout([[3]], [[[3], [-2]]]),
    NO_IDS + r'\[.*0.5\] in cls, sep and pad': lambda: layout([[3]], [[[3]]], pad=0.5),
    'got candidates=1 for 2 of them in the positions': lambda: scorer()(**PAIR, candidates=1),
    'got candidates=None for positions that are not known': traced_scores,
    r'id and part, or \[B, L\], all context, got float32 \(1, 2\)': lambda: place([[0.5, 1.0]]),
    r'got int32 \(1, 1, 3\)': lambda: place([[[0, 0, 0]]]),
    'part -1; the context is part 0, candidates count from 1': lambda: place([[[0, -1]]]),
    "needs a model of kind 'encoder', got 'decoder'": lambda: scorer(kind='decoder'),
    r'needs uni_encoder\(\) in every encoding, got rope\(\)': lambda: scorer(encoding='rope()'),
    r'positions \[B, L, 2\], id and part, got \(1, 3\)': lambda: scorer()(THREE, THREE),
}


def test_a_candidate_that_is_not_there_has_no_score():
    assert scorer()(**PAIR, candidates=3)[0][0, 2] == -jnp.inf
