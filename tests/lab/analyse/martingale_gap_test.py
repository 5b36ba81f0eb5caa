"""Martingale gap: the rule of Laplace, a predictor of recent flips, the fit, and models that read
a set or an order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.lab.analyse.martingale_gap import (
    ANALYSIS,
    fit_gap,
    gap_of,
    gaps,
    laplace,
    martingale_gap,
    predictor,
)
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import check_report
from tests.small_models import small_model


def model_of(encoding='nope()', layers=1, **fields):
    sizes = dict(vocab_size=5, train_len=16, layers=layers, width=16, heads=2)
    return small_model(encoding=encoding, **{**sizes, **fields})


def recency(flips):
    """The rule of Laplace with weights .9^(n - t), t = 1 .. n, of the flips."""
    weight = 0.9 ** np.arange(flips.shape[-1])[::-1]
    return (flips @ weight + 1) / (weight.sum() + 2)


def test_the_rule_of_laplace_is_a_martingale_and_knows_no_order():
    found = gaps(laplace, (1, 5, 40), sequences=50, orders=5, seed=0)
    assert found.gap.max() < 2e-16 and found.spread.max() < 1e-16 and found.risk.max() < 1e-15


def spreads(n):
    """The deviations of `recency` over the orders of k ones among n flips, k = 0 .. n."""
    k, weight = np.arange(n + 1), 0.9 ** np.arange(n)
    return np.sqrt(k * (n - k) / (n - 1) * weight.var()) / (weight.sum() + 2)


def gap_of_fair_coins(n):
    fair = np.random.default_rng(0).integers(2, size=(20000, n))
    return gap_of(recency, fair)[0].mean()


test_golden = golden_suite(
    'martingale_gap',
    {
        'gap': (lambda around: gap_of_fair_coins(around['n']), {'rtol': 0.1}),
        'spread': (lambda around: spreads(around['n'])[around['n'] // 2], {'rtol': 0.15}),
    },
)


def test_a_predictor_of_recent_flips():
    assert recency(np.array([[0, 1]])).round(4).tolist() == [0.5128]
    found = gaps(recency, (20,), sequences=2000, orders=20, seed=0)
    assert found.spread[0] == pytest.approx(spreads(20).mean(), rel=0.06)  # k is uniform
    assert found.risk[0] > 1e-4 and np.isnan(found.fit).all()
    gap, p = gap_of(recency, np.array([[0, 1, 1]]))
    w = np.array([0.81, 0.9, 1.0])
    first = (w[1:].sum() + 1) / (w.sum() + 2)
    total = 0.9 * w.sum() + 1
    one, zero = ((0.9 * w[1:].sum() + bit + 1) / (total + 2) for bit in (1, 0))
    assert p[0] == pytest.approx(first)
    assert gap[0] == pytest.approx(abs(first * one + (1 - first) * zero - first))


def test_the_fit():
    n = np.array([2, 4, 8, 16, 32])
    np.testing.assert_allclose(fit_gap(n, 3 * np.log(n) / n - 1 / n + 0.2), [3, -1, 0.2])


def test_a_set_has_no_spread_and_predictions_are_those_of_whole_passes(tmp_path):
    model = model_of()
    found = martingale_gap(model, (3, 1), separator=2, counts=(2, 8), sequences=6, orders=4)
    assert found.spread.max() < 1e-6 and found.gap.min() > 1e-7
    flips = np.array([[0, 1, 1], [1, 0, 0]])
    own = jax.jit(lambda m, ids: m(ids))(model, np.array([3, 1])[flips])[:, -1, jnp.array([3, 1])]
    expected = np.asarray(jax.nn.softmax(own))[:, 1]
    np.testing.assert_allclose(predictor(model, (3, 1), 4)(flips), expected, rtol=1e-5)
    check_report(ANALYSIS, {'nope()': found}, tmp_path, rows=2)


@pytest.mark.full
def test_rotation_makes_order_matter():
    found = martingale_gap(model_of('rope()', 2), (0, 1), counts=(4, 8), sequences=6, orders=4)
    assert found.spread.min() > 1e-4
