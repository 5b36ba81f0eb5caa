"""Pos2Distill: divergences, weights of slots, where gradients flow, how evidence is moved, and a
flatter curve.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from posenc_jax.lab.conversion.fit import fit
from posenc_jax.lab.conversion.pos2distill import (
    answer_divergence,
    distill,
    joint_weights,
    moved_evidence,
    pos2distill_loss,
    slot_shares,
    slot_weights,
)
from posenc_jax.lab.tasks.retrieval import KVSlots
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
from tests.refusals import check_refused
from tests.small_models import small_model

GOLDEN = golden('pos2distill')['values']
SLOTS, DIVERGENCE = jnp.array(GOLDEN['slots']), jnp.array(GOLDEN['divergence'])
TASK = KVSlots(keys=4, values=4, words=1)
SIZES = dict(train_len=11, layers=1, width=8, heads=2, encoding='rope()')


def logits(seed, rows=5, words=2):
    return jax.random.normal(jax.random.key(seed), (rows, words, 7))


def examples(seed, number, pairs=4, trivial=2):
    rng = np.random.default_rng(seed)
    return moved_evidence(rng, *TASK.documents(rng, number, pairs), trivial=trivial)


# The loss.


def test_golden_divergence_and_weights():
    kl = answer_divergence(jnp.zeros((1, 1, 2)), jnp.log(jnp.array([[[0.25, 0.75]]])))
    assert float(kl[0]) == pytest.approx(GOLDEN['kl'], abs=1e-6)
    np.testing.assert_allclose(slot_shares(DIVERGENCE, SLOTS, 6), GOLDEN['shares'], atol=1e-6)
    np.testing.assert_allclose(slot_weights(DIVERGENCE, SLOTS, 6), GOLDEN['weights'], atol=1e-6)


@pytest.mark.full
def test_shares_sum_to_the_slots_present_and_a_lone_row_has_that_of_its_slot():
    random = np.random.default_rng(0)
    divergence, slots = (
        jnp.asarray(random.exponential(size=30), jnp.float32),
        jnp.asarray(random.integers(0, 20, 30)),
    )
    shares = slot_shares(divergence, slots, 20)
    present = set(slots.tolist()) - {0}
    assert float(shares.sum()) == pytest.approx(len(present), rel=1e-6)
    assert set(np.flatnonzero(shares).tolist()) == present
    weights = slot_weights(divergence, slots, 20)
    for slot in present:
        own = np.flatnonzero(slots == slot)
        assert float(weights[own].max()) == pytest.approx(float(shares[slot]) / len(own), rel=1e-6)
        if len(own) == 1:
            assert float(weights[own[0]]) == pytest.approx(float(shares[slot]), rel=1e-6)
    np.testing.assert_array_equal(weights[slots == 0], 1.0)


def test_rows_that_do_not_count_are_as_if_they_were_not_there():
    kept = jnp.array([True, True, False, True, True])
    without = np.asarray(kept)
    part = slot_weights(DIVERGENCE[without], SLOTS[without], 6)
    np.testing.assert_allclose(slot_weights(DIVERGENCE, SLOTS, 6, kept)[without], part, atol=1e-6)
    assert slot_weights(DIVERGENCE, SLOTS, 6, kept)[2] == 0
    assert not slot_weights(DIVERGENCE, SLOTS, 6, jnp.zeros(5, bool)).any()
    joint = jnp.array([1.0, 2.0, 5.0])
    np.testing.assert_allclose(joint_weights(joint), [3 / 8, 6 / 8, 15 / 8], rtol=1e-6)
    np.testing.assert_allclose(
        joint_weights(joint, jnp.array([True, True, False])), [2 / 3, 4 / 3, 0], rtol=1e-6
    )


@pytest.mark.full
def test_agreement_costs_nothing():
    same = logits(0)
    value, gradient = jax.value_and_grad(pos2distill_loss, 1)(same, same, SLOTS, count=6)
    assert abs(float(value)) < 1e-6 and np.abs(gradient).max() < 1e-6


@pytest.mark.full
def test_no_gradient_reaches_teacher_or_weights():
    teacher, student = logits(0), logits(1)
    to_teacher, to_student = jax.grad(pos2distill_loss, (0, 1))(teacher, student, SLOTS, count=6)
    assert not to_teacher.any()
    weights = slot_weights(answer_divergence(teacher, student), SLOTS, 6)
    fixed = jax.grad(lambda s: (weights * answer_divergence(teacher, s)).sum())(student)
    np.testing.assert_allclose(to_student, fixed, atol=1e-7)
    assert (np.abs(fixed).max((1, 2)) > 1e-3).all()
    joint = jax.grad(lambda s: pos2distill_loss(teacher, s, None))(student)
    assert np.isfinite(joint).all() and np.abs(joint - fixed).max() > 1e-3


def test_temperature():
    teacher, student = logits(0), logits(1)
    hot = pos2distill_loss(teacher, student, SLOTS, count=6, temperature=2.0)
    assert float(hot) == pytest.approx(
        4 * float(pos2distill_loss(teacher / 2, student / 2, SLOTS, count=6)), rel=1e-5
    )


# The data.


def test_evidence_is_moved_and_nothing_else_is_lost():
    rng = np.random.default_rng(0)
    documents, question, answer = KVSlots(keys=30, values=9, words=2).documents(rng, 50, 20)
    data = moved_evidence(rng, documents, question, answer)
    assert data['tokens'].shape == (50, 5, 20 * 3 + 2 + 1) and data['teacher'].shape == (50, 63)
    np.testing.assert_array_equal(data['teacher'][:, :60].reshape(50, 20, 3), documents)
    for e in range(50):
        assert (
            data['slots'][e, 0] == 0
            and len(set(data['slots'][e].tolist())) == 5
            and data['slots'][e].max() < 20
        )
        for row, slot in zip(data['tokens'][e], data['slots'][e]):
            moved = row[:60].reshape(20, 3)
            np.testing.assert_array_equal(moved[slot], documents[e, 0])
            np.testing.assert_array_equal(np.sort(moved[:, 0]), np.sort(documents[e, :, 0]))
            np.testing.assert_array_equal(row[60:], data['teacher'][e, 60:])
    anchors = data['tokens'][:, 0, :60].reshape(50, 20, 3)
    assert (anchors[:, 1:] != documents[:, 1:]).any((1, 2)).all()  # shuffled
    counts = np.bincount(data['slots'][:, 1:].ravel(), minlength=20)
    assert counts[0] == 0 and (counts[1:] > 0).all()


# Training.


def one_token_documents(seed, number, *, marked):
    """Four documents of one token, of which the first is the answer; `marked`, only that one is
    among 0 .. 3.
    """
    rng = np.random.default_rng(seed)
    documents = rng.integers(4 * marked, 8, (number, 4, 1))
    documents[:, 0] = rng.integers(0, 4 if marked else 8, (number, 1))
    return moved_evidence(rng, documents, np.full((number, 1), 8), documents[:, 0], trivial=3)


stacked = lambda parts: jax.tree.map(lambda *a: np.stack(a), *parts)


@pytest.mark.parametrize('rule', ['r1', 'r2'])
@pytest.mark.full
def test_it_flattens_the_curve_of_a_model_that_reads_the_first_slot(rule):
    """Trained to say what stands first, whatever it is; distilled where the evidence can be told:
    the other slots gain.
    """
    model = fitted()
    batches = stacked([one_token_documents(1000 + s, 16, marked=True) for s in range(100)])
    student, losses = distill(model, batches, rule=rule, optimizer=optax.adam(3e-3))
    test = one_token_documents(5000, 200, marked=True)
    read = jax.jit(lambda m, ids: m(ids, last=1))
    right = lambda m, column: float(
        (read(m, jnp.asarray(column)).argmax(-1) == test['answer']).mean()
    )
    other = lambda m: np.mean([right(m, test['tokens'][:, copy]) for copy in (1, 2, 3)])
    assert right(model, test['teacher']) > 0.95 and other(model) < 0.3
    assert other(student) > 0.9 and right(student, test['teacher']) > 0.95
    assert losses.shape == (100,) and losses[-10:].mean() < 0.5 * losses[:10].mean()


@functools.cache
def fitted():
    """A model trained on prompts with the evidence in slot 0."""
    sizes = dict(vocab_size=9, train_len=5, layers=1, width=16, heads=2)
    model = small_model(**sizes, encoding='learned_absolute(max_len=5)')
    batches = stacked([one_token_documents(s, 32, marked=False) for s in range(100)])

    def loss(model, _, batch):
        said = model(batch['teacher'], last=1)
        return optax.softmax_cross_entropy_with_integer_labels(said, batch['answer']).mean(), None

    return fit(model, model, loss, jax.tree.map(jnp.asarray, batches), optax.adam(1e-2))[0]


@pytest.mark.full
def test_a_teacher_that_is_wrong_teaches_nothing():
    model = small_model(**SIZES, vocab_size=TASK.vocab_size)
    batches = jax.tree.map(lambda a: np.stack([a, a]), examples(0, 8))
    batches['answer'] = np.full_like(batches['answer'], TASK.ask)  # a token it does not say
    for rule in ('r1', 'r2'):
        with pytest.raises(
            ValueError,
            match='answers none of 16 examples right, so that there is nothing to learn from it',
        ):
            distill(model, batches, rule=rule)
    batches['answer'][1] = model(jnp.asarray(batches['teacher'][1]), last=1).argmax(-1)
    for rule in ('r1', 'r2'):
        losses = distill(model, batches, rule=rule)[1].tolist()
        assert losses[0] == 0.0 and losses[1] > 0.0


@pytest.mark.full
def test_the_rate_is_that_of_the_paper():
    model = small_model(**SIZES, vocab_size=TASK.vocab_size)
    batches = jax.tree.map(lambda a: np.stack([a, a]), examples(0, 8))
    batches['answer'] = np.stack(
        [model(jnp.asarray(one), last=1).argmax(-1) for one in batches['teacher']]
    )
    ours, paper = (distill(model, batches, optimizer=own)[0] for own in (None, optax.adamw(3e-6)))
    for a, b in zip(
        jax.tree.leaves(nnx.state(ours)), jax.tree.leaves(nnx.state(paper)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


# Wrong input.


@pytest.mark.full
def test_what_cannot_be_is_refused():
    model = small_model(**SIZES, vocab_size=11)
    batches = jax.tree.map(lambda a: a[None], examples(0, 3))
    wrong = lambda **changed: distill(model, {**batches, **changed})
    loss = lambda slots, **o: pos2distill_loss(logits(0), logits(1), slots, **o)
    calls = {
        'trivial lies in 1 .. 3, got 4; nearest: 3': lambda: examples(0, 3, trivial=4),
        'got 0; nearest: 1': lambda: examples(0, 3, trivial=0),
        r'\(5, 2, 7\) and \(5, 3, 7\)': lambda: pos2distill_loss(
            logits(0), logits(0, words=3), SLOTS, count=6
        ),
        r'each of 5 rows, got \(3,\)': lambda: loss(SLOTS[:3], count=6),
        'slots lie in 0 .. 4, got 0 .. 5': lambda: loss(SLOTS, count=5),
        'temperature must be positive, got 0': lambda: loss(SLOTS, count=6, temperature=0),
        r'each of 5 rows .* got \(3,\)': lambda: loss(SLOTS, count=6, kept=SLOTS[:3] > 0),
        r'got \(2, 3, 1\), \(1, 2\), \(2, 1\)': lambda: moved_evidence(
            np.random.default_rng(0),
            np.zeros((2, 3, 1), int),
            np.zeros((1, 2), int),
            np.zeros((2, 1), int),
        ),
        r'got \(1, 3, 3, 10\), \(1, 2, 10\)': lambda: wrong(teacher=batches['teacher'][:, :2]),
        'slots are at least 0, .* got -1': lambda: wrong(slots=batches['slots'] - 1),
        '0 in the first prompt of each .* got 1': lambda: wrong(slots=batches['slots'] + 1),
        'a prompt of 10 tokens has at most 10 slots, got slot': lambda: wrong(
            slots=batches['slots'] * 99
        ),
        'slots are integers, got float': lambda: wrong(slots=batches['slots'] / 2),
        'batches lack teacher, slots, answer': lambda: distill(
            model, {'tokens': batches['tokens']}
        ),
        r'answer holds token ids 0 .. 10 .* got 1': lambda: wrong(answer=batches['answer'] + 11),
        r'tokens holds token ids 0 .. 10 .* got -99': lambda: wrong(tokens=batches['tokens'] - 99),
        'answer holds token ids .* of float32': lambda: wrong(answer=batches['answer'] / 2),
        r'an answer .* got \(1, 2, 1\)': lambda: wrong(answer=batches['answer'][:, :2]),
    }
    check_refused(calls)
    with pytest.raises(SpecError, match="'r3'; did you mean"):
        distill(model, batches, rule='r3')
