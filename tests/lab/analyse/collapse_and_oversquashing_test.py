"""Collapse and over-squashing: closed forms, the product of matrices, sequences of their own
length, and derivatives against finite differences.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.analyse.collapse_and_oversquashing import (
    ANALYSIS,
    Squashed,
    collapse_and_oversquashing,
    path_influence,
    uniform_distance,
)
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import check_report
from tests.small_models import small_model

TOKENS = np.random.default_rng(0).integers(9, size=(2, 6)).astype(np.int32)
SIZES = dict(vocab_size=9, train_len=8, layers=2, width=8, heads=2, encoding='alibi()')
COUNTS = (1, 2, 4, 16, 64)
UNIFORM = np.tril(np.ones((8, 8))) / np.arange(1, 9)[:, None]
model_of = functools.partial(small_model, **SIZES)

test_golden = golden_suite(
    'collapse_and_oversquashing',
    {
        'distance': (lambda around: uniform_distance(np.array(around['n'])), {'rtol': 1e-3}),
        'paths.*': (
            lambda _, layers: path_influence(np.stack([UNIFORM] * int(layers))),
            {'atol': 6e-5},
        ),
    },
)


@pytest.fixture(scope='module')
def found():
    return collapse_and_oversquashing(model_of(), TOKENS, counts=COUNTS, batch=10)


def test_the_slope_of_uniform_attention():
    mean = lambda n: np.append(np.full(n, 3.0), 5.0).mean()
    assert mean(7) - mean(8) == pytest.approx(2 * uniform_distance(7))
    many = 2 ** np.arange(6, 12)
    one = Squashed(many, uniform_distance(many), None, np.ones(1), np.ones(1))
    assert one.slope == pytest.approx(-2, abs=0.02)
    assert np.isnan(one._replace(distance=0.0 * many).slope)


def test_the_last_layer_of_a_path_is_the_leftmost():
    a, b = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 4))
    expected = ((b + np.eye(4)) / 2 @ (a + np.eye(4)) / 2)[-1]
    np.testing.assert_allclose(path_influence(np.stack([a, b])), expected)


def test_distances_are_those_of_sequences_of_their_own_length(found, tmp_path):
    model = model_of()
    hidden = jax.jit(lambda m, ids: m.hidden(ids))
    y = [np.asarray(hidden(model, jnp.array([[0] * n + [1]])), float)[0, -1] for n in (4, 5)]
    assert found.distance[2] == pytest.approx(np.abs(y[0] - y[1]).sum(), rel=1e-3)
    assert found.distance[-1] < found.distance[0]
    assert found.paths.sum() == pytest.approx(1, rel=1e-5)
    assert found.gradients.sum() == pytest.approx(1, rel=1e-5)
    check_report(ANALYSIS, {'alibi()': found}, tmp_path, rows=len(COUNTS), says='slope')


@pytest.mark.full
def test_derivatives_are_finite_differences(found):
    model = model_of()
    tok, step = pj.Tokens.of(length=6), 1e-2

    @jax.jit
    def last(x):
        for layer_type, block in model.layers():
            x = block(x, tok, model.encoding(layer_type, block))
        return model.norm(x)[:, -1]

    shares = 0.0
    for row in TOKENS:
        x = np.asarray(model.embed(row[None], model.place(tok)))
        moves = step * np.eye(48).reshape(48, 6, 8)
        slopes = (np.asarray(last(x + moves), float) - np.asarray(last(x - moves))) / (2 * step)
        norms = np.linalg.norm(slopes.reshape(6, -1), axis=-1)
        shares = shares + norms / norms.sum() / len(TOKENS)
    np.testing.assert_allclose(found.gradients, shares, rtol=0.02)


@pytest.mark.full
def test_random_vectors_estimate_the_derivatives(found):
    near = collapse_and_oversquashing(model_of(), TOKENS, counts=COUNTS, batch=10, probes=400)
    np.testing.assert_allclose(near.gradients, found.gradients, rtol=0.2)


@pytest.mark.full
def test_without_positions_the_last_vectors_become_equal_in_bfloat16():
    """Logits of equal tokens are equal, so that attention is uniform: the slope is -2."""
    model = model_of(encoding='nope()', layers=1)
    found = collapse_and_oversquashing(model, TOKENS[:1], counts=(16, 32, 64, 256, 2000), batch=10)
    assert found.slope == pytest.approx(-2, abs=0.15)
    assert found.equal_in_bf16 in (64, 256, 2000)
