"""xPos-ABF: xPos with another base and the same damping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from tests.golden_files import golden

GOLDEN = golden('xpos_abf')['values']


def test_golden_damping_is_that_of_xpos():
    part = pj.make('xpos_abf()', head_dim=64)
    np.testing.assert_allclose(part.zeta[GOLDEN['planes']], GOLDEN['zeta'], atol=6e-8)
    assert part.rotary.base == 500000.0


@pytest.mark.full
def test_is_xpos_with_that_base():
    q, k = (jax.random.normal(jax.random.key(i), (1, 2, 9, 16)) for i in range(2))
    tok = pj.Tokens.of(positions=7 * jnp.arange(9)[None])

    def logits(spec):
        part = pj.make(spec, head_dim=16)
        q2, k2, *_ = part.project(q.swapaxes(1, 2), k.swapaxes(1, 2), k, tok, tok)
        return pair_logits(part, q2.swapaxes(1, 2), k2.swapaxes(1, 2), tok, tok)[0]

    np.testing.assert_array_equal(logits('xpos_abf()'), logits('xpos(base=500000.0)'))
    assert np.abs(logits('xpos_abf()') - logits('xpos()')).max() > 0.1
