"""Nearby similarity: the score of known maps, by triples one at a time, and of random models with
and without a mask.
"""

import functools

import numpy as np
import pytest

from posenc_jax.lab.analyse.nearby_similarity import (
    ANALYSIS,
    adjacency_score,
    by_distance,
    mean_cosines,
    nearby_similarity,
)
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import check_report
from tests.random_models import TOKENS, random_model, random_states

found = functools.cache(lambda: nearby_similarity(random_model(), TOKENS, batch=32))
test_golden = golden_suite('nearby_similarity', {'causal': lambda: found().scores}, atol=0.06)
test_golden_of_a_model_that_sees_all_tokens = pytest.mark.full(
    golden_suite(
        'nearby_similarity',
        {
            'bidirectional': lambda: [
                adjacency_score(mean_cosines(h)) for h in random_states('encoder')[0]
            ]
        },
        atol=0.03,
    )
)


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


def test_maps_are_mean_cosines(tmp_path):
    maps = found().maps
    hidden = random_states('decoder')[0][4].astype(float)
    cosine = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))
    expected = np.mean([cosine(h[5], h[9]) for h in hidden])
    assert maps[4, 5, 9] == pytest.approx(expected, abs=1e-5)
    assert by_distance(maps)[4, 63] == pytest.approx(maps[4, 63, 0])
    check_report(ANALYSIS, {'nope()': found()}, tmp_path, rows=7)
