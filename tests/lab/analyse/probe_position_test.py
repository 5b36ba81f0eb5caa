"""Position probes: guesses in closed form, one-hot positions, ridge regression by another formula,
and random models whose mask tells positions or does not.
"""

import json

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
from tests.golden_files import golden
from tests.random_models import TOKENS, random_model, random_states

GOLDEN = golden('probe_position')['values']


def test_what_guesses_miss():
    found = [guesses(length) for length in GOLDEN['length']]
    np.testing.assert_allclose(found, np.transpose([GOLDEN['median'], GOLDEN['uniform']]))
    t = np.arange(64)  # the mean over all pairs of two positions
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
    report = ANALYSIS.report({'nope()': found})
    assert len(report.rows) == 7 and 'a random one 21.33' in report.text()
    numbers, picture = report.write(tmp_path)
    assert len(json.loads(numbers.read_text())['nope()']['mae']) == 7
    assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'tokens, options, message',
    [
        (TOKENS[:3], {}, 'four sequences of two tokens .* got 3 of 64 and 1.0'),
        (TOKENS, dict(penalty=0.0), 'positive penalty, got 32 of 64 and 0.0'),
        (TOKENS, dict(probe='ridges'), "did you mean 'ridge'"),
        (np.zeros((2**20, 64), np.int32), {}, 'would take .* more than 4 GiB'),
        (TOKENS, dict(batch=0), 'a batch of at least 1, got 32 and 0'),
    ],
)
def test_wrong_input(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        probe_position(random_model('decoder'), tokens, **options)
