"""xPos-ABF: xPos with another base and the same damping."""

import numpy as np

import posenc_jax as pj
from tests.golden_files import golden

GOLDEN = golden('xpos_abf')['values']


def test_golden_damping_is_that_of_xpos():
    part = pj.make('xpos_abf()', head_dim=64)
    np.testing.assert_allclose(part.zeta[GOLDEN['planes']], GOLDEN['zeta'], atol=6e-8)
    assert part.rotary.base == 500000.0
