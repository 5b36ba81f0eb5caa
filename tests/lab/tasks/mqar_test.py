import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval import MQAR
from posenc_jax.lab.tasks.retrieval.mqar import _distinct, _weighted
from tests.lab.tasks.rows import sampled


@pytest.mark.parametrize('pairs, length', [(4, 64), (8, 128), (16, 256), (64, 512), (3, (12, 40))])
@pytest.mark.parametrize('random_non_queries', [False, True])
def test_every_key_is_asked_once_and_answered_by_its_value(pairs, length, random_non_queries):
    vocab = 256
    task = MQAR(pairs=pairs, vocab=vocab, random_non_queries=random_non_queries)
    batch = task.sample(np.random.default_rng(0), 50, length)
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        keys, values = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert keys.min() >= 1 and keys.max() < vocab // 2 <= values.min()
        at = np.flatnonzero(mask)
        assert len(at) == mask.sum() == pairs
        assert at.min() >= 2 * pairs and (at % 2 == 0).all()
        assert sorted(tokens[at]) == sorted(keys)
        value_of = dict(zip(keys, values))
        assert [value_of[key] for key in tokens[at]] == list(targets[at])
        rest = np.delete(tokens[2 * pairs :], at - 2 * pairs)
        assert ((rest == 0) | (rest >= vocab // 2)).all()
        assert (rest == 0).all() != random_non_queries


def test_gaps_follow_the_power_law():
    # One pair: a single slot drawn with p(g) ~ g^(a - 1), compared in total variation.
    batch = sampled('mqar(pairs=1, vocab=64, power=0.01)', 22, 20000)
    slots = (np.argmax(batch['loss_mask'], axis=1) - 2) // 2
    law = np.arange(1, 11) ** (0.01 - 1)
    assert abs(np.bincount(slots, minlength=10) / 20000 - law / law.sum()).sum() < 0.03


def test_weighted_draws_are_successive_draws_without_replacement():
    weights = np.array([0.6, 0.3, 0.1])
    draws = _weighted(np.random.default_rng(0), np.broadcast_to(np.log(weights), (40000, 3)), 2)
    for first in range(3):
        for second in set(range(3)) - {first}:
            expected = weights[first] * weights[second] / (1 - weights[first])
            assert abs((draws == [first, second]).all(axis=1).mean() - expected) < 0.01


def test_distinct_draws_are_uniform_ordered_pairs():
    draws = _distinct(np.random.default_rng(0), 4, 2, 24000)
    counts = np.bincount(draws[:, 0] * 4 + draws[:, 1], minlength=16).reshape(4, 4) / 24000
    np.testing.assert_allclose(counts, (1 - np.eye(4)) / 12, atol=0.01)


def test_range_of_lengths_keeps_to_each_length():
    tokens = sampled('mqar(pairs=2, vocab=32, random_non_queries=True)', (8, 20), 400)['tokens']
    written = tokens.shape[1] - np.argmax(tokens[:, ::-1] > 0, axis=1)
    assert set(written) == set(range(8, 21, 2))
