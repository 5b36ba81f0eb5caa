"""The frequencies of Llama 3.1: which planes are kept, blended and divided."""

import numpy as np

from posenc_jax.methods.llama3_rope import llama3_rope_frequencies
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden

GOLDEN = golden('llama3_rope')['values']


def test_golden_ratios():
    ratio = rope_frequencies(128, 5e5) / llama3_rope_frequencies(128, 5e5, 8.0, 8192)
    np.testing.assert_allclose(ratio[GOLDEN['planes']], GOLDEN['ratio'], atol=6e-4)
    np.testing.assert_allclose(ratio[: GOLDEN['kept_to'] + 1], 1.0, atol=1e-12)
    np.testing.assert_allclose(ratio[GOLDEN['divided_from'] :], 8.0)


def test_bounds_that_meet_are_a_step():
    ratio = rope_frequencies(64, 1e4) / llama3_rope_frequencies(
        64, 1e4, 4.0, 512, low_freq_factor=2.0, high_freq_factor=2.0 + 1e-9
    )
    turns = 512 * rope_frequencies(64, 1e4) / (2 * np.pi)
    np.testing.assert_allclose(ratio, np.where(turns > 2, 1.0, 4.0))
