"""Position probes: guesses in closed form, one-hot positions, ridge regression by another formula,
and random models whose mask tells positions or does not.
"""

import numpy as np
import pytest

from posenc_jax.lab.analyse.probe_position import (
    ANALYSIS,
    guesses,
    mlp_probe,
    probe_position,
    probe_scores,
    ridge_probe,
)
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import check_report
from tests.random_models import TOKENS, random_model, random_states

test_golden = golden_suite(
    'probe_position',
    {
        'median': lambda around: [guesses(length)[0] for length in around['length']],
        'uniform': lambda around: [guesses(length)[1] for length in around['length']],
    },
    rtol=1e-7,
)


def test_a_uniform_guess_misses_the_mean_over_all_pairs_of_positions():
    t = np.arange(64)
    assert np.abs(t[:, None] - t).mean() == guesses(64)[1]


def test_one_hot_positions_are_found_and_constants_say_nothing():
    exact = np.broadcast_to(np.eye(16, dtype=np.float32), (8, 16, 16))
    ridge = lambda a, b: ridge_probe(a, b, penalty=1e-6)
    for probe in (ridge, lambda a, b: mlp_probe(a, b, steps=60)):
        mae, r2, accuracy = probe_scores(probe(exact[2:], exact[:2]))
        assert mae < 1e-3 and r2 > 0.999 and accuracy == 1
    flat = np.full((8, 16, 3), 1e3)
    np.testing.assert_allclose(ridge_probe(flat, flat), 7.5)
    assert probe_scores(np.full((2, 16), 7.5))[:2] == (guesses(16)[0], 0.0)


def test_the_ridge_is_the_solution_of_an_augmented_least_squares_problem():
    rng, penalty = np.random.default_rng(0), 2.5
    train, test = rng.normal(size=(5, 7, 3)) * [1, 5, 0.1], rng.normal(size=(2, 7, 3))
    z = (train.reshape(-1, 3) - train.mean((0, 1))) / train.std((0, 1))
    f = np.hstack([z, z**2])
    t = np.tile(np.arange(7.0), 5)
    rows = np.vstack([f - f.mean(0), penalty**0.5 * np.eye(6)])
    w = np.linalg.lstsq(rows, np.append(t - 3, np.zeros(6)), rcond=None)[0]
    z = (test - train.mean((0, 1))) / train.std((0, 1))
    expected = (np.concatenate([z, z**2], -1) - f.mean(0)) @ w + 3
    np.testing.assert_allclose(ridge_probe(train, test, penalty=penalty), expected, atol=1e-8)


@pytest.mark.full
def test_the_mask_tells_positions_from_the_first_layer_on():
    """And a model that sees all tokens learns nothing: the first figures of the paper."""
    r2 = {
        kind: [probe_scores(ridge_probe(h[8:], h[:8]))[1] for h in random_states(kind)[0]]
        for kind in ('decoder', 'encoder')
    }
    assert max(r2['decoder']) > 0.15 and r2['decoder'][0] < 0.05
    assert np.max(r2['encoder']) < 0.06


def test_the_report_has_a_row_for_every_layer_and_a_picture(tmp_path):
    found = probe_position(random_model('decoder'), TOKENS, batch=32)
    expected = ridge_probe(*(random_states('decoder')[0][3][rows] for rows in np.s_[8:, :8]))
    assert found.mae[3] == pytest.approx(probe_scores(expected)[0], rel=1e-6)
    says = 'a random one 21.33'
    numbers = check_report(ANALYSIS, {'nope()': found}, tmp_path, rows=7, says=says)
    assert len(numbers['nope()']['mae']) == 7
