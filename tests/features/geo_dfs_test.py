"""The double Fourier sphere: values by hand, and the products of all pairs."""

import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.features.coordinates import make_features
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('geo_dfs')['values']
PLACES = jnp.array(GOLDEN['places'])
SCALES = 'scales={scales}, rmin={rmin}, rmax={rmax}'.format(**GOLDEN)


def test_golden_features():
    found = make_features(f'geo_dfs({SCALES})').encode(PLACES)
    np.testing.assert_allclose(found, GOLDEN['features'], atol=1e-6)


def test_products_are_those_of_the_waves():
    """Every product, from the waves in front of them; their squares sum to the number of pairs."""
    code = np.asarray(make_features(f'geo_dfs({SCALES})').encode(PLACES), np.float64)
    phi, lam, products = code[:, :6].reshape(2, 3, 2), code[:, 6:12].reshape(2, 3, 2), code[:, 12:]
    by_hand = np.einsum('bni,bmj->bnmij', phi[..., ::-1], lam[..., ::-1])
    np.testing.assert_allclose(products.reshape(2, 3, 3, 2, 2), by_hand, atol=1e-6)
    np.testing.assert_allclose((products**2).sum(-1), 9, atol=1e-5)


def test_too_many_pairs_are_refused():
    with pytest.raises(SpecError, match='scales=512 give 1050624 features; at most 1048576'):
        make_features('geo_dfs(scales=512)')
