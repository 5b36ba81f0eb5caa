"""Nearby similarity: the score of known maps, by triples one at a time, and of random models with
and without a mask.
"""

import numpy as np
import pytest

from posenc_jax.lab.analyse.nearby_similarity import (
    ANALYSIS,
    adjacency_score,
    by_distance,
    mean_cosines,
    nearby_similarity,
)
from tests.golden_files import golden
from tests.random_models import TOKENS, random_model, random_states

GOLDEN = golden('nearby_similarity')['values']


def test_scores_of_known_maps():
    place = np.arange(1, 17)
    uniform = np.sqrt(np.minimum.outer(place, place) / np.maximum.outer(place, place))
    assert adjacency_score(uniform) == 1.0
    assert adjacency_score(-uniform) == 0.0
    rows = np.random.default_rng(0).normal(size=(16, 8))
    assert abs(adjacency_score(mean_cosines(rows[None])) - 0.5) < 0.06


def test_the_score_counts_triples():
    s = np.random.default_rng(1).integers(0, 4, size=(7, 7)) / 2
    right = total = 0.0
    for i in range(7):
        for j in range(7):
            for k in range(7):
                if (j - i) * (k - i) > 0 and abs(i - j) < abs(i - k):
                    total += 1
                    right += (s[i, j] > s[i, k]) + 0.5 * (s[i, j] == s[i, k])
    assert adjacency_score(s) == pytest.approx(right / total, abs=1e-12)


def test_the_mask_makes_neighbours_alike(tmp_path):
    found = nearby_similarity(random_model(), TOKENS, batch=32)
    np.testing.assert_allclose(found.scores, GOLDEN['causal'], atol=0.06)
    hidden = random_states('decoder')[0][4].astype(float)
    cosine = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))
    expected = np.mean([cosine(h[5], h[9]) for h in hidden])
    assert found.maps[4, 5, 9] == pytest.approx(expected, abs=1e-5)
    assert by_distance(found.maps)[4, 63] == pytest.approx(found.maps[4, 63, 0])
    report = ANALYSIS.report({'nope()': found})
    assert len(report.rows) == 7 and report.write(tmp_path)[1].stat().st_size > 1000


@pytest.mark.full
def test_a_model_that_sees_all_tokens_orders_nothing():
    scores = [adjacency_score(mean_cosines(h)) for h in random_states('encoder')[0]]
    np.testing.assert_allclose(scores, GOLDEN['bidirectional'], atol=0.03)


def test_wrong_input():
    with pytest.raises(ValueError, match='takes 3 .. 512 tokens, got 2'):
        nearby_similarity(random_model(), TOKENS[:, :2])
    with pytest.raises(ValueError, match='takes 3 .. 512 places, got 513'):
        adjacency_score(np.zeros((513, 513)))
