"""Integrated positional encoding: means over Gaussians by quadrature and by sampling, sections of
cones by quadrature, and the contraction of space.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.features.coordinates import gaussians as module
from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.integrated_pe import (
    icosahedron_directions,
    integrated_pe_features,
)
from tests.golden_files import golden_suite


def features(case):
    return integrated_pe_features(jnp.array([case['mean']]), jnp.array([case['variance']]), 0, 2)


def moments(section):
    return lambda case: jnp.stack(
        module.section_moments(jnp.array(1.0), jnp.array(2.0), case['radius'], section)
    )


test_golden = golden_suite('integrated_pe', atol=1e-6) | {
    'features': (features, {'atol': 6e-6}),
    'cone': (moments('cone'), {'rtol': 1e-6, 'atol': 1e-6}),
    'cylinder': (moments('cylinder'), {'atol': 1e-6}),
    'contracted.*.image': lambda case: module.contracted_points(jnp.array(case['point'])),
    'directions': lambda: len(icosahedron_directions()),
}


def test_features_are_means_over_a_gaussian():
    """Gauss-Hermite quadrature of sines and cosines, a degree and a coordinate at a time."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    mean, variance = np.array([0.3, -0.7]), np.array([0.02, 0.005])
    waves = [
        [(weights * wave(2.0**i * (m + nodes * v**0.5))).sum()]
        for wave in (np.sin, np.cos)
        for i in range(1, 5)
        for m, v in zip(mean, variance)
    ]
    found = integrated_pe_features(jnp.array(mean), jnp.array(variance), 1, 5)
    np.testing.assert_allclose(found, np.ravel(waves), atol=1e-6)


def test_all_degrees_are_exact_without_a_variance():
    x = np.array([[0.3, -0.71], [1.7, 123.4]], np.float32)
    found = jax.jit(make_features('integrated_pe(end=20)').encode)(x)
    angle = np.float64(x)[:, None] * 2.0 ** np.arange(20)[:, None]
    expected = np.concatenate([np.sin(angle), np.cos(angle)], 1).reshape(2, -1)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_wide_gaussians_have_slow_waves_alone_and_the_width_may_be_set_again():
    encoder = make_features('integrated_pe(components=1, end=10, variance=1.0)')
    x = jnp.array([[0.4]])
    wide = encoder.encode(x)
    assert np.abs(wide[0, :1]).max() > 0.1 and np.abs(wide.reshape(2, 10)[:, 4:]).max() < 1e-6
    encoder.variance[...] = jnp.zeros(())
    np.testing.assert_allclose(
        encoder.encode(x), make_features('integrated_pe(components=1, end=10)').encode(x)
    )


def test_directions_are_spread_evenly_over_space():
    """A spherical design: their mean projection is that of the identity. Two of the 15 edges and 6
    corners are at least 31.7 degrees apart.
    """
    v = icosahedron_directions()
    np.testing.assert_allclose((v**2).sum(-1), 1)
    np.testing.assert_allclose(v.T @ v, 7 * np.eye(3), atol=1e-12)
    apart = np.abs(v @ v.T)[~np.eye(21, dtype=bool)]
    np.testing.assert_allclose(np.degrees(np.arccos(apart.max())), 31.717, atol=1e-3)


def test_projections_of_a_covariance_by_sampling():
    encoder = make_features("integrated_pe(components=3, end=3, basis='icosahedron')")
    rng, mean = np.random.default_rng(0), np.array([0.2, -0.1, 0.4])
    root = rng.normal(size=(3, 3)) * 0.3
    samples = mean + rng.normal(size=(40_000, 3)) @ root.T
    angle = (samples @ np.asarray(encoder.directions[...]).T)[:, None] * 2.0 ** np.arange(3)[
        :, None
    ]
    expected = np.stack([np.sin(angle).mean(0), np.cos(angle).mean(0)])
    found = encoder.encode_gaussians(jnp.array(mean, jnp.float32), jnp.array(root @ root.T))
    np.testing.assert_allclose(found, expected.ravel(), atol=0.02)
    axes = make_features('integrated_pe(components=3, end=3)')
    diagonal = np.diag(np.diag(root @ root.T))
    mean = jnp.array(mean, jnp.float32)
    np.testing.assert_allclose(  # the other entries are not read
        axes.encode_gaussians(mean, jnp.array(root @ root.T)),
        axes.encode_gaussians(mean, jnp.array(diagonal)),
    )


