"""Full attention: nothing is hidden, and a decoder adds no causal mask."""

import jax.numpy as jnp
import numpy as np

import posenc_jax as pj
from tests.golden_files import golden

GOLDEN = golden('full')


def test_equal_logits_average_all_values():
    values = jnp.asarray(GOLDEN['values'])[None, :, None, None]
    tok, zero = pj.Tokens.of(length=values.shape[1]), jnp.zeros_like(values)
    out = pj.attend(pj.make('full()', causal=True), zero, zero, values, tok, tok)
    np.testing.assert_allclose(out.ravel(), GOLDEN['average'], rtol=1e-6)


def test_it_decides_causality_and_leaves_documents_apart():
    tok = pj.Tokens.of(segment=[[0, 0, 1]])
    assert pj.make('full()').mask(tok, tok) is None
    assert pj.make('full()', causal=True).mask(tok, tok)[0, 0].astype(int).tolist() == [
        [1, 1, 0],
        [1, 1, 0],
        [0, 0, 1],
    ]
