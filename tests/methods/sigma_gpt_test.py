"""sigma-GPT: double positions, shuffled data, decoding in any order, bursts with rejection and what
they cost.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import posenc_jax as pj
from configs import default
from posenc_jax.lab.decoding import any_order
from posenc_jax.lab.decoding import burst as bursts
from posenc_jax.lab.decoding.any_order import sample_in_order
from posenc_jax.lab.decoding.burst import burst_sample
from posenc_jax.lab.decoding.decode import init_cache, prefill
from posenc_jax.lab.runs.run import validate
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.lab.tasks.any_order import AnyOrder, fractal_order, shuffled_batch
from posenc_jax.lab.tasks.copy import Reverse
from posenc_jax.lab.tasks.sequences import real_tokens
from posenc_jax.methods.sigma_gpt import sigma_gpt_sinusoid
from tests.golden_files import golden, golden_suite
from tests.lab.tasks.rows import make as task
from tests.methods.models import descend, model_of, read, token_by_token, turned_off
from tests.refusals import refused

GOLDEN = golden('sigma_gpt')['values']
T, V = 9, 7
SPEC = 'sigma_gpt(max_len=9, std=1.0)'
small = functools.partial(model_of, vocab_size=V)
RNG = np.random.default_rng


@pytest.fixture(scope='module')
def model():
    return small(SPEC)


def text(rows=2, seed=0):
    return jax.random.randint(jax.random.key(seed), (rows, T), 0, V)


def orders(rows=2):
    return np.stack([RNG(row).permutation(T) for row in range(rows)])


def in_order(a, order):
    return jnp.take_along_axis(jnp.asarray(a), jnp.asarray(order), axis=1)


def placed(order):
    """Tokens of all places but the last of an order, with the place that each one predicts."""
    return pj.Tokens.of(positions=np.stack([order[:, :-1], order[:, 1:]], axis=-1))


def read_in_order(model, tokens, order):
    return read(model, tokens[:, : order.shape[1] - 1], placed(order))


# The encoding.


def make(arguments, width=8):
    return pj.make(f'sigma_gpt({arguments})', model_dim=width)


def added(encoding, pairs):
    tok = encoding.place(pj.Tokens.of(positions=jnp.asarray(pairs)[None]))
    return encoding.embed(jnp.zeros((1, len(pairs), 8)), tok)[0]


def test_identity_order_is_a_gpt_with_both_positions(model):
    """`wte[x] + [wpe[t], wpe[t + 1]]`, written down with the table; positions with one component
    are that order.
    """
    tokens, plain = text(), pj.Tokens.of(length=T - 1)
    table = np.asarray(model.shared[0].vectors[...])
    both = np.concatenate([table[: T - 1], table[1:T]], axis=-1)
    x = model.embed(tokens[:, :-1], (plain,))
    scaled = np.asarray(model.embedding[...])[tokens[:, :-1]] * 4  # sqrt(width) = 4
    np.testing.assert_allclose(x, scaled + both, atol=1e-6)
    identity = read_in_order(model, tokens, np.arange(T)[None])
    np.testing.assert_array_equal(identity, read(model, tokens[:, :-1], plain))


def sinusoid(case):
    """The table, which the encoding adds half for half and does not train."""
    encoding = make(f'max_len={case["max_len"]}, table="sinusoid"')
    assert not jax.tree.leaves(nnx.state(encoding))
    table = sigma_gpt_sinusoid(jnp.array(case['positions']), 4, case['max_len'])
    both = added(encoding, [case['positions']])[0]
    np.testing.assert_allclose(both, np.ravel(case['table']), atol=1e-6)
    return table


test_golden = golden_suite('sigma_gpt') | {
    'sinusoid.table': (sinusoid, {'atol': 1e-6}),
    'fractal.*': lambda _, length: fractal_order(int(length)),
}


def placed_in(table, pos):
    return lambda: make(f'max_len=6, table={table!r}').place(pj.Tokens.of(positions=pos))


test_positions_that_no_table_has = refused() | {
    'next position 6 is not in 0 .. 5': placed_in('learned', [[[5, 6]]]),
    'own position -1 is not in 0 .. 5': placed_in('learned', [[[-1, 0]]]),
    'next position 6 is not in 0 .. 5; use': placed_in('learned', [[0, 1, 5]]),
    'own position -2 is not at least -1': placed_in('sinusoid', [[[-2, 0]]]),
    'next position -1 is not at least 0': placed_in('sinusoid', [[[0, -1]]]),
    r'\[B, L, 2\], own and next, got int32 \(1, 1, 3\)': placed_in('learned', [[[0, 1, 2]]]),
    'needs integer positions': placed_in('learned', [[0.5]]),
}


def test_positions_that_are_traced_or_padding():
    encoding = make('max_len=6')
    message = '6 tokens and the one that follows need 7 positions, the table has 6'
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda pos: added(encoding, pos), jnp.zeros((6, 2), jnp.int32))
    nan = jax.jit(lambda pos: added(encoding, pos))(jnp.array([[0, 6]]))
    np.testing.assert_array_equal(np.isnan(nan[0]), [False] * 4 + [True] * 4)
    padded = pj.Tokens.of(positions=[[[0, 1], [99, 99]]], valid=[[True, False]])
    assert not np.asarray(encoding.embed(jnp.zeros((1, 2, 8)), encoding.place(padded)))[0, 1].any()


# Data.


def test_fractal_orders_are_permutations():
    for length in (0, 1, 3, 33, 100):
        assert sorted(fractal_order(length).tolist()) == list(range(length))


def order_of(batch):
    return np.concatenate([batch['positions'][..., 0], batch['positions'][:, -1:, 1]], axis=1)


def said(batch, row):
    """The tokens of a row in the order in which it writes them."""
    return np.append(batch['tokens'][row, :1], batch['targets'][row])


def unshuffled(batch, row):
    """The text of a row by its places, and its order."""
    order = order_of(batch)[row]
    np.testing.assert_array_equal(batch['positions'][row, 1:, 0], batch['positions'][row, :-1, 1])
    assert sorted(order) == list(range(len(order)))
    return said(batch, row)[np.argsort(order)], order


@pytest.mark.parametrize(
    'options',
    [
        '',
        ', prompt=True',
        ', order="fractal"',
        ', order="fractal", prompt=True',
        ', order="left_to_right"',
    ],
)
def test_shuffled_rows_hold_the_same_text(options):
    inner = Reverse().sample(RNG(5), 40, (1, 6))
    batch = task(f'any_order(reverse(){options})').sample(RNG(5), 40, (1, 6))
    for row in range(40):
        found, order = unshuffled(batch, row)
        np.testing.assert_array_equal(found, said(inner, row))
        count = real_tokens(inner)[row]
        assert sorted(order[:count]) == list(range(count))  # padding stays behind
        # All T - 1 targets count.
        np.testing.assert_array_equal(batch['loss_mask'][row], np.arange(1, len(order)) < count)
        if 'prompt' in options:
            prompt = int(np.argmax(inner['loss_mask'][row] > 0)) + 1
            np.testing.assert_array_equal(order[:prompt], np.arange(prompt))
            if 'fractal' in options:
                expected = prompt + fractal_order(count - prompt)
                np.testing.assert_array_equal(order[prompt:count], expected)
        elif 'left' in options:
            np.testing.assert_array_equal(order, np.arange(len(order)))


def test_orders_are_uniform():
    batch = task('any_order(reverse())').sample(RNG(0), 20_000, 1)  # five tokens, all real
    _, counts = np.unique(order_of(batch) @ 10 ** np.arange(5), return_counts=True)
    assert len(counts) == 120
    assert ((counts - 20_000 / 120) ** 2 / (20_000 / 120)).sum() < 119 + 5 * (2 * 119) ** 0.5


def test_curriculum_falls_linearly():
    """A curriculum of 10 batches: the share of rows from left to right is 1 - index / 10."""
    data = task('any_order(reverse(), curriculum=10)').dataset(length=4, batch_size=600, seed=0)
    for index in (0, 3, 8, 10, 25):
        own = data[index]['positions'][..., 0]
        left = (own == np.arange(own.shape[1])).all(axis=1).mean()
        assert left == pytest.approx(max(0, 1 - index / 10), abs=0.07), index


def test_orders_are_drawn_apart_from_the_text():
    plain, shuffled = (
        own.dataset(length=4, batch_size=3, seed=0)[2] for own in (Reverse(), AnyOrder(Reverse()))
    )
    for row in range(3):
        np.testing.assert_array_equal(unshuffled(shuffled, row)[0], said(plain, row))


def test_evaluation_is_left_to_right_unless_asked():
    inner = Reverse()
    assert AnyOrder(inner).for_evaluation() == inner
    test = dict(length=4, batch_size=4, seed=0, split='test')
    plain, own = (AnyOrder(inner, in_evaluation=flag).dataset(**test)[0] for flag in (False, True))
    assert 'positions' not in plain and 'positions' in own
    batch = task('any_order(language())').dataset(length=8, batch_size=2, seed=0)[0]
    assert batch['positions'].shape == (2, 8, 2) and batch['loss_mask'].all()


def test_a_batch_is_shuffled_by_its_priorities():
    batch = Reverse().sample(RNG(0), 2, 2)
    priority = np.linspace(0, 0.9, 7)[None].repeat(2, 0)
    out = shuffled_batch(batch, priority[:, ::-1], np.array([0, 3]))
    np.testing.assert_array_equal(out['positions'][0, :, 0], [6, 5, 4, 3, 2, 1])
    np.testing.assert_array_equal(out['positions'][1, :, 0], [0, 1, 2, 6, 5, 4])


# Decoding.


def assert_given(out, tokens, order, known):
    at = lambda a: in_order(a, order)[:, :known]
    np.testing.assert_array_equal(at(out.tokens), at(tokens))


@pytest.mark.full
def test_steps_equal_the_whole_in_any_order(model):
    order = orders()
    tokens = in_order(text(), order)
    found, _ = token_by_token(model, tokens[:, :-1], placed(order))
    np.testing.assert_allclose(found, read_in_order(model, tokens, order), atol=2e-5)


def test_greedy_completion_is_consistent_with_one_pass(model):
    """Every written token is the first choice of a pass over the finished text in the same order;
    the given ones stay.
    """
    order, known = orders(), 3
    out = sample_in_order(model, text(), order, known=known, temperature=0.0)
    assert_given(out, text(), order, known)
    shuffled = in_order(out.tokens, order)
    logits = read_in_order(model, shuffled, order)
    np.testing.assert_array_equal(jnp.argmax(logits, -1)[:, known - 1 :], shuffled[:, known:])
    assert out.evaluations == T - known


@pytest.mark.full
def test_a_start_slot_predicts_the_first_token_as_well():
    model, order = small('sigma_gpt(max_len=9, table="sinusoid")'), orders()
    out = sample_in_order(model, text(), order, known=0, temperature=0.0, start=0)
    shuffled = jnp.pad(in_order(out.tokens, order), ((0, 0), (1, 0)))
    slots = np.pad(order, ((0, 0), (1, 0)), constant_values=-1)
    logits = read_in_order(model, shuffled, slots)
    np.testing.assert_array_equal(jnp.argmax(logits, -1), shuffled[:, 1:])
    assert out.evaluations == T
    burst = burst_sample(model, text(), order, known=0, key=jax.random.key(0), start=0)
    assert burst.tokens.shape == (2, T) and burst.evaluations < 2 * T


# Bursts.


def first_round(model, known, pairing='intended'):
    order = orders()
    sequence, slots = any_order.given_first(model, text(), order, known, None)
    graphdef, state = nnx.split(model)
    plan = bursts._Static(graphdef, known, 1.0, pairing, GOLDEN['orders'])
    return plan, state, bursts._first_burst(plan, state, sequence, slots), order


@pytest.mark.parametrize('known', [1, 4])
@pytest.mark.full
def test_proposals_are_the_conditionals_of_the_model(model, known):
    """p of every missing place against the plain model asked for that place alone; 'released'
    differs from the second on.
    """
    for pairing in ('intended', 'released'):
        plan, _, burst, order = first_round(model, known, pairing)
        given = in_order(text(), order)
        drawn, log_p, places, *_ = bursts._proposals(plan, model, burst, jax.random.key(1))
        np.testing.assert_array_equal(places, order[:, known:])
        gap = []
        for at, place in enumerate(order[:, known:].T):
            ask = np.concatenate([order[:, :known], place[:, None]], axis=1)
            expected = jax.nn.log_softmax(read_in_order(model, given, ask)[:, -1])
            own = jnp.take_along_axis(expected, drawn[:, at, None], axis=1)[:, 0]
            gap.append(np.abs(log_p[:, at] - own).max())
        assert gap[0] < 2e-5
        assert max(gap[1:]) < 2e-5 if pairing == 'intended' else min(gap[1:]) > 1e-3


@pytest.mark.full_but_one
@pytest.mark.parametrize('known', [1, 4])
def test_a_round_accepts_by_the_ratio_and_keeps_the_cache_of_the_winner(model, known):
    """q against the plain model in the order that won; then the cache goes on as a fresh one
    would.
    """
    plan, state, burst, order = first_round(model, known)
    after, ratio = bursts._burst(plan, state, burst, jax.random.key(2))
    assert ratio.shape == (GOLDEN['orders'], 2, T - known)
    np.testing.assert_allclose(ratio[..., 0], GOLDEN['first_ratio'], atol=5e-5)
    assert np.abs(np.asarray(ratio[..., 1:]) - 1).max() > 1e-2
    taken, places, tokens = int(after.taken), np.asarray(after.places[:, :T]), after.tokens[:, :T]
    assert known < taken <= T
    np.testing.assert_array_equal(places[:, :known], order[:, :known])
    assert all(sorted(row) == list(range(T)) for row in places)
    _, fresh = jax.jit(prefill)(model, init_cache(model, placed(places)), tokens[:, : taken - 1])
    for ours, theirs in zip(after.layers, fresh.layers):
        for a, b in ((ours.k, theirs.k), (ours.v, theirs.v)):
            np.testing.assert_allclose(a[:, :, : taken - 1], b[:, :, : taken - 1], atol=2e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize('seed', range(6))
def test_a_round_takes_what_the_uniform_numbers_of_a_place_accept_in_the_best_order(model, seed):
    """With the same random numbers, in loops: the first token always, then while u < q / p; the
    winner of each row, and the row that has least.
    """
    known = 2
    plan, state, burst, _ = first_round(model, known)
    key = jax.random.key(seed)
    after, ratio = bursts._burst(plan, state, burst, key)
    _, uniform_key, order_key = jax.random.split(key, 3)
    window = T - known
    uniform = np.asarray(jax.random.uniform(uniform_key, (2, window)))
    tried = np.argsort(np.asarray(jax.random.uniform(order_key, (plan.orders, 2, window))), axis=-1)
    lengths = np.zeros((plan.orders, 2), int)
    for k, row in np.ndindex(*lengths.shape):
        accepted = [uniform[row, own] < ratio[k, row, at] for at, own in enumerate(tried[k, row])]
        lengths[k, row] = ([True, *accepted[1:], False]).index(False)
    assert int(after.taken) == known + lengths.max(axis=0).min()
    missing = np.asarray(burst.places[:, known:T])
    for row in range(2):
        winner = tried[lengths[:, row].argmax(), row]
        np.testing.assert_array_equal(after.places[row, known:T], missing[row, winner])


@pytest.mark.full
def test_one_missing_place_is_an_ordinary_step(model):
    """One pass; over many rows the distribution of the token is that of the model."""
    rows, order = 4000, orders(1)
    tokens = jnp.tile(text(1), (rows, 1))
    many = np.tile(order, (rows, 1))
    out = burst_sample(model, tokens, many, known=T - 1, key=jax.random.key(0))
    assert out.evaluations == 2  # the given tokens, and the step
    p = jax.nn.softmax(read_in_order(model, in_order(tokens[:1], order), order)[0, -1])
    counts = np.bincount(np.asarray(out.tokens)[:, order[0, -1]], minlength=V)
    assert (((counts - rows * p) ** 2) / (rows * p)).sum() < (V - 1) + 5 * (2 * (V - 1)) ** 0.5


def test_independent_tokens_come_in_one_burst(model):
    """The claim behind bursts: where tokens do not depend on each other, one round writes
    them all.
    """
    indifferent = nnx.clone(model)  # its output does not depend on what it reads
    turned_off(indifferent.output)
    for known in (1, 2):
        key = jax.random.key(1)
        out = burst_sample(indifferent, text(), orders(), known=known, key=key)
        assert out.evaluations == known + 1
    out = sample_in_order(model, text(), orders(), known=2, temperature=0.0)
    assert out.evaluations == T - 2


@pytest.mark.full_but_one
@pytest.mark.parametrize('pairing', ['intended', 'released'])
def test_bursts_end_and_keep_what_was_given(model, pairing):
    order, known = orders(3), 2
    options = dict(known=known, key=jax.random.key(3), pairing=pairing)
    out, again = (burst_sample(model, text(3), order, **options) for _ in range(2))
    assert_given(out, text(3), order, known)
    assert 3 <= out.evaluations <= 1 + 2 * (T - known)
    np.testing.assert_array_equal(out.tokens, again.tokens)


TWICE = orders()  # its row 1 names a place twice
TWICE[1, 0] = TWICE[1, 1]
WRONG_CALLS = [  # function, arguments in the place of the usual ones, message
    (sample_in_order, dict(known=0), 'an integer in 1 .. 8, got 0'),
    (sample_in_order, dict(known=T), 'an integer in 1 .. 8, got 9'),
    (sample_in_order, dict(known=2.5), 'an integer in 1 .. 8, got 2.5'),
    (sample_in_order, dict(tokens=text() + V), r'ids in 0 .. \d+, got \d+'),
    (sample_in_order, dict(tokens=text() * 1.0), 'must be integers'),
    (sample_in_order, dict(order=TWICE), 'permutation of 0 .. 8; row 1 is'),
    (sample_in_order, dict(order=orders()[:, :4]), r'shape \(2, 4\), expected 2 rows'),
    (sample_in_order, dict(temperature=1.0), 'at random and needs a key'),
    (sample_in_order, dict(known=0, start=0), 'no row in a learned table'),
    (burst_sample, dict(key=None), 'draws at random and needs a key'),
    (burst_sample, dict(tokens=text() - V), r'ids in 0 .. \d+, got -\d+ .. -\d+'),
    (burst_sample, dict(temperature=0.0), 'temperature must be positive, got 0.0'),
    (burst_sample, dict(orders=0), 'orders must be at least 1, .*got 0'),
    (burst_sample, dict(orders=1.5), 'orders must be at least 1, .*got 1.5'),
    (burst_sample, dict(pairing='intend'), "did you mean 'intended'"),
    (burst_sample, dict(model='nope()'), 'the encoding sigma_gpt alone'),
    (burst_sample, dict(model='sigma_gpt(max_len=9) | rope()'), 'sigma_gpt alone'),
    (burst_sample, dict(model='sigma_gpt(max_len=6)'), 'do not fit the 6'),
]


@pytest.mark.parametrize('function, changed, message', WRONG_CALLS)
def test_wrong_calls(model, function, changed, message):
    usual = dict(temperature=0.0) if function is sample_in_order else dict(key=jax.random.key(0))
    given = {'model': model, 'tokens': text(), 'order': orders(), 'known': 2, **usual, **changed}
    if isinstance(given['model'], str):
        given['model'] = small(given['model'], train_len=5)
    arguments = [given.pop(name) for name in ('model', 'tokens', 'order')]
    with pytest.raises(ValueError, match=message):
        function(*arguments, **given)


@pytest.mark.parametrize('table', ['learned', 'sinusoid'])
@pytest.mark.parametrize('options', ['curriculum=100', 'in_evaluation=True'])
@pytest.mark.full
def test_it_trains_and_evaluates_from_a_config(table, options):
    """Everything that `validate` checks, on shapes: two positions a token in training, one or two
    in evaluation.
    """
    config = default.get_config()
    config.task = f'any_order(reverse(), {options})'
    config.encoding = f'sigma_gpt(max_len=60, table="{table}")'
    config.model.update(layers=1, width=16, heads=2)
    config.train.update(length=5, batch=8)
    config.eval.lengths = (5, 20)
    assert validate(config).name
    if table == 'learned':
        config.unlock()
        config.eval.lengths = (40,)
        with pytest.raises(ValueError, match='sigma_gpt: '):
            validate(config)


def test_text_within_any_order_is_that_of_the_config():
    config = default.get_config()
    config.task, config.data.dataset = 'any_order(language())', 'stdlib_code'
    own = make_task(config).task.corpus
    assert own == task('language("stdlib_code")').corpus != task('language()').corpus


@pytest.mark.full
def test_a_small_model_learns_to_write_in_any_order():
    """The paper's claim, small: trained in random orders, the answer is right whatever order it is
    written in.

    Strings of one symbol repeated: any token tells all the others.
    """
    rows, length = 32, 6
    untrained = small('sigma_gpt(max_len=6)', layers=1, train_len=length - 1)
    graphdef, params, rest = nnx.split(untrained, nnx.Param, ...)

    def loss(params, key):
        symbol, shuffle = jax.random.split(key)
        tokens = jnp.broadcast_to(jax.random.randint(symbol, (rows, 1), 0, V), (rows, length))
        order = jnp.argsort(jax.random.uniform(shuffle, (rows, length)), axis=1)
        pairs = jnp.stack([order[:, :-1], order[:, 1:]], axis=-1)
        logits = nnx.merge(graphdef, params, rest)(tokens[:, :-1], pj.Tokens.of(positions=pairs))
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    trained = nnx.merge(graphdef, descend(loss, params, steps=100, rate=1e-2)[0], rest)
    order = np.stack([RNG(row).permutation(length) for row in range(V)])
    tokens = jnp.broadcast_to(jnp.arange(V)[:, None], (V, length))
    out = sample_in_order(trained, tokens, order, known=1, temperature=0.0)
    np.testing.assert_array_equal(out.tokens, tokens)
    burst = burst_sample(trained, tokens, order, known=1, key=jax.random.key(0), temperature=0.2)
    np.testing.assert_array_equal(burst.tokens, tokens)
    assert burst.evaluations < out.evaluations  # one burst, against a step for every token
