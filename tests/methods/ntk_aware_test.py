"""NTK-aware scaling: the bases of the sheet, the two ends of the spectrum."""

import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.ntk_aware import ntk_aware_base
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden

GOLDEN = golden('ntk_aware')['values']


@pytest.mark.parametrize(
    'width, factor, base', zip(GOLDEN['width'], GOLDEN['factor'], GOLDEN['base'])
)
def test_golden_bases(width, factor, base):
    assert ntk_aware_base(width, 10000.0, factor) == pytest.approx(base, abs=6e-4)


def test_lowest_frequency_is_divided_by_the_factor_and_highest_kept():
    part = pj.make('rope(freqs=ntk_aware(factor=4.0))', head_dim=64)
    inv_freq, temperature = part.freqs(64, 10000.0)
    theta = rope_frequencies(64, 10000.0)
    assert (
        inv_freq[0] == 1.0 and theta[-1] / inv_freq[-1] == pytest.approx(4.0) and temperature == 1.0
    )
    assert (np.diff(theta / inv_freq) > 0).all()
