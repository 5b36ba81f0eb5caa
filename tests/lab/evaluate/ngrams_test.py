"""Tables of n-grams against the formula written with dictionaries."""

import collections
import math

import numpy as np
import pytest

from posenc_jax.lab.evaluate import ngrams
from posenc_jax.lab.evaluate.ngrams import KneserNey

VOCAB = 6


def by_dictionaries(train, order):
    """The estimate P(token | tokens before it) by its definition."""
    grams = {
        n: collections.Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1))
        for n in range(1, order + 1)
    }
    counts = {
        n: collections.Counter(gram[1:] for gram in grams[n + 1]) if n < order else grams[n]
        for n in grams
    }

    def estimate(before, token, n):
        if n == 0:
            return 1 / VOCAB
        before = tuple(before)[len(before) - n + 1 :]
        behind = {gram: count for gram, count in counts[n].items() if gram[:-1] == before}
        lower = estimate(before[1:], token, n - 1)
        if not behind:
            return lower
        once, twice = (sum(c == k for c in counts[n].values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        own = max(behind.get((*before, token), 0) - discount, 0)
        return (own + discount * len(behind) * lower) / sum(behind.values())

    return estimate


@pytest.mark.parametrize(('order', 'counted'), [(1, 0), (2, 2**24), (4, 0), (4, 2**24)])
def test_estimates_are_those_of_the_formula_and_sum_to_one(order, counted, monkeypatch):
    monkeypatch.setattr(ngrams, '_COUNTED', counted)
    rng = np.random.default_rng(0)
    train = rng.integers(0, 5, 300) ** 2 // 4  # token 5 and many contexts are new in the test
    test = rng.integers(0, VOCAB, 60)
    table = KneserNey(train, VOCAB, longest=4)
    at = np.arange(len(test))
    estimate = by_dictionaries(train.tolist(), order)
    expected = [
        -math.log(estimate(test[:i].tolist(), int(test[i]), min(order, i + 1)))
        if i >= order - 1
        else None
        for i in at
    ]
    found = table.nll(test, at, order)
    np.testing.assert_allclose(found[order - 1 :], expected[order - 1 :], rtol=1e-12)
    ends = [np.append(test[:20], token) for token in range(VOCAB)]
    likelihood = [np.exp(-table.nll(end, np.array([20]), order))[0] for end in ends]
    assert sum(likelihood) == pytest.approx(1)


def test_what_was_read_is_expected():
    text = np.arange(1000) % VOCAB
    table = KneserNey(text, VOCAB, longest=5)
    at = np.arange(10, 90)
    assert table.nll(text, at, 5).mean() < 0.05
    assert table.nll(text[::-1].copy(), at, 5).mean() > math.log(VOCAB)
