"""Planes of features: reads by hand, what sums and products can say, and planes of time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.triplane import triplane_features
from posenc_jax.lab.model.parameters import decays
from tests.golden_files import golden_suite


def read(combine):
    return lambda case: triplane_features(
        jnp.array(case['point']), jnp.array(case['planes'], jnp.float32)[..., None], combine
    )[0]


test_golden = golden_suite('triplane', {'sum': read('sum'), 'product': read('product')}, rtol=1e-6)


def by_loop(x, planes, combine):
    """One point, a plane and a corner at a time, in float64."""
    n, reads = planes.shape[1], []
    for plane, (a, b) in zip(planes, itertools.combinations(range(len(x)), 2), strict=True):
        found = 0.0
        for i, j in np.ndindex(n, n):
            near = [max(0.0, 1 - abs(float(x[c]) * (n - 1) - k)) for c, k in ((a, i), (b, j))]
            found = found + near[0] * near[1] * plane[i, j]
        reads.append(found)
    return np.sum(reads, 0) if combine == 'sum' else np.prod(reads, 0)


@pytest.mark.parametrize('components, combine', [(3, 'sum'), (3, 'product'), (4, 'sum')])
def test_features_are_those_of_a_loop(components, combine):
    encoder = make_features(f"triplane({components}, (3, 5), 2, '{combine}')")
    x = np.random.default_rng(0).random((6, components)).astype(np.float32)
    x[0], x[1] = 0, 1
    planes = [np.asarray(p[...], np.float64) for p in encoder.planes]
    expected = [np.concatenate([by_loop(p, own, combine) for own in planes]) for p in x]
    np.testing.assert_allclose(jax.jit(encoder.encode)(x), expected, atol=1e-6)


def test_a_sum_is_a_sum_of_functions_of_two_coordinates():
    """Its mixed third difference over x, y and z is 0, and that of a product is not."""
    corners = np.array(list(itertools.product((0.2, 0.9), repeat=3)), np.float32)
    signs = np.prod(np.where(corners > 0.5, 1, -1), -1)
    for combine in ('sum', 'product'):
        encoder = make_features(f"triplane(sizes=(6,), features=3, combine='{combine}')")
        mixed = signs @ np.asarray(encoder.encode(corners), np.float64)
        assert np.abs(mixed).max() < 1e-6 if combine == 'sum' else np.abs(mixed).min() > 1e-5


def test_constant_planes_give_constant_features():
    x = np.random.default_rng(0).random((7, 3)).astype(np.float32)
    for combine, expected in (('sum', 6.0), ('product', 8.0)):
        encoder = make_features(f"triplane(sizes=(4,), features=2, combine='{combine}')")
        encoder.planes[0][...] = jnp.full_like(encoder.planes[0][...], 2.0)
        np.testing.assert_allclose(encoder.encode(x), expected, rtol=1e-6)


@pytest.mark.parametrize('combine', ['sum', 'product'])
def test_planes_do_not_decay(combine):
    encoder = make_features(f"triplane(sizes=(4, 5), combine='{combine}')")
    rules = nnx.traversals.flatten_mapping(decays(encoder))
    assert len(rules) == 2 and not any(rules.values())


def test_planes_of_time_begin_with_ones():
    """So the features of a product do not depend on the time at first."""
    spec = "triplane(components=4, sizes=(5,), features=2, combine='product', time=True)"
    encoder = make_features(spec)
    planes = np.asarray(encoder.planes[0][...])
    with_time = [3 in pair for pair in itertools.combinations(range(4), 2)]
    np.testing.assert_array_equal((planes == 1).all((1, 2, 3)), with_time)
    still = planes[~np.array(with_time)]
    assert 0.1 <= still.min() < 0.12 and 0.48 < still.max() <= 0.5
    x = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    later = x.copy()
    later[:, 3] = 0.9
    np.testing.assert_allclose(encoder.encode(later), encoder.encode(x), rtol=1e-5)


def test_points_outside_are_refused_and_traced_ones_are_not_numbers():
    encoder = make_features('triplane(sizes=(4,), features=2)')
    points = jnp.array([[0.1, 0.2, 0.3], [0.1, -0.2, 0.3]])
    with pytest.raises(ValueError, match=r'Triplane encodes coordinates of its box 0 .. 1, got -0'):
        encoder.encode(points)
    found = jax.jit(encoder.encode)(points)
    np.testing.assert_array_equal(np.isnan(found).all(-1), [False, True])
