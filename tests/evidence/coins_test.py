"""The sweep of coin flips: its data, and its limit of entropy."""

import math

import jax
import numpy as np
import pytest

from evidence.experiments import coins


def test_flips_are_those_of_uniform_coins():
    rows = np.asarray(coins.flips(jax.random.key(0), 4000))
    assert rows.shape == (4000, coins.LENGTH + 1) and set(np.unique(rows)) == {0, 1}
    ones = np.bincount(rows.sum(-1), minlength=coins.LENGTH + 2) / 4000
    assert np.abs(ones - 1 / (coins.LENGTH + 2)).max() < 0.02  # every number of ones is as likely


def test_entropy_of_the_rule_of_laplace():
    assert coins.entropy(0) == pytest.approx(math.log(2))
    two = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert coins.entropy(1) == pytest.approx(two)
    assert coins.entropy(100_000) == pytest.approx(0.5, abs=1e-3)  # of a uniform coin
