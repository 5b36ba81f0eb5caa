"""Sweeps of small tasks: their data are what they say."""

import jax.numpy as jnp
import numpy as np
import pytest

from evidence.experiments import (
    attention_patterns,
    images_apart,
    receptive,
    rna,
    shared_codes,
    streams,
    tulip_limit,
)
from tests.small_models import small_model

SIZES = dict(vocab_size=7, train_len=16, layers=2, width=16, heads=2)


def test_motifs_lie_in_the_sequences_and_a_question_is_a_masked_base_of_one():
    bases, inside = rna.sequences(np.random.default_rng(0), 40, 64)
    assert 0.6 < inside.mean() < 0.95
    known = set(map(tuple, rna.MOTIFS))
    for row, place in zip(bases, inside):
        start = place.argmax()
        assert tuple(row[start : start + rna.MOTIFS.shape[1]]) in known
    batch = rna.batch(np.random.default_rng(0), 40, 64)
    assert (batch['tokens'][batch['masked']] == rna.MASK).all()
    assert batch['asked'].sum() and not (batch['asked'] & ~batch['masked']).any()


def test_answers_are_the_patches_that_questions_name():
    batch = images_apart.batch(np.random.default_rng(0), 3)
    asked = batch['tokens'][:, images_apart.PATCHES :] - images_apart.KINDS
    for row, questions, answers in zip(batch['tokens'], asked, batch['answers']):
        assert (row[questions] == answers).all()


def test_pictures_are_squares_of_photographs_and_have_as_many_numbers():
    drawn = shared_codes.squares(0)
    assert drawn.shape == (shared_codes.PICTURES, shared_codes.SIDE**2)
    assert drawn.min() < -0.5 and drawn.max() > 0.5 and np.abs(drawn).max() <= 1
    assert not np.array_equal(drawn, shared_codes.squares(1))
    sizes = [shared_codes.numbers(name) for name in shared_codes.VARIANTS]
    assert max(sizes) < 1.03 * min(sizes)


def test_words_arrive_behind_their_symbols():
    order = streams.ARRIVAL
    assert len(set(order)) == 2 * streams.SOURCE - 1  # all but the last word
    for word in range(streams.WORDS):
        # the row before the word has seen its symbol, and not the next one
        before = order[: order.index(streams.SOURCE + word) + 1]
        assert word + 1 in before and (word + 2 not in before or word + 2 == streams.SOURCE)
    batch = streams.batch(np.random.default_rng(0), 2)
    source, words = batch['tokens'][0, 1 : streams.SOURCE], batch['words'][0]
    assert words[5] == streams.TABLE[source[5], source[4]]


def test_a_marked_kind_counts_four_times():
    batch = tulip_limit.texts(np.random.default_rng(0), 8, (16, 32))
    for tokens, valid, picture in zip(batch['tokens'], batch['valid'], batch['picture']):
        total, real = 0, tokens[valid]
        for before, token in zip([0, *real], real):
            if token != tulip_limit.MARK:
                total = (
                    total + (4 if before == tulip_limit.MARK else 1) * tulip_limit.PICTURES[token]
                )
        np.testing.assert_allclose(total, picture, atol=1e-9)
    assert tulip_limit.cut(batch)['tokens'].shape == (8, 32)


def test_the_distance_of_attention_is_0_for_the_same_heads_in_any_order():
    drawn = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 3, 4, 5))
    assert attention_patterns.distance(drawn, drawn[:, ::-1]) == pytest.approx(0, abs=1e-12)
    assert attention_patterns.distance(drawn, np.roll(drawn, 1, axis=-1)) > 0.01


@pytest.mark.full
def test_the_fields_of_a_steep_bias_are_those_of_the_model():
    model = small_model(**SIZES, encoding='alibi(slopes=(4.0, 0.125))')
    theory, found = receptive.both_fields(model, np.arange(48).reshape(3, 16) % 7)
    assert theory.shape == found.shape == (2, 2)
    assert theory[:, 0].tolist() == [1, 1] and (found[:, 0] < 2).all()
    assert (theory[:, 1] > 8).all() and (found[:, 1] > 5).all()


@pytest.mark.full
def test_attention_is_that_of_the_model():
    model = small_model(**SIZES, encoding='alibi()')
    found = attention_patterns.patterns(model, jnp.arange(12).reshape(2, 6) % 5)
    assert found.shape == (2, 2, 2, 6, 6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    assert not np.triu(found, 1).any()
