"""Permutation symmetry: models that are functions of a set, models that are not, and the cosines
against NumPy.
"""

import jax
import numpy as np
import pytest

from posenc_jax.lab.analyse.nope_deep_lm import orders_of
from posenc_jax.lab.analyse.permutation_symmetry import (
    ANALYSIS,
    permutation_symmetry,
    slice_cosines,
)
from tests.golden_files import golden
from tests.lab.analyse.by_hand import check_report
from tests.small_models import small_model

GOLDEN = golden('permutation_symmetry')['values']
TOKENS = np.random.default_rng(0).integers(11, size=(2, 8)).astype(np.int32)


def model(layers, encoding='nope()', kind='decoder'):
    sizes = dict(vocab_size=11, train_len=8, width=16, heads=2)
    return small_model(**sizes, layers=layers, encoding=encoding, kind=kind)


SETS = [(1, 'nope()', 'decoder'), (2, 'nope()', 'encoder')]
ORDERED = [(2, 'nope()', 'decoder'), (2, 'rope()', 'encoder'), (1, 'sinusoidal()', 'decoder')]


@pytest.mark.parametrize(
    'arguments, is_set',
    [(SETS[0], True), pytest.param(SETS[1], True, marks=pytest.mark.full)]
    + [pytest.param(one, False, marks=pytest.mark.full) for one in ORDERED],
)
def test_which_models_are_functions_of_a_set(arguments, is_set):
    found = permutation_symmetry(model(*arguments), TOKENS, orders=3)
    assert found.delta.shape == (3,)
    if is_set:
        assert found.delta.max() < GOLDEN['symmetric_below']
    else:
        assert found.delta.min() > GOLDEN['broken_above']


def test_residual_sums_keep_a_vector_with_its_place(tmp_path):
    transformer = model(2)
    found = permutation_symmetry(transformer, TOKENS, orders=1)
    assert found.delta[0] > GOLDEN['broken_above']  # the mask of two layers breaks the symmetry
    assert (found.same > 0.5).all() and (found.other < found.same).all()
    call = jax.jit(lambda m, ids: m(ids)[:, -1])
    last, moved = (
        np.asarray(call(transformer, ids)) for ids in (TOKENS, TOKENS[:, orders_of(8, 1, 0)[0]])
    )
    delta = np.abs(last - moved).max() / np.abs(last).max()
    assert found.delta[0] == pytest.approx(delta, rel=1e-3)
    check_report(ANALYSIS, {'nope()': found}, tmp_path, rows=1)


def test_cosines_by_hand():
    below, above = np.array([[[1.0, 0.0], [0.0, 2.0]]]), np.array([[[3.0, 0.0], [1.0, 1.0]]])
    same, other = slice_cosines(below, above)
    assert same == pytest.approx((1 + 0.5**0.5) / 2) and other == pytest.approx(0.5**0.5 / 2)
