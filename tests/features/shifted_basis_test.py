"""Shifted basis embedders: stable ranks, the blend between grid points, the closed form on a grid,
and Kronecker products.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.coordinates import basis_grid as module
from posenc_jax.features.coordinates.encoder import make_features
from posenc_jax.features.coordinates.shifted_basis import (
    SHIFTED,
    WAVES,
    basis_frequencies,
    basis_waves,
    directions,
    shifted_basis,
)
from tests.golden_files import golden

GOLDEN = golden('shifted_basis')['values']
N, D = GOLDEN['points'], GOLDEN['features']
EQUISPACED = jnp.arange(N) / N


def features(basis, scale, **options):
    if basis in WAVES:
        return basis_waves(EQUISPACED[:, None], basis_frequencies(basis, D // 2, scale)[:, None])
    return shifted_basis(EQUISPACED, basis, D, scale, **options)


@pytest.mark.parametrize('basis', GOLDEN['stable_rank'])
def test_golden_stable_ranks(basis):
    case = GOLDEN['stable_rank'][basis]
    options = {'signed': True} if basis == 'square' else {}
    found = module.stable_rank(features(basis, case['scale'], **options))
    np.testing.assert_allclose(found, case['rank'], atol=6e-4)


@pytest.mark.parametrize('circular', [False, True])
def test_golden_stable_ranks_of_gaussians(circular):
    case = GOLDEN['circular' if circular else 'gaussian']
    found = [module.stable_rank(features('gaussian', s, circular=circular)) for s in case['scale']]
    np.testing.assert_allclose(found, case['rank'], atol=6e-4)
    if circular:
        closed = 1 / (2 * np.pi**0.5 * np.array(case['scale']))
        np.testing.assert_allclose(found, closed, rtol=1e-4)


def test_golden_blend():
    case = GOLDEN['blend']
    kernel, points = module.basis_kernel('gaussian', case['scale']), round(1 / case['spacing']) + 1
    at = lambda cell, **options: module.blend_weights(
        jnp.array((3 + cell) * case['spacing']), points, kernel, **options
    )
    g, a, b = at(0.5, normalized=False)
    assert int(g) == 3
    np.testing.assert_allclose([a, b], case['midpoint'], atol=2e-6)
    np.testing.assert_allclose(at(0.5)[1:], 0.5, atol=1e-6)
    np.testing.assert_allclose(at(0.25)[1], case['quarter'], atol=4e-6)
    left, right = at(0.3), at(0.7)
    np.testing.assert_allclose(left[1:], right[:0:-1], atol=1e-5)  # a mirror image
    np.testing.assert_allclose(left[1] + left[2], 1, atol=1e-6)


@pytest.mark.parametrize('basis', ['gaussian', 'triangle', 'rff'])
def test_a_blend_at_a_grid_point_is_that_point(basis):
    kernel = module.basis_kernel(basis, 0.1)
    g, a, b = module.blend_weights(jnp.array([0.0, 0.25, 0.5]), 9, kernel, normalized=False)
    assert g.tolist() == [0, 2, 4]
    np.testing.assert_allclose([a, b], [[1, 1, 1], [0, 0, 0]], atol=1e-6)
    assert module.blend_weights(jnp.array([-1.0, 2.0]), 9, kernel)[0].tolist() == [0, 7]


def test_the_gaussian_kernel_is_the_inner_product_of_its_features():
    """Where no bump is cut off by the ends; the step of the anchors scales the sum."""
    code = lambda x: shifted_basis(x, 'gaussian', 256, 0.05)
    a, b = jnp.array([0.5, 0.5, 0.5]), jnp.array([0.5, 0.55, 0.6])
    found = module.feature_kernel(code)(a, b) / module.feature_kernel(code)(a, a)
    np.testing.assert_allclose(found, module.basis_kernel('gaussian', 0.05)(a, b), rtol=1e-4)


def test_the_gaussian_matches_random_waves_of_its_scale():
    s, scale = 0.1, 1 / (2 * 2**0.5 * np.pi * 0.1)
    x, zero = jnp.linspace(0, 1, 50), jnp.zeros(50)
    waves = module.basis_kernel('rff', scale)(x, zero)
    np.testing.assert_allclose(waves, module.basis_kernel('gaussian', s)(x, zero), atol=1e-6)
    encoder = make_features(f"shifted_basis('rff', features=8192, scale={float(scale)})")
    psi = np.asarray(encoder.encode(x[:, None]))
    np.testing.assert_allclose(psi @ psi[0], waves, atol=5 * 0.7 / 4096**0.5)


@pytest.mark.full
@pytest.mark.parametrize('basis', ['gaussian', 'rff', 'triangle'])
def test_the_closed_form_reproduces_a_grid(basis):
    scale = {'gaussian': 0.05, 'rff': 6.0, 'triangle': 0.1}[basis]
    encoder = make_features(f'shifted_basis({basis!r}, form="complex", features=40, scale={scale})')
    x, y = np.arange(12) / 12, np.arange(9) / 9
    points = lambda a, b: jnp.stack(jnp.meshgrid(jnp.asarray(a), jnp.asarray(b), indexing='ij'), -1)
    psi_x = encoder.factors(points(x, [0.0]))[0][:, 0]
    psi_y = encoder.factors(points([0.0], y))[1][0]
    assert np.linalg.matrix_rank(np.asarray(psi_x, np.float64)) == 12
    values = np.random.default_rng(0).normal(size=(12, 9))
    w = module.separable_fit(np.asarray(psi_x), np.asarray(psi_y), values)
    psi_x, psi_y = (np.asarray(a, np.float64) for a in (psi_x, psi_y))
    np.testing.assert_allclose(psi_x @ w @ psi_y.T, values, atol=1e-8)
    # Of all W that reproduce the grid, this one has the smallest norm.
    kron = np.einsum('nd,me->nmde', psi_x, psi_y).reshape(12 * 9, -1)
    np.testing.assert_allclose(
        w.ravel(), np.linalg.pinv(kron, rcond=1e-13) @ values.ravel(), rtol=1e-3, atol=1e-4
    )


def test_a_linear_layer_of_products_without_the_products():
    encoder = make_features("shifted_basis('gaussian', form='complex', features=6, scale=0.2)")
    coords = jax.random.uniform(jax.random.key(0), (5, 2))
    w = jax.random.normal(jax.random.key(1), (6, 6, 3))
    direct = encoder.encode(coords) @ w.reshape(36, 3)
    np.testing.assert_allclose(module.kron_linear(*encoder.factors(coords), w), direct, atol=1e-5)


def test_four_corners_blend_a_product():
    grid = shifted_basis(jnp.arange(11) / 10, 'gaussian', 8, 0.1)
    kernel = module.basis_kernel('gaussian', 0.1)
    x, y = jnp.array([0.13]), jnp.array([0.68])
    (g, a, b), (h, c, d) = (module.blend_weights(z, 11, kernel) for z in (x, y))
    corners = sum(
        weight * module.kron_features(grid[i], grid[j])
        for weight, i, j in (
            (a * c, g, h),
            (a * d, g, h + 1),
            (b * c, g + 1, h),
            (b * d, g + 1, h + 1),
        )
    )
    whole = module.kron_features(module.blended(x, grid, kernel), module.blended(y, grid, kernel))
    np.testing.assert_allclose(whole, corners, atol=1e-6)


def test_rank_and_distance_trade_off():
    """The claim of the paper: wider bumps memorise less and generalise farther."""
    narrow, wide = (features('gaussian', s) for s in (0.01, 0.1))
    assert module.stable_rank(narrow) > 3 * module.stable_rank(wide)
    fall = [np.asarray(module.distance_preservation(f)) for f in (narrow, wide)]
    narrow, wide = (f / f[0] for f in fall)
    assert narrow[3] < 0.01 and wide[3] > 0.6 and (np.diff(wide[:16]) < 0).all()


def test_a_picture_is_best_restored_at_a_middle_scale():
    """The trade-off of the paper: narrow bumps do not reach the pixels between those they were
    fitted to, and wide ones cannot hold what they were fitted to.
    """
    x = np.arange(32) / 32
    picture = np.sin(9 * x[:, None]) * np.cos(7 * x) + np.hypot(x[:, None] - 0.4, x - 0.6)

    def errors(scale):
        psi = np.asarray(shifted_basis(jnp.asarray(x), 'gaussian', 64, scale), np.float64)
        w = module.separable_fit(psi[::2], psi[::2], picture[::2, ::2])
        off = psi @ w @ psi.T - picture
        return np.abs(off[::2, ::2]).max(), np.sqrt((off**2).mean())

    (fit, narrow), (exact, middle), (poor, wide) = (errors(s) for s in (0.004, 0.1, 1.0))
    # The fit with wide bumps is nearly singular, and its error depends on the library of the BLAS.
    assert fit < 1e-6 and exact < 1e-6 and poor > 1e-4
    assert middle < narrow / 20 and middle < wide / 5


def test_distance_preservation_of_waves_by_hand():
    found = module.distance_preservation(features('basic', 1.0))
    np.testing.assert_allclose(found, np.cos(2 * np.pi * np.arange(N) / N) * D / 2, atol=1e-3)


def test_values_by_hand():
    x = jnp.array(0.3)
    np.testing.assert_allclose(
        shifted_basis(x, 'gaussian', 4, 0.1), np.exp(-50 * (0.3 - np.arange(4) / 4) ** 2), rtol=1e-5
    )
    assert shifted_basis(x, 'impulse', 4, 0.06).tolist() == [0, 1, 0, 0]
    assert shifted_basis(x, 'square', 4, 1.0).tolist() == [1, 1, 0, 0]
    assert shifted_basis(x, 'square', 4, 1.0, signed=True).tolist() == [1, 1, -1, -1]
    np.testing.assert_allclose(
        shifted_basis(x, 'sin', 4, 2.0), np.sin(4 * np.pi * (0.3 - np.arange(4) / 4)), atol=1e-6
    )
    circle = shifted_basis(jnp.array(0.95), 'triangle', 4, 0.1, circular=True)
    np.testing.assert_allclose(circle, [0.5, 0, 0, 0], atol=1e-5)


@pytest.mark.full_but_one
@pytest.mark.parametrize('form', ['line', 'two', 'four', 'complex'])
@pytest.mark.parametrize('basis', SHIFTED + WAVES)
def test_features_are_at_most_one_long(basis, form):
    features = '' if basis == 'basic' else ', features=64'
    encoder = make_features(f'shifted_basis({basis!r}, form={form!r}{features})', nnx.Rngs(1))
    coords = jax.random.uniform(jax.random.key(0), (50, 3, encoder.components))
    out = encoder.encode(coords)
    assert out.shape == (50, 3, encoder.width) and out.dtype == jnp.float32
    norms = np.linalg.norm(out, axis=-1)
    assert norms.max() < 1.03 and (norms.max() > 0.5 or basis == 'impulse')
    alone = encoder.encode(coords[7, 2])
    np.testing.assert_allclose(alone, out[7, 2], atol=1e-6)  # no other point has a say


def test_the_largest_norm_of_four_directions():
    encoder = make_features("shifted_basis('gaussian', form='four', features=32, scale=0.2)")
    points = jnp.stack(jnp.meshgrid(*[jnp.arange(128) / 128] * 2, indexing='ij'), -1)
    norms = jnp.linalg.norm(encoder.encode(points), axis=-1)
    np.testing.assert_allclose(norms.max(), 1, rtol=1e-5)
    assert directions(jnp.array([0.5, 0.25]), 'two').tolist() == [0.5, 0.25]


def test_random_waves_of_points_turn_with_both_coordinates():
    encoder = make_features("shifted_basis('rff', form='two', features=16, scale=2.0)")
    assert encoder.b.shape == (8, 2)
    psi = lambda *p: encoder.encode(jnp.array(p))
    b = np.asarray(encoder.b[...], np.float64)
    by_hand = lambda *p: np.concatenate([f(2 * np.pi * b @ p) for f in (np.sin, np.cos)]) / 8**0.5
    np.testing.assert_allclose(psi(0.3, 0.8), by_hand(0.3, 0.8), atol=1e-5)
    np.testing.assert_allclose(
        psi(0.3, 0.8) @ psi(0.1, 0.4), psi(0.5, 0.5) @ psi(0.3, 0.1), atol=1e-5
    )


@pytest.mark.parametrize('spec', ["shifted_basis('gaussian')", "shifted_basis('rff')"])
def test_gradients_are_finite_at_the_ends(spec):
    encoder = make_features(spec)
    slope = jax.jacobian(encoder.encode)(jnp.zeros(1))
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0
