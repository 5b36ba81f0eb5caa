"""NTK-RoPE-mixed: the released frequencies, its two limits, and what is refused."""

import numpy as np

from posenc_jax.methods.ntk_rope_mixed import NTKRoPEMixed, ntk_rope_mixed_frequencies
from posenc_jax.methods.pi import pi_frequencies
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden_suite

THETA = rope_frequencies(64, 1e4)
FOUND, TEMPERATURE = NTKRoPEMixed()(64, 1e4)


test_golden = golden_suite('ntk_rope_mixed', rtol=3e-7) | {
    'frequencies': lambda v: FOUND[v['planes']],
    'last': (lambda: THETA[-1] / FOUND[-1], {'rtol': 1e-12}),
    'rate': lambda: np.log(THETA[0] / FOUND[0]),
}


def test_a_loop_over_planes():
    rate = np.log(3.0) / 8**0.5
    expected = [1e4 ** (-2 * t / 16) * np.exp(-rate * (t + 1) ** 0.5) for t in range(8)]
    np.testing.assert_allclose(
        ntk_rope_mixed_frequencies(16, 1e4, 3.0, power=0.5), expected, rtol=1e-13
    )
    assert TEMPERATURE == 1.0


def test_its_limits():
    """A factor of 1 is rope, the power 0 position interpolation, and the power 1 a larger base with
    all frequencies divided by a constant.
    """
    np.testing.assert_array_equal(ntk_rope_mixed_frequencies(64, 1e4, 1.0), THETA)
    np.testing.assert_allclose(
        ntk_rope_mixed_frequencies(64, 1e4, 12.0, power=0.0), pi_frequencies(64, 1e4, 12.0)
    )
    base = rope_frequencies(64, 12.0 * 1e4) * 12.0 ** (-1 / 32)
    np.testing.assert_allclose(ntk_rope_mixed_frequencies(64, 1e4, 12.0, power=1.0), base)
    assert (np.diff(THETA / FOUND) > 0).all()
