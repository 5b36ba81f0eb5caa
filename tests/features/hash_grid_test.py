"""Grids of Instant-NGP: sizes and hashes in whole numbers, features against a loop over corners,
continuity, the slopes of smoothstep, and points outside the box.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.grid_levels import (
    grid_levels,
    growth_factor,
    spatial_hash,
    vertex_row,
)
from posenc_jax.fields import make_field
from posenc_jax.lab.model.parameters import decays
from tests.golden_files import golden_suite

PRIMES = (1, 2654435761, 805459861, 3674653429)


def row_of(case):
    return spatial_hash(*jnp.array(case['vertex'], jnp.uint32)) % np.uint32(2**14)


def levels(name, **options):
    return lambda: [getattr(level, name) for level in grid_levels(2, 4, 16, 2.0, 2**10)]


test_hash_grid = golden_suite('hash_grid') | {
    'scales': levels('scale'),
    'vertices': levels('vertices'),
    'rows': levels('rows'),
    'hashes.*.hash': lambda case: spatial_hash(*jnp.array(case['vertex'], jnp.uint32)),
    'hashes.*.row': row_of,
    'growth': (lambda: growth_factor(16, 2048, 16), {'atol': 0.005}),
}
COARSE = 'levels=2, coarsest=3'


def row_by_level():
    (level,) = grid_levels(2, 1, 3, 2.0, hashed=False)
    return vertex_row(level, jnp.uint32(2), jnp.uint32(1))


def rows_of(spec):
    return lambda: [len(table) for table in make_features(spec).tables]


test_dense_grid = golden_suite('dense_grid') | {
    'vertices': lambda: [g.vertices for g in make_features(f'dense_grid({COARSE})').levels],
    'dense': rows_of(f'dense_grid({COARSE})'),
    'tiled': rows_of(f'dense_grid({COARSE}, tiled=True)'),
    'row_of_2_1': row_by_level,
}


def test_the_arithmetic_of_the_hash_has_32_bits():
    assert not jax.config.jax_enable_x64
    assert spatial_hash(jnp.array([1], jnp.uint32), jnp.array([1], jnp.uint32)).dtype == jnp.uint32


def features_by_loop(x, tables, coarsest, growth, hashed, smooth):
    """One point, a level and a corner at a time, in float64 and whole numbers."""
    joined = []
    for number, table in enumerate(tables):
        scale = coarsest * growth**number - 1
        n, size = math.ceil(scale) + 1, len(table)
        place = [float(value) * scale + 0.5 for value in x]
        found = 0.0
        for corner in itertools.product((0, 1), repeat=len(x)):
            q = [math.floor(p) + side for p, side in zip(place, corner)]
            share = [p - math.floor(p) for p in place]
            share = [f * f * (3 - 2 * f) if smooth else f for f in share]
            weight = math.prod(f if side else 1 - f for f, side in zip(share, corner))
            row = 0
            for axis, value in enumerate(q):
                if hashed and n ** len(x) > size:
                    row ^= value * PRIMES[axis] % 2**32
                elif n**axis <= size:
                    row += value * n**axis
            found = found + weight * table[row % size]
        joined.append(found)
    return np.concatenate(joined)


@pytest.mark.parametrize(
    'spec, growth, hashed',
    [
        ('hash_grid(levels=4, log2_rows=5, coarsest=3, growth=1.5, init=1.0)', 1.5, True),
        ('hash_grid(3, levels=3, log2_rows=6, coarsest=3, init=1.0)', 2.0, True),
        ("hash_grid(levels=2, log2_rows=4, coarsest=3, blend='smoothstep', init=1.0)", 2.0, True),
        ('dense_grid(3, levels=2, coarsest=3, init=1.0)', 2.0, False),
        ('dense_grid(levels=4, coarsest=3, tiled=True, init=1.0)', 2.0, False),
        ('dense_grid(1, levels=3, coarsest=3, features=3, init=1.0)', 2.0, False),
    ],
)
def test_features_are_those_of_a_loop_over_corners(spec, growth, hashed):
    """At random points and at the ends of the box, where a corner lies beyond the grid."""
    encoder = make_features(spec)
    ends = np.array(list(itertools.product((0.0, 1.0), repeat=encoder.components)))
    x = np.concatenate([np.random.default_rng(0).random((9, encoder.components)), ends])
    x = x.astype(np.float32)
    tables = [np.asarray(table[...], np.float64) for table in encoder.tables]
    expected = [features_by_loop(p, tables, 3, growth, hashed, 'smooth' in spec) for p in x]
    np.testing.assert_allclose(jax.jit(encoder.encode)(x), expected, atol=1e-5)


def test_constant_tables_give_constant_features():
    encoder = make_features('hash_grid(levels=3, log2_rows=4, coarsest=3)')
    for number, table in enumerate(encoder.tables):
        table[...] = jnp.full_like(table[...], number + 1.0)
    found = encoder.encode(np.random.default_rng(0).random((20, 2)).astype(np.float32))
    np.testing.assert_allclose(found, np.tile([1, 1, 2, 2, 3, 3], (20, 1)), rtol=1e-6)


def test_a_hash_with_enough_rows_is_a_dense_grid():
    hashed = make_features(f'hash_grid({COARSE}, log2_rows=12)', nnx.Rngs(3))
    dense = make_features(f'dense_grid({COARSE})', nnx.Rngs(3))
    x = np.random.default_rng(0).random((9, 2)).astype(np.float32)
    np.testing.assert_array_equal(hashed.encode(x), dense.encode(x))


@pytest.mark.parametrize('blend', ['linear', 'smoothstep'])
def test_features_are_continuous_and_with_smoothstep_their_slope(blend):
    """Across the border x = 0.3 of two cells of the grid of six vertices."""
    encoder = make_features(
        f"hash_grid(levels=1, coarsest=6, log2_rows=4, blend='{blend}', init=1.0)"
    )
    points = jnp.array([[0.3 - 1e-4, 0.42], [0.3 + 1e-4, 0.42]])
    encode = lambda p: encoder.encode(p)
    value, slope = jax.jit(lambda p: (encode(p), jax.vmap(jax.jacfwd(encode))(p)[..., 0]))(points)
    assert np.abs(value[1] - value[0]).max() < 4e-3
    jump = np.abs(slope[1] - slope[0]).max()
    assert jump < 0.1 if blend == 'smoothstep' else jump > 0.2


def test_points_outside_the_box_are_refused_and_traced_ones_are_not_numbers():
    encoder = make_features('hash_grid(levels=2, log2_rows=4, coarsest=3, box=(-1.0, 2.0))')
    points = jnp.array([[-1.0, 2.0], [0.5, 2.5]])
    message = r'its box -1 .. 2, got -1 .. 2.5; 1 of 2 points, first at \[1\]; give a box'
    with pytest.raises(ValueError, match=message):
        encoder.encode(points)
    graphdef, state = nnx.split(encoder)

    def total(state, points):
        found = nnx.merge(graphdef, state).encode(points)
        return jnp.nansum(found), found

    slopes, found = jax.jit(jax.grad(total, has_aux=True))(state, points)
    np.testing.assert_array_equal(np.isnan(found).all(-1), [False, True])
    assert np.isfinite(found[0]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    # The point inside alone has a gradient: the weights of its corners add up to 1.
    for leaf in jax.tree.leaves(slopes):
        np.testing.assert_allclose(leaf.sum(0), 1, rtol=1e-5)


def test_the_box_is_mapped_to_the_unit_cube():
    arguments = 'levels=2, log2_rows=4, coarsest=3, init=1.0'
    x = np.random.default_rng(0).random((5, 2)).astype(np.float32)
    unit = make_features(f'hash_grid({arguments})').encode(x)
    moved = make_features(f'hash_grid({arguments}, box=(-1.0, 1.0))').encode(2 * x - 1)
    np.testing.assert_allclose(moved, unit, atol=1e-5)


def test_weight_decay_leaves_tables_alone():
    encoder = make_features('hash_grid(levels=2, log2_rows=4, coarsest=3)')
    assert not any(jax.tree.leaves(decays(encoder)))
    assert any(jax.tree.leaves(decays(make_field('mlp(width=4)', features=2, outputs=1))))


def test_the_tables_of_the_paper():
    """Sixteen levels: five whole grids, and then tables of 2^19 rows; all within 1e-4 of 0."""
    encoder = nnx.eval_shape(lambda: make_features('hash_grid()'))
    rows = [table.shape[0] for table in encoder.tables]
    assert rows == [2**8, 2**10, 2**12, 2**14, 2**16, 2**18, *[2**19] * 10]
    small = make_features('hash_grid(levels=2, log2_rows=8)').tables[0][...]
    assert 0.9e-4 < np.abs(small).max() <= 1e-4
