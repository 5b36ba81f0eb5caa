"""Variance shrinkage: running means of independent vectors, random models with and without a mask,
the sums against NumPy.
"""

import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.analyse.variance_shrinkage import ANALYSIS, log_slope, variance_shrinkage
from tests.golden_files import golden
from tests.lab.analyse.by_hand import check_report
from tests.random_models import TOKENS, random_model, random_states

GOLDEN = golden('variance_shrinkage')['values']


def test_running_means_of_independent_vectors():
    m = np.arange(1, 65)
    x = np.random.default_rng(0).normal(size=(64, 4096))
    variance = (x.cumsum(0) / m[:, None]).var(1)
    np.testing.assert_allclose(m * variance, 1, atol=0.06)
    assert log_slope(variance) == pytest.approx(GOLDEN['slope'], abs=0.01)
    np.testing.assert_allclose(log_slope(variance), np.polyfit(np.log(m), np.log(variance), 1)[0])
    np.testing.assert_allclose(log_slope(np.ones((2, 5))), 0, atol=1e-12)


def with_small_logits(model):
    model = nnx.clone(model)
    for block in model.blocks:
        block.attention.w_q[...] = 0.1 * block.attention.w_q[...]
    return model


@pytest.mark.full
def test_only_a_mask_makes_the_variance_fall(tmp_path):
    found = {
        kind: variance_shrinkage(with_small_logits(random_model(kind)), TOKENS, batch=32)
        for kind in ('decoder', 'encoder')
    }
    assert found['decoder'].slopes[0][0] < GOLDEN['causal_below']
    assert found['decoder'].slopes[1][0] > found['decoder'].slopes[0][0]  # the sum dampens it
    assert np.abs(found['encoder'].slopes[0][0]) < GOLDEN['bidirectional_within']
    check_report(ANALYSIS, found, tmp_path, rows=12)


def test_sums_over_batches_are_variances_over_sequences_and_features():
    found = variance_shrinkage(random_model(), TOKENS, batch=32)
    hidden, attention, _ = random_states('decoder')
    np.testing.assert_allclose(found.before, attention.var((1, 3), dtype=float), rtol=1e-5)
    after = (hidden[:-1].astype(float) + attention).var((1, 3))
    np.testing.assert_allclose(found.after, after, rtol=1e-4)
