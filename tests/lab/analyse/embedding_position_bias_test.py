"""Position bias of embeddings: a mean of token vectors has none, one that fades has, and a model
against texts that are read alone.
"""

import jax
import numpy as np
import pytest

from posenc_jax.lab.analyse.embedding_position_bias import (
    ANALYSIS,
    PLACES,
    bias_of,
    embedder,
    embedding_position_bias,
    inserted_at,
    removed_at,
    slopes,
)
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import check_report
from tests.small_models import kept_model

TABLE = np.random.default_rng(1).normal(size=(200, 64))
DOCUMENTS = np.random.default_rng(0).integers(200, size=(40, 64))
SIZES = dict(vocab_size=200, train_len=32, layers=1, width=8, heads=2, encoding='nope()')

test_golden = golden_suite(
    'embedding_position_bias',
    {'slope': lambda around: slopes(np.array([around['similarity']]))[0]},
    atol=1e-12,
)


def fading(rate):
    """The mean of token vectors with weights exp(-rate t / T)."""

    def embed(texts):
        weight = lambda n: np.exp(-rate * np.arange(n) / n)
        return np.stack([weight(len(t)) @ TABLE[t] / weight(len(t)).sum() for t in texts])

    return embed


def test_slopes_are_those_of_least_squares():
    own = np.random.default_rng(0).normal(size=(1, 9))
    assert slopes(own)[0] == pytest.approx(np.polyfit(np.linspace(0, 1, 9), own[0], 1)[0])
    assert slopes(np.full((1, 3), 0.5))[0] == pytest.approx(0, abs=1e-12)


def test_a_mean_of_token_vectors_has_no_bias():
    found = bias_of(fading(0.0), DOCUMENTS, segments=8, seed=0)
    assert abs(found.slope) < 0.03 and abs(found.shuffled) < 0.03
    assert np.ptp(found.inserted, axis=1).max() < 1e-9  # the mean does not know the place
    assert (np.diff(found.inserted[:, 0]) < 0).all() and np.ptp(found.needle) < 0.05


def test_one_that_fades_resembles_the_beginning(tmp_path):
    found = bias_of(fading(3.0), DOCUMENTS, segments=8, seed=0)
    assert found.slope < -0.3 and found.shuffled < -0.3
    assert found.needle[0] > found.needle[-1] + 0.2
    assert (found.inserted[:, 0] < found.inserted[:, 2] - 0.005).all()
    assert (found.removed[:, 0] < found.removed[:, 2]).all()
    check_report(ANALYSIS, {'fading': found}, tmp_path, rows=7)


def test_changed_texts():
    text, other = np.arange(6), np.array([8, 9])
    inserted, removed = (
        [change(text, what, place).tolist() for place in PLACES]
        for change, what in ((inserted_at, other), (removed_at, 2))
    )
    assert inserted == [[8, 9, *range(6)], [0, 1, 2, 8, 9, 3, 4, 5], [*range(6), 8, 9]]
    assert removed == [[2, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 3]]


def test_texts_in_a_batch_are_read_as_if_alone():
    model, texts = kept_model(**SIZES), [DOCUMENTS[0, :7], DOCUMENTS[1, :5], DOCUMENTS[2, :8]]
    for pool, of in (('mean', lambda h: h.mean(1)), ('last', lambda h: h[:, -1])):
        found = embedder(model, pool, batch=2)(texts)
        alone = np.asarray(jax.jit(lambda m, ids: m.hidden(ids))(model, texts[1][None]))
        np.testing.assert_allclose(found[1:2], of(alone), atol=1e-5)


@pytest.mark.full
def test_the_last_vector_of_a_causal_model_resembles_the_end():
    documents = DOCUMENTS[:16].astype(np.int32)
    options = dict(pool='last', segments=4, batch=32)
    found = embedding_position_bias(kept_model(**SIZES), documents, **options)
    assert found.slope > 0 and found.similarity.argmax() == 3
