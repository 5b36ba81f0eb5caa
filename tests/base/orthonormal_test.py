"""Orthonormal rows against LAPACK, and that no model waits for LAPACK."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax
from posenc_jax.base.orthonormal import orthonormal_rows

PACKAGE = pathlib.Path(posenc_jax.__file__).parent


def by_lapack(a):
    q, r = jnp.linalg.qr(jnp.swapaxes(a, -1, -2))
    sign = jnp.where(jnp.diagonal(r, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return jnp.swapaxes(q * sign[..., None, :], -1, -2)


@pytest.mark.parametrize('shape', [(3, 4), (2, 5, 5), (2, 3, 1, 7), (16, 32)])
def test_the_rows_are_those_of_lapack(shape):
    a = jax.random.normal(jax.random.key(0), shape)
    rows = orthonormal_rows(a)
    np.testing.assert_allclose(rows, by_lapack(a), atol=2e-5)
    identity = np.broadcast_to(np.eye(shape[-2]), (*shape[:-1], shape[-2]))
    np.testing.assert_allclose(rows @ jnp.swapaxes(rows, -1, -2), identity, atol=1e-6)
    np.testing.assert_allclose(orthonormal_rows(rows), rows, atol=1e-6)


def test_nearly_dependent_rows_are_still_orthonormal():
    """Without the second pass the product of two of these rows would be nearly 1."""
    a = 1.0 + 1e-4 * jax.random.normal(jax.random.key(1), (6, 12))
    rows = orthonormal_rows(a)
    np.testing.assert_allclose(rows @ rows.T, np.eye(6), atol=1e-6)


def test_the_gradient_is_that_of_lapack():
    a, weights = jax.random.normal(jax.random.key(2), (2, 2, 3, 5))
    of = lambda rows: jax.grad(lambda a: (rows(a) * weights).sum())(a)
    np.testing.assert_allclose(of(orthonormal_rows), of(by_lapack), atol=1e-4)


def test_bfloat16_is_computed_in_float32():
    a = jax.random.normal(jax.random.key(3), (3, 4), jnp.bfloat16)
    assert orthonormal_rows(a).dtype == jnp.float32


def test_no_model_factorises_by_lapack():
    """Two devices of one CPU that do it at once may wait for each other for ever."""
    waits = re.compile(r'jnp\.linalg\.(qr|eigh?|svd|cholesky|inv|solve)\b|jax\.random\.orthogonal')
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob('*.py')
        if any(waits.search(line.split('`')[0]) for line in path.read_text().splitlines())
    }
    assert found <= {
        'features/coordinates/basis_grid.py'
    }  # the stable rank, one matrix in an analysis