def test_moments_of_a_section_by_quadrature():
    """A slice at t is a disc of radius rho t, of area t^2 up to a factor and of variance
    (rho t)^2 / 4 along each of its axes.
    """
    begin, end, radius = 0.5, 3.0, 0.2
    nodes, weights = np.polynomial.legendre.leggauss(20)
    t = (begin + end) / 2 + (end - begin) / 2 * nodes
    share = weights * t**2 / (weights * t**2).sum()
    mean = (share * t).sum()
    expected = mean, (share * (t - mean) ** 2).sum(), (share * (radius * t) ** 2 / 4).sum()
    found = module.section_moments(jnp.array(begin), jnp.array(end), radius)
    np.testing.assert_allclose(jnp.stack(found), expected, rtol=1e-5)
    o, d = jnp.array([0.1, 0.2, 0.3]), jnp.array([0.0, 2.0, 0.0])
    centre, covariance = module.section_gaussian(o, d, jnp.array(begin), jnp.array(end), radius)
    np.testing.assert_allclose(centre, [0.1, 0.2 + 2 * mean, 0.3], rtol=1e-5)
    along, across = expected[1:]
    np.testing.assert_allclose(covariance, np.diag([across, 4 * along, across]), atol=1e-6)


def test_the_contraction_of_space():
    """Its inverse, its Jacobian by JAX, and both sides of the unit sphere."""
    x = jnp.array([[0.2, -0.3, 0.1], [0.9, 0.8, -1.0], [30.0, -40.0, 5.0]])
    z = module.contracted_points(x)
    np.testing.assert_allclose(module.expanded_points(z), x, rtol=1e-4)
    assert (np.linalg.norm(z, axis=-1) < 2).all()
    assert np.isnan(module.expanded_points(jnp.array([2.5, 0.0, 0.0]))).all()
    root = np.random.default_rng(0).normal(size=(3, 3))
    covariance = jnp.array(root @ root.T)
    mapped = jax.jit(module.contracted_gaussian)
    own = jax.jit(jax.vmap(jax.jacobian(module.contracted_points)))(x)
    expected = np.einsum('nij,jk,nlk->nil', *(np.float64(a) for a in (own, covariance, own)))
    np.testing.assert_allclose(mapped(x, covariance)[1], expected, rtol=1e-4, atol=1e-6)
    sides = jnp.array([[0.6, 0.8, 0.0]]) * jnp.array([[1 - 1e-4], [1 + 1e-4]])
    inside, outside = mapped(sides, covariance)[1]
    np.testing.assert_allclose(inside, covariance, rtol=1e-5)
    np.testing.assert_allclose(outside, inside, rtol=3e-3, atol=3e-3)


def test_contracted_features_are_those_of_the_contracted_gaussian():
    spec = "integrated_pe(components=3, end=2, basis='{}', contracted={}, variance=0.3)"
    x = jnp.array([[2.0, 1.0, -2.0]])
    mean, covariance = module.contracted_gaussian(x, 0.3 * jnp.eye(3))
    for basis in ('axes', 'icosahedron'):
        plain, contracted = (make_features(spec.format(basis, c)) for c in (False, True))
        expected = plain.encode_gaussians(mean, covariance)
        np.testing.assert_allclose(contracted.encode(x), expected, atol=1e-6)


def test_wrong_covariances_are_refused():
    encoder = make_features('integrated_pe(end=2)')
    with pytest.raises(ValueError, match=r'takes covariances \[..., 2, 2\], got \(2,\)'):
        encoder.encode_gaussians(jnp.zeros(2), jnp.zeros(2))
