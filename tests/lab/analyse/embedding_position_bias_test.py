"""Position bias of embeddings: a mean of token vectors has none, one that fades has, and a model
against texts that are read alone.
"""

import jax
import numpy as np
import pytest

from posenc_jax.lab.analyse.embedding_position_bias import (
    ANALYSIS,
    bias_of,
    embedder,
    embedding_position_bias,
    inserted_at,
    removed_at,
    slopes,
)
from tests.golden_files import golden
from tests.small_models import small_model

GOLDEN = golden('embedding_position_bias')['values']
TABLE = np.random.default_rng(1).normal(size=(200, 64))
DOCUMENTS = np.random.default_rng(0).integers(200, size=(40, 64))


def fading(rate):
    """The mean of token vectors with weights exp(-rate t / T)."""

    def embed(texts):
        weight = lambda n: np.exp(-rate * np.arange(n) / n)
        return np.stack([weight(len(t)) @ TABLE[t] / weight(len(t)).sum() for t in texts])

    return embed


def test_a_slope_by_hand():
    found = slopes(np.array([GOLDEN['similarity'], [0.5, 0.5, 0.5]]))
    np.testing.assert_allclose(found, [GOLDEN['slope'], 0], atol=1e-12)
    own = np.random.default_rng(0).normal(size=(1, 9))
    assert slopes(own)[0] == pytest.approx(np.polyfit(np.linspace(0, 1, 9), own[0], 1)[0])


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
    report = ANALYSIS.report({'fading': found})
    assert len(report.rows) == 7 and report.write(tmp_path)[1].stat().st_size > 1000


def test_changed_texts():
    text, other = np.arange(6), np.array([8, 9])
    assert inserted_at(text, other, 'beginning').tolist() == [8, 9, 0, 1, 2, 3, 4, 5]
    assert inserted_at(text, other, 'end').tolist() == [0, 1, 2, 3, 4, 5, 8, 9]
    assert [removed_at(text, 2, place).tolist() for place in ('beginning', 'middle', 'end')] == [
        [2, 3, 4, 5],
        [0, 1, 4, 5],
        [0, 1, 2, 3],
    ]
    with pytest.raises(ValueError, match="did you mean 'end'"):
        removed_at(text, 2, 'ende')


def model_of(kind='decoder'):
    sizes = dict(vocab_size=200, train_len=32, layers=1, width=8, heads=2, encoding='nope()')
    return small_model(**sizes, kind=kind)


def test_texts_in_a_batch_are_read_as_if_alone():
    model, texts = model_of(), [DOCUMENTS[0, :7], DOCUMENTS[1, :5], DOCUMENTS[2, :8]]
    for pool, of in (('mean', lambda h: h.mean(1)), ('last', lambda h: h[:, -1])):
        found = embedder(model, pool, batch=2)(texts)
        alone = np.asarray(jax.jit(lambda m, ids: m.hidden(ids))(model, texts[1][None]))
        np.testing.assert_allclose(found[1:2], of(alone), atol=1e-5)


@pytest.mark.full
def test_the_last_vector_of_a_causal_model_resembles_the_end():
    found = embedding_position_bias(
        model_of(), DOCUMENTS[:16].astype(np.int32), pool='last', segments=4, batch=32
    )
    assert found.slope > 0 and found.similarity.argmax() == 3


@pytest.mark.parametrize(
    'documents, options, message',
    [
        (DOCUMENTS[:1], {}, 'two documents .* got 1 of 64 tokens in 8 segments'),
        (DOCUMENTS, dict(segments=1), 'got 40 of 64 tokens in 1 segments'),
        (DOCUMENTS, dict(segments=65), 'in 65 segments'),
        (DOCUMENTS, dict(pool='first'), 'pool'),
        (DOCUMENTS + 200, {}, 'token ids lie in 0 .. 199'),
    ],
)
def test_wrong_input(documents, options, message):
    with pytest.raises(ValueError, match=message):
        embedding_position_bias(model_of(), documents, **options)
