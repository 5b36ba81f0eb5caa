"""The frequencies of Llama 3.1: which planes are kept, blended and divided."""

import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.llama3_rope import llama3_frequencies
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('llama3_rope')['values']


def test_golden_ratios():
    ratio = rope_frequencies(128, 5e5) / llama3_frequencies(128, 5e5, 8.0, 8192)
    np.testing.assert_allclose(ratio[GOLDEN['planes']], GOLDEN['ratio'], atol=6e-4)
    np.testing.assert_allclose(ratio[: GOLDEN['kept_to'] + 1], 1.0, atol=1e-12)
    np.testing.assert_allclose(ratio[GOLDEN['divided_from'] :], 8.0)


def test_bounds_that_meet_are_a_step():
    ratio = rope_frequencies(64, 1e4) / llama3_frequencies(
        64, 1e4, 4.0, 512, low_freq_factor=2.0, high_freq_factor=2.0 + 1e-9
    )
    turns = 512 * rope_frequencies(64, 1e4) / (2 * np.pi)
    np.testing.assert_allclose(ratio, np.where(turns > 2, 1.0, 4.0))


def test_factor_one_is_rope():
    np.testing.assert_allclose(llama3_frequencies(64, 1e4, 1.0, 512), rope_frequencies(64, 1e4))


@pytest.mark.parametrize(
    'spec, message',
    [
        ('llama3_rope(factor=0.5)', 'at least 1, got 0.5'),
        ('llama3_rope(train_len=0)', 'needs train_len'),
        ('llama3_rope(low_freq_factor=4.0)', 'low_freq_factor=4.0, high_freq_factor=4.0'),
    ],
)
def test_errors(spec, message):
    with pytest.raises(SpecError, match=message):
        pj.make(f'rope(freqs={spec})', head_dim=8, train_len=64)
