"""sigma-GPT: double positions, shuffled data, decoding in any order, bursts with rejection and what
they cost.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding import any_order
from posenc_jax.lab.decoding import burst as bursts
from posenc_jax.lab.decoding.any_order import sample_in_order
from posenc_jax.lab.decoding.burst import burst_sample
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.tasks.any_order import AnyOrder, fractal_order, shuffled_batch
from posenc_jax.lab.tasks.copy import Reverse
from posenc_jax.lab.tasks.sequences import real_tokens
from posenc_jax.language.spec import build, parse
from posenc_jax.methods.sigma_gpt import sigma_gpt_sinusoid
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('sigma_gpt')['values']
T, V = 9, 7


read = jax.jit(lambda model, tokens, tok: model(tokens, tok))


def model_of(encoding='sigma_gpt(max_len=9, std=1.0)', seed=0, **sizes):
    sizes = dict(dict(vocab_size=V, train_len=T - 1, layers=2, width=16, heads=2), **sizes)
    return Transformer(TransformerConfig(encoding=encoding, **sizes), rngs=nnx.Rngs(seed))


@pytest.fixture(scope='module')
def model():
    return model_of()


def text(rows=2, seed=0):
    return jax.random.randint(jax.random.key(seed), (rows, T), 0, V)


def orders(rows=2, seed=0):
    return np.stack([np.random.default_rng(seed + row).permutation(T) for row in range(rows)])


def pairs_of(order):
    return np.stack([order[:, :-1], order[:, 1:]], axis=-1)


def task(spec):
    return build(parse(spec, ('task',)).nodes[0], {})


# The encoding.


def test_identity_order_is_a_gpt_with_both_positions(model):
    """`wte[x] + [wpe[t], wpe[t + 1]]`, written down with the table; positions with one component
    are that order.
    """
    tokens, own = text(), model.shared[0]
    table = np.asarray(own.vectors[...])
    both = np.concatenate([table[: T - 1], table[1:T]], axis=-1)
    plain = pj.Tokens.of(length=T - 1)
    x = model.embed(tokens[:, :-1], (plain,))
    np.testing.assert_allclose(
        x, np.asarray(model.embedding[...])[tokens[:, :-1]] * 4 + both, atol=1e-6
    )  # sqrt(width) = 4
    identity = pj.Tokens.of(positions=pairs_of(np.arange(T)[None]))
    np.testing.assert_array_equal(
        read(model, tokens[:, :-1], identity), read(model, tokens[:, :-1], plain)
    )


def test_golden_sinusoid():
    found = sigma_gpt_sinusoid(
        jnp.array(GOLDEN['sinusoid']['positions']), 4, GOLDEN['sinusoid']['max_len']
    )
    np.testing.assert_allclose(found, GOLDEN['sinusoid']['table'], atol=1e-6)
    encoding = pj.make('sigma_gpt(max_len=16, table="sinusoid")', model_dim=8)
    assert not jax.tree.leaves(nnx.state(encoding))
    tok = encoding.place(pj.Tokens.of(positions=[[GOLDEN['sinusoid']['positions']]]))
    np.testing.assert_allclose(
        encoding.embed(jnp.zeros((1, 1, 8)), tok)[0, 0],
        np.ravel(GOLDEN['sinusoid']['table']),
        atol=1e-6,
    )


def test_one_table_serves_both_halves():
    encoding = pj.make('sigma_gpt(max_len=6)', model_dim=8)
    assert encoding.vectors.shape == (6, 4) and len(jax.tree.leaves(nnx.state(encoding))) == 1
    embed = lambda pairs: encoding.embed(jnp.zeros((1, 1, 8)), pj.Tokens.of(positions=[[pairs]]))[
        0, 0
    ]
    np.testing.assert_array_equal(embed([2, 5])[:4], embed([5, 2])[4:])


def test_positions_that_no_table_has():
    encoding = pj.make('sigma_gpt(max_len=6)', model_dim=8)
    sinusoid = pj.make('sigma_gpt(max_len=6, table="sinusoid")', model_dim=8)
    for part, pos, message in (
        (encoding, [[[5, 6]]], 'next position 6 is not in 0 .. 5'),
        (encoding, [[[-1, 0]]], 'own position -1 is not in 0 .. 5'),
        (encoding, [[0, 1, 5]], 'next position 6 is not in 0 .. 5'),
        (sinusoid, [[[-2, 0]]], 'own position -2 is not at least -1'),
        (sinusoid, [[[0, -1]]], 'next position -1 is not at least 0'),
        (encoding, [[[0, 1, 2]]], r'\[B, L, 2\], own and next, got int32 \(1, 1, 3\)'),
        (encoding, [[0.5]], 'needs integer positions'),
    ):
        with pytest.raises(ValueError, match=message):
            part.place(pj.Tokens.of(positions=pos))
    with pytest.raises(
        ValueError, match='6 tokens and the one that follows need 7 positions, the table has 6'
    ):
        jax.jit(lambda pos: encoding.place(pj.Tokens.of(positions=pos)))(
            jnp.zeros((1, 6, 2), jnp.int32)
        )
    embed = lambda pos: encoding.embed(
        jnp.zeros((1, 1, 8)), encoding.place(pj.Tokens.of(positions=pos))
    )
    nan = jax.jit(embed)(jnp.array([[[0, 6]]]))
    np.testing.assert_array_equal(np.isnan(nan[0, 0]), [False] * 4 + [True] * 4)
    padded = pj.Tokens.of(positions=[[[0, 1], [99, 99]]], valid=[[True, False]])
    assert not np.asarray(encoding.embed(jnp.zeros((1, 2, 8)), encoding.place(padded)))[0, 1].any()


def test_wrong_arguments():
    for arguments, message in (
        ('max_len=1', 'at least 2, got 1'),
        ('max_len=4, std=-1.0', 'std must be at least 0'),
        ('max_len=4, table="sine"', 'is not one of'),
    ):
        with pytest.raises(ValueError, match=message):
            pj.make(f'sigma_gpt({arguments})', model_dim=8)
    with pytest.raises(ValueError, match='model_dim must be even, got 7; the nearest is 8'):
        pj.make('sigma_gpt(max_len=4)', model_dim=7)


# Data.


@pytest.mark.parametrize('length', GOLDEN['fractal'])
def test_golden_fractal_orders(length):
    assert fractal_order(int(length)).tolist() == GOLDEN['fractal'][length]


def test_fractal_orders_are_permutations():
    for length in (0, 1, 3, 33, 100):
        assert sorted(fractal_order(length).tolist()) == list(range(length))


def unshuffled(batch, row):
    """The text of a row by its places, and how long it is."""
    order = np.append(batch['positions'][row, :, 0], batch['positions'][row, -1, 1])
    np.testing.assert_array_equal(batch['positions'][row, 1:, 0], batch['positions'][row, :-1, 1])
    said = np.zeros(len(order), int)
    said[order] = np.append(batch['tokens'][row, :1], batch['targets'][row])
    assert sorted(order) == list(range(len(order)))
    return said, order


OPTIONS = [
    '',
    ', prompt=True',
    ', order="fractal"',
    ', order="fractal", prompt=True',
    ', order="left_to_right"',
]


@pytest.mark.parametrize('options', OPTIONS)
def test_shuffled_rows_hold_the_same_text(options):
    inner = Reverse().sample(np.random.default_rng(5), 40, (1, 6))
    batch = task(f'any_order(reverse(){options})').sample(np.random.default_rng(5), 40, (1, 6))
    for row in range(40):
        said, order = unshuffled(batch, row)
        np.testing.assert_array_equal(
            said, np.append(inner['tokens'][row, :1], inner['targets'][row])
        )
        count = real_tokens(inner)[row]
        assert sorted(order[:count]) == list(range(count))  # padding stays behind
        np.testing.assert_array_equal(
            batch['loss_mask'][row], np.arange(1, len(order)) < count
        )  # all T - 1 targets
        if 'prompt' in options:
            prompt = int(np.argmax(inner['loss_mask'][row] > 0)) + 1
            np.testing.assert_array_equal(order[:prompt], np.arange(prompt))
            if 'fractal' in options:
                np.testing.assert_array_equal(
                    order[prompt:count], prompt + fractal_order(count - prompt)
                )
        elif 'left' in options:
            np.testing.assert_array_equal(order, np.arange(len(order)))


def test_orders_are_uniform():
    batch = task('any_order(reverse())').sample(
        np.random.default_rng(0), 20_000, 1
    )  # five tokens, all real
    order = np.concatenate([batch['positions'][..., 0], batch['positions'][:, -1:, 1]], axis=1)
    _, counts = np.unique(order @ 10 ** np.arange(5), return_counts=True)
    assert len(counts) == 120
    assert ((counts - 20_000 / 120) ** 2 / (20_000 / 120)).sum() < 119 + 5 * (2 * 119) ** 0.5


def test_curriculum_falls_linearly():
    """A curriculum of 10 batches: the share of rows from left to right is 1 - index / 10."""
    data = task('any_order(reverse(), curriculum=10)').dataset(length=4, batch_size=600, seed=0)
    for index in (0, 3, 8, 10, 25):
        left = (
            (data[index]['positions'][..., 0] == np.arange(data[index]['tokens'].shape[1]))
            .all(axis=1)
            .mean()
        )
        assert left == pytest.approx(max(0, 1 - index / 10), abs=0.07), index


def test_orders_are_drawn_apart_from_the_text():
    plain = Reverse().dataset(length=4, batch_size=3, seed=0)[2]
    shuffled = AnyOrder(Reverse()).dataset(length=4, batch_size=3, seed=0)[2]
    for row in range(3):
        np.testing.assert_array_equal(
            unshuffled(shuffled, row)[0], np.append(plain['tokens'][row, :1], plain['targets'][row])
        )


def test_evaluation_is_left_to_right_unless_asked():
    inner = Reverse()
    assert AnyOrder(inner).for_evaluation() == inner
    test = dict(length=4, batch_size=4, seed=0, split='test')
    plain, own = (AnyOrder(inner, in_evaluation=flag).dataset(**test)[0] for flag in (False, True))
    assert 'positions' not in plain and 'positions' in own
    language = task('any_order(language())')
    batch = language.dataset(length=8, batch_size=2, seed=0)[0]
    assert batch['positions'].shape == (2, 8, 2) and batch['loss_mask'].all()


def test_wrong_tasks():
    for spec, message in (
        ('any_order(reverse(ids="plain"))', "positions itself, but the task has ids='plain'"),
        (
            'any_order(random_spaces(addition(ids="plain")))',
            "positions itself, but the task has ids='plain'",
        ),
        (
            'any_order(any_order(reverse()))',
            'positions itself, but AnyOrder supplies them too; use a task without',
        ),
        ('any_order(segmented_text(source_len=64, segment_len=4))', 'SegmentedText supplies them'),
        ('any_order(cream_text(factor=2))', 'CreamText supplies them'),
        ('any_order(language(packing="documents"))', "packing='documents'"),
        ('any_order(reverse(), curriculum=-1)', 'at least 0, got -1'),
        ('any_order(reverse(), order="backwards")', 'is not one of'),
    ):
        with pytest.raises(SpecError, match=message):
            task(spec)


def test_a_batch_is_shuffled_by_its_priorities():
    batch = Reverse().sample(np.random.default_rng(0), 2, 2)
    priority = np.linspace(0, 0.9, 7)[None].repeat(2, 0)
    out = shuffled_batch(batch, priority[:, ::-1], np.array([0, 3]))
    np.testing.assert_array_equal(out['positions'][0, :, 0], [6, 5, 4, 3, 2, 1])
    np.testing.assert_array_equal(out['positions'][1, :, 0], [0, 1, 2, 6, 5, 4])


# Decoding.


def assert_given(out, tokens, order, known):
    at = lambda a: np.take_along_axis(np.asarray(a), order[:, :known], axis=1)
    np.testing.assert_array_equal(at(out.tokens), at(tokens))


@pytest.mark.full
def test_steps_equal_the_whole_in_any_order(model):
    order = orders()
    tokens = jnp.take_along_axis(text(), jnp.asarray(order), axis=1)[:, :-1]
    tok = pj.Tokens.of(positions=pairs_of(order))
    expected, step = read(model, tokens, tok), jax.jit(decode_step)
    logits, cache = jax.jit(prefill)(model, init_cache(model, tok), tokens[:, :3])
    found = [*np.moveaxis(np.asarray(logits), 1, 0)]
    for t in range(3, T - 1):
        logits, cache = step(model, cache, tokens[:, t])
        found.append(logits)
    np.testing.assert_allclose(np.stack(found, 1), expected, atol=2e-5)


def test_greedy_completion_is_consistent_with_one_pass(model):
    """Every written token is the first choice of a pass over the finished text in the same order;
    the given ones stay.
    """
    order, known = orders(), 3
    out = sample_in_order(model, text(), order, known=known, temperature=0.0)
    assert_given(out, text(), order, known)
    shuffled = jnp.take_along_axis(out.tokens, jnp.asarray(order), axis=1)
    logits = read(model, shuffled[:, :-1], pj.Tokens.of(positions=pairs_of(order)))
    np.testing.assert_array_equal(jnp.argmax(logits, -1)[:, known - 1 :], shuffled[:, known:])
    assert out.evaluations == T - known


@pytest.mark.full
def test_a_start_slot_predicts_the_first_token_as_well():
    model = model_of('sigma_gpt(max_len=9, table="sinusoid")')
    order = orders()
    out = sample_in_order(model, text(), order, known=0, temperature=0.0, start=0)
    shuffled = jnp.pad(
        jnp.take_along_axis(out.tokens, jnp.asarray(order), axis=1), ((0, 0), (1, 0))
    )
    places = np.pad(order, ((0, 0), (1, 0)), constant_values=-1)
    logits = read(model, shuffled[:, :-1], pj.Tokens.of(positions=pairs_of(places)))
    np.testing.assert_array_equal(jnp.argmax(logits, -1), shuffled[:, 1:])
    assert out.evaluations == T
    burst = burst_sample(model, text(), order, known=0, key=jax.random.key(0), start=0)
    assert burst.tokens.shape == (2, T) and burst.evaluations < 2 * T


# Bursts.


def first_round(model, known, pairing='intended', key=0, rows=2):
    order = orders(rows)
    sequence, places = any_order.given_first(model, text(rows), order, known, None)
    graphdef, state = nnx.split(model)
    plan = bursts._Plan(graphdef, known, 1.0, pairing, GOLDEN['orders'])
    burst = bursts._first_burst(plan, state, sequence, places)
    return plan, state, burst, order


@pytest.mark.parametrize('known', [1, 4])
@pytest.mark.full
def test_proposals_are_the_conditionals_of_the_model(model, known):
    """p of every missing place against the plain model asked for that place alone; 'released'
    differs from the second on.
    """
    plan, state, burst, order = first_round(model, known)
    given = jnp.take_along_axis(text(), jnp.asarray(order), axis=1)[:, :known]
    for pairing in ('intended', 'released'):
        plan, *_ = first_round(model, known, pairing)
        drawn, log_p, places, *_ = bursts._proposals(plan, model, burst, jax.random.key(1))
        np.testing.assert_array_equal(places, order[:, known:])
        expected = []
        for place in range(known, T):
            ask = np.concatenate([order[:, :known], order[:, place : place + 1]], axis=1)
            logits = np.asarray(read(model, given, pj.Tokens.of(positions=pairs_of(ask))))[:, -1]
            expected.append(
                jnp.take_along_axis(
                    jax.nn.log_softmax(logits), drawn[:, place - known, None], axis=1
                )[:, 0]
            )
        gap = np.abs(np.asarray(log_p) - np.stack(expected, 1)).max(axis=0)
        assert gap[0] < 2e-5
        assert gap[1:].max() < 2e-5 if pairing == 'intended' else gap[1:].min() > 1e-3


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
    _, fresh = jax.jit(prefill)(
        model, init_cache(model, pj.Tokens.of(positions=pairs_of(places))), tokens[:, : taken - 1]
    )
    for ours, theirs in zip(after.layers, fresh.layers):
        np.testing.assert_allclose(
            ours.k[:, :, : taken - 1], theirs.k[:, :, : taken - 1], atol=2e-5
        )
        np.testing.assert_allclose(
            ours.v[:, :, : taken - 1], theirs.v[:, :, : taken - 1], atol=2e-5
        )


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
        accepted = [
            uniform[row, place] < float(ratio[k, row, at]) for at, place in enumerate(tried[k, row])
        ]
        accepted[0] = True
        lengths[k, row] = accepted.index(False) if False in accepted else window
    assert int(after.taken) == known + lengths.max(axis=0).min()
    missing = np.asarray(burst.places[:, known:T])
    for row in range(2):
        winner = tried[lengths[:, row].argmax(), row]
        np.testing.assert_array_equal(after.places[row, known:T], missing[row, winner])


@pytest.mark.full
def test_one_missing_place_is_an_ordinary_step(model):
    """One pass; over many rows the distribution of the token is that of the model."""
    order, rows = np.tile(orders(1), (4000, 1)), 4000
    tokens = jnp.tile(text(1), (rows, 1))
    out = burst_sample(model, tokens, order, known=T - 1, key=jax.random.key(0))
    assert out.evaluations == 2  # the given tokens, and the step
    shuffled = jnp.take_along_axis(tokens[:1], jnp.asarray(order[:1]), axis=1)
    p = np.asarray(
        jax.nn.softmax(model(shuffled[:, :-1], pj.Tokens.of(positions=pairs_of(order[:1])))[0, -1])
    )
    counts = np.bincount(np.asarray(out.tokens)[np.arange(rows), order[:, -1]], minlength=V)
    assert (((counts - rows * p) ** 2) / (rows * p)).sum() < (V - 1) + 5 * (2 * (V - 1)) ** 0.5


def indifferent(model):
    """A model whose output does not depend on what it reads: every proposal agrees with every
    order.
    """
    model = nnx.clone(model)
    model.output[...] = jnp.zeros_like(model.output[...])
    return model


def test_independent_tokens_come_in_one_burst(model):
    """The claim behind bursts: where tokens do not depend on each other, one round writes
    them all.
    """
    out = burst_sample(indifferent(model), text(), orders(), known=1, key=jax.random.key(1))
    assert out.evaluations == 2
    out = burst_sample(indifferent(model), text(), orders(), known=2, key=jax.random.key(1))
    assert (
        out.evaluations == 3
        and sample_in_order(model, text(), orders(), known=2, temperature=0.0).evaluations == T - 2
    )


@pytest.mark.full_but_one
@pytest.mark.parametrize('pairing', ['intended', 'released'])
def test_bursts_end_and_keep_what_was_given(model, pairing):
    order, known = orders(3), 2
    call = lambda: burst_sample(
        model, text(3), order, known=known, key=jax.random.key(3), pairing=pairing
    )
    out = call()
    assert_given(out, text(3), order, known)
    assert 3 <= out.evaluations <= 1 + 2 * (T - known)
    np.testing.assert_array_equal(out.tokens, call().tokens)


def test_bursts_need_a_key(model):
    with pytest.raises(ValueError, match='draws at random and needs a key'):
        burst_sample(model, text(), orders(), known=2, key=None)


def test_wrong_calls(model):
    key = dict(key=jax.random.key(0))
    repeated = orders()
    repeated[1, 0] = repeated[1, 1]
    for call, message in (
        (
            lambda: sample_in_order(model, text(), orders(), known=0, temperature=0.0),
            'an integer in 1 .. 8, got 0',
        ),
        (
            lambda: sample_in_order(model, text(), orders(), known=T, temperature=0.0),
            'an integer in 1 .. 8, got 9',
        ),
        (
            lambda: sample_in_order(model, text(), orders(), known=2.5, temperature=0.0),
            'an integer in 1 .. 8, got 2.5',
        ),
        (
            lambda: sample_in_order(model, text() + V, orders(), known=2, temperature=0.0),
            r'ids in 0 .. \d+, got \d+',
        ),
        (
            lambda: burst_sample(model, text() - V, orders(), known=2, **key),
            r'ids in 0 .. \d+, got -\d+ .. -\d+',
        ),
        (
            lambda: sample_in_order(model, text(), repeated, known=2, temperature=0.0),
            'permutation of 0 .. 8; row 1 is',
        ),
        (
            lambda: sample_in_order(model, text(), orders()[:, :4], known=2, temperature=0.0),
            r'shape \(2, 4\), expected 2 rows',
        ),
        (lambda: sample_in_order(model, text(), orders(), known=2), 'at random and needs a key'),
        (
            lambda: sample_in_order(model, text(), orders(), known=0, start=0, temperature=0.0),
            'no row in a learned table',
        ),
        (
            lambda: burst_sample(model, text(), orders(), known=2, temperature=0.0, **key),
            'temperature must be positive, got 0.0',
        ),
        (
            lambda: burst_sample(model, text(), orders(), known=2, orders=0, **key),
            'orders must be at least 1, .*got 0',
        ),
        (
            lambda: burst_sample(model, text(), orders(), known=2, orders=1.5, **key),
            'orders must be at least 1, .*got 1.5',
        ),
        (
            lambda: burst_sample(model, text(), orders(), known=2, pairing='intend', **key),
            "did you mean 'intended'",
        ),
        (
            lambda: burst_sample(model_of('nope()'), text(), orders(), known=2, **key),
            'the encoding sigma_gpt alone',
        ),
        (
            lambda: burst_sample(
                model_of('sigma_gpt(max_len=9) | rope()'), text(), orders(), known=2, **key
            ),
            'sigma_gpt alone',
        ),
        (
            lambda: burst_sample(
                model_of('sigma_gpt(max_len=6)', train_len=5), text(), orders(), known=2, **key
            ),
            'do not fit the 6',
        ),
        (
            lambda: sample_in_order(model, text() * 1.0, orders(), known=2, temperature=0.0),
            'must be integers',
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    'encoding', ['sigma_gpt(max_len=60)', 'sigma_gpt(max_len=60, table="sinusoid")']
)
@pytest.mark.parametrize('options', ['curriculum=100', 'in_evaluation=True'])
@pytest.mark.full
def test_it_trains_and_evaluates_from_a_config(encoding, options):
    """Everything that `validate` checks, on shapes: two positions a token in training, one or two
    in evaluation.
    """
    from configs import default
    from posenc_jax.lab.runs.run import validate

    config = default.get_config()
    config.task, config.encoding = f'any_order(reverse(), {options})', encoding
    config.model.update(layers=1, width=16, heads=2)
    config.train.update(length=5, batch=8)
    config.eval.lengths = (5, 20)
    assert validate(config).name
    if 'sinusoid' not in encoding:
        config.unlock()
        config.eval.lengths = (40,)
        with pytest.raises(ValueError, match='sigma_gpt: '):
            validate(config)


def test_text_within_any_order_is_that_of_the_config():
    from configs import default
    from posenc_jax.lab.runs.sizes import make_task

    config = default.get_config()
    config.task, config.data.dataset = 'any_order(language())', 'stdlib_code'
    assert (
        make_task(config).task.corpus
        == task('language("stdlib_code")').corpus
        != task('language()').corpus
    )


@pytest.mark.full
def test_a_small_model_learns_to_write_in_any_order():
    """The paper's claim, small: trained in random orders, the answer is right whatever order it is
    written in.

    Strings of one symbol repeated: any token tells all the others.
    """
    import optax

    rows, length = 32, 6
    model = model_of('sigma_gpt(max_len=6)', layers=1, train_len=length - 1)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key):
        symbol, shuffle = jax.random.split(key)
        tokens = jnp.broadcast_to(jax.random.randint(symbol, (rows, 1), 0, V), (rows, length))
        order = jnp.argsort(jax.random.uniform(shuffle, (rows, length)), axis=1)
        pairs = jnp.stack([order[:, :-1], order[:, 1:]], axis=-1)

        def loss(params):
            logits = nnx.merge(graphdef, params, rest)(
                tokens[:, :-1], pj.Tokens.of(positions=pairs)
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for number in range(100):
        params, state = step(params, state, jax.random.key(number))
    trained = nnx.merge(graphdef, params, rest)
    order = np.stack([np.random.default_rng(row).permutation(length) for row in range(V)])
    tokens = jnp.broadcast_to(jnp.arange(V)[:, None], (V, length))
    out = sample_in_order(trained, tokens, order, known=1, temperature=0.0)
    np.testing.assert_array_equal(out.tokens, tokens)
    burst = burst_sample(trained, tokens, order, known=1, key=jax.random.key(0), temperature=0.2)
    np.testing.assert_array_equal(burst.tokens, tokens)
    assert burst.evaluations < out.evaluations  # one burst, against a step for every token
