"""Giraffe: the sheet's powers and truncations, and their combination."""

import numpy as np
import pytest

from posenc_jax.methods.giraffe import giraffe_frequencies
from posenc_jax.methods.pi import pi_frequencies
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden, golden_suite

GOLDEN = golden('giraffe')['values']


test_golden = golden_suite('giraffe', rtol=2e-6) | {
    'power': lambda: giraffe_frequencies(16, 1e4, power=0.5)
}


@pytest.mark.parametrize('length', GOLDEN['truncated'])
def test_golden_truncation(length):
    kept, slow, still, constant = GOLDEN['truncated'][length]
    inv_freq = giraffe_frequencies(128, 1e4, truncate=int(length))
    theta = rope_frequencies(128, 1e4)
    np.testing.assert_array_equal(inv_freq[:kept], theta[:kept])
    np.testing.assert_allclose(inv_freq[kept : kept + slow], constant, rtol=1e-6)
    assert (inv_freq[kept + slow :] == 0).all() and kept + slow + still == 64


def test_linear_is_position_interpolation():
    np.testing.assert_allclose(
        giraffe_frequencies(16, 1e4, factor=4.0), pi_frequencies(16, 1e4, 4.0)
    )


def test_golden_combination():
    case = GOLDEN['combined']
    inv_freq = giraffe_frequencies(
        128, 1e4, factor=case['factor'], power=case['power'], truncate=case['truncate']
    )
    kept, slow, still = case['kept'], case['slow'], case['still']
    np.testing.assert_allclose(inv_freq[case['planes']], case['frequency'], rtol=1e-8)
    np.testing.assert_allclose(inv_freq[kept : kept + slow], case['constant'], rtol=1e-8)
    assert (inv_freq[:kept] > case['constant']).all()
    assert (inv_freq[kept + slow :] == 0).all()
    assert kept + slow + still == 64


@pytest.mark.full
@pytest.mark.parametrize(
    'factor, power', [(1.0, 0.0), (2.0, 0.0), (1.0, 0.5), (2.0, 0.5), (16.0, 0.1)]
)
@pytest.mark.parametrize('trained', [64, 2048])
def test_thresholds_look_at_the_result_of_the_other_two(factor, power, trained):
    rule = dict(factor=factor, power=power)
    x, cut = giraffe_frequencies(128, 1e4, **rule), 2 * np.pi / trained
    expected = [f if f >= cut else cut / 16 if f >= cut / 8 else 0.0 for f in x]
    found = giraffe_frequencies(128, 1e4, **rule, truncate=trained)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
