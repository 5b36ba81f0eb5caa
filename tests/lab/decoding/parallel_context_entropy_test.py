"""Parallel pieces behind a sink: their positions, and the choice among them, against one dense pass
and its probabilities.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.phases import phase
from posenc_jax.lab.decoding.contexts import QUERY
from posenc_jax.lab.decoding.parallel_context_entropy import (
    SelectedAttention,
    best_pieces,
    encode,
    join,
    piece_layout,
    piece_scores,
    pool_scores,
    select_pieces,
)
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.protocol.tokens import Tokens
from tests.golden_files import golden, golden_suite
from tests.lab.decoding import passes
from tests.lab.decoding.passes import dense, lengths_of, model_of, slots_of
from tests.refusals import check_refused

GOLDEN = golden('parallel_context_entropy')['values']
RANDOM = np.random.default_rng(0)
PREFIX, QUESTION = (RANDOM.integers(0, 13, (2, n)) for n in (2, 5))
PIECES = [RANDOM.integers(0, 13, (2, n)) for n in GOLDEN['lengths']]


@functools.cache
def pieces_of(**options):
    return encode(model_of(), PREFIX, PIECES, **options)


def answers(model, pieces, steps=0, **options):
    reader, cache = join(model, pieces, capacity=slots_of(pieces) + QUESTION.shape[1], **options)
    return passes.answers(reader, cache, QUESTION, steps)


def oracle(model, pieces=PIECES, attend=sharded_attend, **options):
    layout = piece_layout(2, lengths_of(pieces), **options)
    return dense(model, [PREFIX, *pieces], QUESTION, layout, attend)


layout_of = lambda case: piece_layout(case['prefix'], case['lengths'])
test_golden = golden_suite(
    'parallel_context_entropy',
    {
        'query_start': lambda case: layout_of(case).start,
        'ids.*': (lambda _, n: layout_of(GOLDEN).ids[1 + n], {'atol': 5e-4}),
    },
)


@pytest.mark.parametrize(
    'size, align, first, last, start',
    [
        ('max', 'left', [2, 3], [2, 3, 4, 5, 6, 7], 8),
        ('max', 'right', [6, 7], [2, 3, 4, 5, 6, 7], 8),
        ('average', 'left', [2, 3], [2, 3, 4, 5, 6, 7], 6),
        ('average', 'evenly', [2, 4], [2 + 4 * t / 6 for t in range(6)], 6),
        ('harmonic', 'evenly', [2, 3.5], [2 + t / 2 for t in range(6)], 5),
        ('max', 'order', [2, 3], [4, 5, 6, 7, 8, 9], 10),
    ],
)
def test_the_other_modes(size, align, first, last, start):
    layout = piece_layout(2, [2, 6], size=size, align=align)
    np.testing.assert_allclose(layout.ids[1], first, rtol=1e-6)
    np.testing.assert_allclose(layout.ids[2], last, rtol=1e-6)
    assert layout.start == pytest.approx(start)


def test_fractional_positions_are_exact():
    ids, theta = piece_layout(2, [5, 8]).ids[1].astype(np.float32), np.array([1.0, 0.1, 0.001])
    exact = np.asarray(ids, np.float64)[:, None] * theta
    np.testing.assert_allclose(
        np.exp(1j * np.asarray(phase(jnp.asarray(ids), theta))), np.exp(1j * exact), atol=2e-6
    )


@pytest.mark.parametrize('size, align', [('harmonic', 'left'), ('max', 'order')])
@pytest.mark.full
def test_the_cache_is_the_dense_pass_without_selection(size, align):
    where = dict(size=size, align=align)
    ours = answers(model_of(), pieces_of(**where), steps=2, keep=None, **where)
    np.testing.assert_allclose(ours, oracle(model_of(), **where), atol=2e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize('keep, pooled', [(2, False), (2, True), (9, False)])
def test_the_cache_is_the_dense_pass_with_selection(keep, pooled):
    selected = SelectedAttention(count=4, keep=keep, top=3, pooled=pooled)
    ours = answers(
        model_of(), pieces_of(), steps=0 if pooled else 2, keep=keep, top=3, pooled=pooled
    )
    np.testing.assert_allclose(ours, oracle(model_of(), attend=selected), atol=2e-5)
    if keep == 9:
        np.testing.assert_allclose(ours, oracle(model_of()), atol=2e-5)
    else:
        assert np.abs(ours - oracle(model_of())).max() > 1e-3


SEGMENTS = np.array([[0] * 2 + [1] * 5 + [2] * 8 + [3] * 3 + [4] * 8 + [QUERY] * 5])


attend = jax.jit(
    lambda select, *inputs, block: select(*inputs, block=block),
    static_argnums=0,
    static_argnames='block',
)
select = jax.jit(select_pieces, static_argnums=2, static_argnames=('keep', 'pooled'))
scores_of = jax.jit(piece_scores, static_argnums=2)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'pooled, block', [(False, None), (False, (4, 5)), (True, None), (True, (5, 6))]
)
def test_selection_is_on_probabilities(pooled, block):
    """The two passes against probabilities of the whole row, selected and renormalised."""
    draw = lambda seed, length: np.random.default_rng(seed).standard_normal(
        (2, length, 2, 8), dtype=np.float32
    )
    q, k, v = draw(1, 5), draw(2, 31), draw(3, 31)
    index = jnp.arange(31)[None]
    tok = Tokens(index, index, rank=index, segment=jnp.asarray(SEGMENTS))
    selected, causal = SelectedAttention(count=4, keep=2, pooled=pooled), pj.make('causal()')
    ours = attend(selected, causal, 2 * q, k, v, tok.slice(26, 5), tok, block=block)
    first = lambda a: np.swapaxes(a, 1, 2)
    seen = np.arange(31)[None] <= np.arange(26, 31)[:, None]
    s = 2 * first(q) @ np.swapaxes(first(k), 2, 3) / 8**0.5
    p = np.exp(np.where(seen, s, -np.inf))
    chosen = np.asarray(select(p / p.sum(-1, keepdims=True), SEGMENTS[0], 4, pooled=pooled))
    np.testing.assert_allclose(ours, first(chosen @ first(v)), atol=3e-6)
    assert (np.count_nonzero(scores_of(chosen, SEGMENTS[0], 4), axis=-1) == 2).all()


def test_pooled_scores_take_the_largest_over_heads_and_rows():
    scores = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    expected = np.sort(scores.transpose(0, 3, 1, 2).reshape(2, 5, 12), axis=-1)[..., -5:].sum(-1)
    pooled = np.asarray(jax.jit(pool_scores)(scores, np.ones((1, 4), bool)))
    np.testing.assert_allclose(pooled[:, 0, 0], expected, rtol=1e-6)


def test_ties_go_to_the_first_piece_and_small_sums_are_clamped():
    p = np.float32([0.0, 0.5, 0.5]).reshape(1, 1, 1, 3)
    assert np.ravel(select(p, np.array([0, 1, 2]), 2, keep=1)).tolist() == [0.0, 1.0, 0.0]
    tiny = np.float32([[1e-6, 1 - 1e-6, 0.0], [0.0, 0.0, 1.0]]).reshape(1, 2, 1, 3)
    clamped = np.asarray(select(tiny, np.array([0, 1, 2]), 2, keep=1, pooled=True))
    np.testing.assert_allclose(clamped[0, :, 0], [[0.1, 0.0, 0.0], [0.0, 0.0, 1.0]], rtol=1e-6)


@pytest.mark.full
def test_joining_others_turns_keys_to_where_they_now_stand():
    """One layer: the keys of a piece know nothing of where it stood."""
    model, chosen = model_of(layers=1), [2, 0]
    ours = answers(model, encode(model, PREFIX, PIECES), chosen=chosen, keep=None)[:, :3]
    alone = answers(model, encode(model, PREFIX, [PIECES[n] for n in chosen]), keep=None)[:, :3]
    np.testing.assert_allclose(ours, alone, atol=2e-5)


@pytest.mark.full
def test_a_reader_that_joins_all_pieces_forgets_its_selection():
    model, pieces = model_of(), pieces_of()
    selecting, _ = join(model, pieces, capacity=40, keep=1)
    np.testing.assert_allclose(
        answers(selecting, pieces, keep=None), answers(model, pieces, keep=None), atol=2e-6
    )
    np.testing.assert_array_equal(
        answers(selecting, pieces, keep=2), answers(model, pieces, keep=2)
    )


def test_wrong_input_is_an_error():
    model, one = model_of(), jnp.ones((1, 1, 1, 4))
    joined = lambda of=model, **o: join(of, pieces_of(), **{'capacity': 40, **o})
    calls = {
        'at least one context': lambda: encode(model, PREFIX, []),
        "align is 'centre'": lambda: encode(model, PREFIX, PIECES, align='centre'),
        "size is 'mean'": lambda: encode(model, PREFIX, PIECES, size='mean'),
        'keep must be at least 1, an integer, got 0': lambda: joined(keep=0),
        'keep must be at least 1, an integer, got 1.5': lambda: joined(keep=1.5),
        'piece 0 is of 2 layers, the model has 1': lambda: joined(model_of(layers=1)),
        r'among 0 .. 3, got \[4\]': lambda: joined(chosen=[4]),
        '26 tokens .* cache of 26': lambda: joined(capacity=26),
        '_entropy needs one rotary .* got alibi': lambda: encode(
            model_of(encoding='alibi()'), PREFIX, PIECES
        ),
        r'got 0, \[2, 0\]': lambda: piece_layout(0, [2, 0]),
        'top must be at least 1, an integer, got 0': lambda: select_pieces(
            one, jnp.arange(4), 3, top=0
        ),
        'top must be at least 1, an integer, got 0.5': lambda: pool_scores(
            one, jnp.ones((1, 1), bool), top=0.5
        ),
        'entropy: keep must be at least 1, an integer, got 1.5': lambda: best_pieces(
            jnp.ones(3), 1.5
        ),
    }
    check_refused(calls)
