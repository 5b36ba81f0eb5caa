"""Randomized positions: the distribution of the draw, the evaluation rules, padding, packing and
decoding.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.randomized_pe import randomized_pe_ids, randomized_pe_spaced_ids
from posenc_jax.protocol.tables import NOWHERE
from tests.golden_files import golden
from tests.methods.models import model_of
from tests.methods.random_positions import refused_beyond
from tests.refusals import refused

GOLDEN = golden('randomized_pe')['values']
RULES = ['sampled', 'spaced', 'first']


def make(arguments):
    return pj.make(f'randomized_pe({arguments})')


def ids_of(encoding, tok, key=None):
    return np.asarray(encoding.place(tok, key=None if key is None else jax.random.key(key)).pos)


@pytest.fixture(scope='module')
def draws():
    """20000 draws of 10 out of 64."""
    n, m = GOLDEN['count'], GOLDEN['max_len']
    keys = jax.random.split(jax.random.key(0), 20_000)
    return np.asarray(
        jax.jit(jax.vmap(lambda key: randomized_pe_ids(key, jnp.array([n]), m)[0]))(keys)
    )


def test_draws_are_sorted_distinct_and_in_range(draws):
    n, m = GOLDEN['count'], GOLDEN['max_len']
    ids = draws[:, :n]
    assert (np.diff(ids) > 0).all() and ids.min() == 0 and ids.max() == m - 1
    assert (draws[:, n:] == m).all()


def test_moments_of_the_draw(draws):
    """Within four standard errors of 20000 draws."""
    first, last = draws[:, 0], draws[:, GOLDEN['count'] - 1]
    error = 4 * (GOLDEN['variance_first'] / len(draws)) ** 0.5
    assert first.mean() == pytest.approx(GOLDEN['mean_first'], abs=error)
    assert last.mean() == pytest.approx(GOLDEN['mean_last'], abs=error)
    assert first.var() == pytest.approx(GOLDEN['variance_first'], rel=0.08)
    error = 4 * (0.16 * 0.84 / len(draws)) ** 0.5
    assert (first == 0).mean() == pytest.approx(GOLDEN['first_is_zero'], abs=error)
    share = np.bincount(draws[:, :10].reshape(-1), minlength=64) / len(draws)
    np.testing.assert_allclose(share, 10 / 64, atol=0.012)


@pytest.mark.parametrize('rule', RULES)
def test_a_full_range_is_no_randomisation(rule):
    encoding = make(f'max_len=12, evaluation={rule!r}')
    tok = pj.Tokens.of(length=12)
    np.testing.assert_array_equal(ids_of(encoding, tok), [np.arange(12)])
    np.testing.assert_array_equal(ids_of(encoding, tok, key=3), [np.arange(12)])


def test_one_draw_per_key_shared_by_rows_of_equal_length():
    encoding = make('max_len=1000')
    tok = pj.Tokens.of(valid=np.ones((3, 20), bool))
    first, again, other = (ids_of(encoding, tok, key) for key in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, first[:1].repeat(3, 0))
    assert (first != other).any()


def test_a_draw_per_row():
    encoding = make('max_len=1000, per_row=True')
    tok = pj.Tokens.of(valid=np.ones((3, 20), bool))
    ids = ids_of(encoding, tok, 1)
    assert (np.diff(ids) > 0).all() and len({tuple(row) for row in ids}) == 3
    with pytest.raises(ValueError, match='needs tokens with a row per sequence'):
        ids_of(encoding, pj.Tokens.of(length=20), 1)


@pytest.mark.full_but_one
@pytest.mark.parametrize('key', [None, 5])
@pytest.mark.parametrize('rule', RULES)
def test_padding_on_either_side_changes_nothing(rule, key):
    encoding = make(f'max_len=100, evaluation={rule!r}')
    alone = ids_of(encoding, pj.Tokens.of(length=7), key)[0]
    valid = np.array([[False] * 4 + [True] * 7, [True] * 7 + [False] * 4])
    padded = ids_of(encoding, pj.Tokens.of(valid=valid), key)
    np.testing.assert_array_equal(padded[0, 4:], alone)
    np.testing.assert_array_equal(padded[1, :7], alone)


def test_packed_documents_use_the_same_ids():
    ids = ids_of(make('max_len=100'), pj.Tokens.of(segment=[[0] * 6 + [1] * 6]), 2)[0]
    np.testing.assert_array_equal(ids[:6], ids[6:])


@pytest.mark.full
def test_spaced_ids_are_the_expected_ones_rounded_down():
    n, m = GOLDEN['count'], GOLDEN['max_len']
    spaced = lambda n, m: np.asarray(
        randomized_pe_spaced_ids(jnp.arange(n)[None], jnp.array([n]), m)
    )[0]
    ids = spaced(n, m)
    assert ids[0] == int(GOLDEN['mean_first']) and ids[-1] == int(GOLDEN['mean_last'])
    for n, m in ((1, 1), (7, 9), (40, 41), (46_340, 46_340), (46_000, 46_340)):
        ids, exact = spaced(n, m), np.arange(1, n + 1, dtype=np.int64) * (m + 1) // (n + 1) - 1
        np.testing.assert_array_equal(ids, exact)
        assert (np.diff(ids) > 0).all() and ids[0] >= 0 and ids[-1] < m


@pytest.mark.parametrize('rule', RULES)
def test_with_eval_len_a_prefix_does_not_depend_on_what_follows(rule):
    encoding = make(f'max_len=100, eval_len=40, evaluation={rule!r}')
    whole = ids_of(encoding, pj.Tokens.of(length=40))
    np.testing.assert_array_equal(ids_of(encoding, pj.Tokens.of(length=9)), whole[:, :9])


def test_the_evaluation_rule_needs_no_key_and_repeats():
    encoding, tok = make('max_len=100'), pj.Tokens.of(length=30)
    ids = ids_of(encoding, tok)
    np.testing.assert_array_equal(ids, jax.jit(lambda t: encoding.place(t).pos)(tok))
    assert (ids != np.arange(30)).any()
    first = ids_of(make("max_len=100, evaluation='first'"), tok)
    np.testing.assert_array_equal(first, [np.arange(30)])


def test_a_pattern_draws_anew_in_every_layer():
    """The paper's redraw inside attention: layers see ids of their own, in training and evaluation;
    RoPE is no Toeplitz form.
    """
    tok, key = pj.Tokens.of(length=8), jax.random.key(0)
    placed = lambda pattern, key: [
        np.asarray(own.pos) for own in model_of('', pattern=pattern).place(tok, key=key)
    ]
    pattern = tuple(f'randomized_pe(max_len=256, draw={n}) | rope()' for n in range(2))
    for drawn in (None, key):
        first, second = placed(pattern, drawn)
        assert (first != second).any() and len(np.unique(np.diff(first))) > 1
    first, second = placed(('randomized_pe(max_len=256) | rope()',) * 2, key)
    np.testing.assert_array_equal(first, second)


def test_longer_inputs_see_positions_that_training_saw():
    """The paper's claim: training on 20 tokens already visits the positions a test on 200 tokens
    needs.
    """
    encoding = make('max_len=256')
    place = jax.jit(lambda key: encoding.place(pj.Tokens.of(length=20), key=key).pos[0])
    seen = np.unique(np.concatenate([place(jax.random.key(i)) for i in range(150)]))
    assert set(ids_of(encoding, pj.Tokens.of(length=200))[0]) <= set(seen.tolist())


def test_positions_beyond_the_range():
    encoding = make('max_len=8, eval_len=6')
    refused_beyond(encoding, 9, 7, key=1)
    refused_beyond(encoding, 7, 5, key=None)
    beyond = randomized_pe_spaced_ids(jnp.array([[0, 9, -1]]), jnp.array([3]), 7)
    assert beyond.tolist() == [[1, NOWHERE, NOWHERE]]


test_wrong_input = refused() | {
    '5 distinct ids cannot be drawn from 3': (
        lambda: randomized_pe_ids(jax.random.key(0), jnp.array([2, 5]), 3),
        lambda: randomized_pe_spaced_ids(jnp.array([[0]]), jnp.array([5]), 3),
    ),
    'needs integer positions': (lambda: make('max_len=8').place(pj.Tokens.of(positions=[[0.5]]))),
    'one component': lambda: make('max_len=8').place(pj.Tokens.of(positions=[[[0, 1]]])),
}


@pytest.mark.parametrize(
    'rule, pos, impossible',
    [
        ("evaluation='sampled'", [0, 1, 9], [0, 1, 2]),
        ("evaluation='sampled'", [0, 1, -1], [2]),
        ("evaluation='spaced'", [0, 1, 9], [0, 1, 2]),
        ("evaluation='spaced'", [-1, 1, 2], [0]),
        ('eval_len=4', [0, 1, 6], [2]),
    ],
)
def test_traced_positions_that_cannot_be_are_nowhere(rule, pos, impossible):
    encoding = make(f'max_len=8, {rule}')
    place = jax.jit(lambda pos: encoding.place(pj.Tokens.of(positions=pos)).pos)
    (placed,) = place(jnp.array([pos]))
    assert np.flatnonzero(placed == NOWHERE).tolist() == impossible
    assert ((placed >= 0) & (placed < 8)).sum() == 3 - len(impossible)


def test_rows_may_share_positions_and_differ_in_padding():
    valid = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    tok = dataclasses.replace(pj.Tokens.of(length=5), valid=valid)
    placed = pj.make('randomized_pe(max_len=32)').place(tok)
    alone = pj.make('randomized_pe(max_len=32)').place(pj.Tokens.of(length=3))
    assert placed.pos.shape == (2, 5)
    np.testing.assert_array_equal(placed.pos[1, :3], alone.pos[0])
