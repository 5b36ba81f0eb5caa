"""ABF: the decay and the longest wavelength of the larger base."""

import numpy as np

import posenc_jax as pj
import posenc_jax.functional as F
from posenc_jax.methods.abf import ABF
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden, golden_suite

GOLDEN = golden('abf')['values']


def decay(base):
    theta, _ = ABF(base)(128, 10000.0)
    return np.cos(np.multiply.outer(GOLDEN['distance'], theta)).mean(-1)


test_golden = golden_suite('abf') | {
    'plain': (lambda: decay(10000.0), {'atol': 6e-5}),
    'adjusted': (lambda: decay(500000.0), {'atol': 6e-5}),
    'longest_wavelength': (
        lambda: [2 * np.pi / ABF(base)(128, 10000.0)[0][-1] for base in (10000.0, 500000.0)],
        {'atol': 0.5},
    ),
}


def test_the_base_of_rope_is_replaced():
    np.testing.assert_array_equal(ABF(1e4)(16, 77.0)[0], rope_frequencies(16, 1e4))
    assert ABF()(16, 1e4)[0][0] == 1.0
    np.testing.assert_array_equal(F.abf_frequencies(16), ABF()(16, 77.0)[0])
    plain = pj.make('rope(base=500000.0)', head_dim=16)
    given = pj.make('rope(freqs=abf())', head_dim=16)
    x, pos = np.ones((1, 3, 1, 16), np.float32), np.arange(3)[None]
    np.testing.assert_array_equal(given.rotate(x, pos), plain.rotate(x, pos))
