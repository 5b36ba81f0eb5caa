"""What encoders of coordinates and of graphs refuse in spec strings and in calls, and what the
message says.
"""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.basis_grid import basis_kernel, blend_weights, separable_fit
from posenc_jax.features.coordinates.fourier_features import fourier_features_bands
from posenc_jax.features.coordinates.gaussians import section_moments
from posenc_jax.features.coordinates.geo.geo_sh import geo_sh_harmonics
from posenc_jax.features.coordinates.grid_levels import growth_factor
from posenc_jax.features.coordinates.mspe import MultiScalePositions, mspe
from posenc_jax.features.graphs import curvature as module
from posenc_jax.features.graphs import feature_scale, make_graph_features
from posenc_jax.features.graphs.adjacency import graph_operator
from posenc_jax.features.graphs.rfp import rfp_features
from posenc_jax.features.graphs.rfp_learned import LearnedPropagation
from posenc_jax.features.graphs.rope_reading_order import (
    ReadingOrderConvolution,
    reading_order_codes,
    reading_order_features,
    word_graph,
)
from posenc_jax.protocol.errors import SpecError

COORDINATES = {  # spec -> what the message says
    'barf(bands=0)': 'bands must be at least 1 and at most 127, got 0',
    'barf(begin=0.6)': 'end must be above begin=0.6 and at most 1, got 0.5',
    'dense_grid(components=5)': 'components must be at least 1 and at most 4, got 5',
    'dense_grid(levels=12)': 'its tables would take 10.7 GiB, at most 1 GiB are accepted',
    "fourier_features(kind='rff')": "is not one of 'nerf', 'random'",
    "fourier_features(kind='random', bands=4)": "kind 'random' has no bands, got 4; it takes "
    'features and scale',
    'fourier_features(features=8)': "kind 'nerf' has no features, got 8; it takes bands",
    'fourier_features(components=0)': 'components must be at least 1 and at most 1048576, got 0',
    'fourier_features(bands=-1)': 'bands must be at least 0 and at most 127, got -1',
    'fourier_features(bands=128)': 'bands must be at least 0 and at most 127, got 128',
    'fourier_features(components=100000)': '2100000 features; at most 1048576',
    "fourier_features(kind='random', features=7)": 'at least 2 and even, got 7; the nearest is 8',
    "fourier_features(kind='random', scale=0.0)": 'scale must be positive, got 0.0',
    'geo_dfs(scales=512)': 'scales=512 give 1050624 features; at most 1048576',
    'geo_grid(scales=0)': 'scales must be at least 1, got 0',
    'geo_grid(scales=300000)': 'scales=300000 give 1200000 features; at most 1048576',
    'geo_grid(rmin=0.0)': 'rmin must be positive, got 0.0',
    'geo_grid(rmin=1e-7)': 'rmin must be at least 1e-06, got 1e-07',
    'geo_grid(rmin=10.0, rmax=1.0)': 'rmax must be at least 10.0, got 1.0',
    'geo_sh(degrees=0)': 'degrees must be at least 1 and at most 128, got 0',
    'geo_sh(degrees=129)': 'degrees must be at least 1 and at most 128, got 129',
    "geo_spherem(single_scale_unit='radian')": "did you mean 'rad'",
    "hash_grid(blend='cubic')": "is not one of 'linear', 'smoothstep'",
    'hash_grid(box=(1.0, 1.0))': 'box has its smallest number first, got (1.0, 1.0)',
    'hash_grid(growth=0.5)': 'growth must be at least 1 and at most 16, got 0.5',
    'hash_grid(levels=20)': 'level 19 has 8388608 vertices along a side, at most 4194304',
    'integrated_pe(begin=3, end=3)': 'end must be above begin=3 and at most 24, got 3',
    'integrated_pe(begin=17)': 'end=16 unless it is given, got begin=17; give an end above it',
    "integrated_pe(basis='icosahedron')": "components must be 3, got 2; other points have basis='a",
    'integrated_pe(variance=-1.0)': 'variance must be at least 0, got -1.0',
    'mspe(features=6)': 'a multiple of 4, got 6; the nearest is 8',
    'mspe(features=0)': 'at least 4, at most 1048576 and a multiple of 4, got 0',
    'mspe(scale=0.0)': 'scale must be positive, got 0.0',
    'recombiner_lpe(shape=(40, 32))': 'multiples of 16, got 40; nearest: 32',
    'recombiner_lpe(shape=(0,))': 'got 0; nearest: 16',
    'recombiner_lpe(shape=(16, 16, 16, 16))': 'one to three axes',
    'recombiner_lpe(shape=(24, 16), cells=(24,))': 'each of the 2 axes of the shape, got (24,)',
    'recombiner_lpe(shape=(40, 16), cells=(24, 16))': 'shape takes multiples of 24, got 40; '
    'nearest: 48',
    'recombiner_lpe(shape=(18, 16), cells=(18, 16))': 'cells takes multiples of 4, got 18; '
    'nearest: 16',
    'recombiner_lpe(fourier=18)': 'fourier takes multiples of 4, got 18; nearest: 16',
    'recombiner_lpe(fourier=0)': 'fourier must be at least 1 and at most 1048576, got 0',
    'rope()': 'registered as encoding, not as coordinates',
    "shifted_basis('gauss')": "did you mean 'gaussian'",
    "shifted_basis('gaussian', form='three')": "one of 'line', 'two', 'four', 'complex'",
    "shifted_basis('rff', features=7)": 'positive multiple of 2, got 7',
    "shifted_basis('gaussian', form='four', features=6)": 'positive multiple of 4, got 6',
    "shifted_basis('gaussian', features=0)": 'positive multiple of 1, got 0',
    "shifted_basis('basic', features=4)": 'has 2 features, got 4',
    "shifted_basis('gaussian', scale=0.0)": 'scale must be positive, got 0.0',
    "shifted_basis('logf', scale=31.0)": 'scale must be at most 30.0, got 31.0',
    "shifted_basis('gaussian', form='complex', features=1025)": '1050625 features; at most 1048576',
    "shifted_basis('basic') | shifted_basis('basic', form='two')": 'one number of coordinates, got '
    '[1, 2]',
    'triplane(sizes=())': 'has 1 to 64 sizes, got 0',
    'triplane(sizes=(1,))': 'sizes must be at least 2 and at most 65536, got 1 in ',
    'triplane(sizes=(8192,))': 'its tables would take 24 GiB, at most 1 GiB',
    'triplane(time=True)': "time=True needs combine='product'",
}
GRAPHS = {
    "lap_pe(signs='absolute')": "one of 'random', 'canonical', 'abs'",
    'lap_pe(vectors=0)': 'vectors must be at least 1 and at most 65536, got 0',
    'lap_pe(vectors=65537)': 'at most 65536, got 65537',
    'lap_pe(vectors=2.0)': 'vectors=2.0 is not int',
    "lcp(curvature='ord')": "did you mean 'orc'",
    'lcp(alpha=1.0)': 'alpha must be at least 0 and below 1, got 1.0',
    'lcp(alpha=-0.1)': 'alpha must be at least 0 and below 1, got -0.1',
    "lcp(curvature='frc', alpha=0.5)": "alpha=0.5 is of curvature='orc', got 'frc'",
    "lcp(curvature='orc_approx', alt=True)": 'alt=True needs one curvature an edge',
    'lcp() | rope_reading_order()': 'rope_reading_order needs more than a graph and is called as '
    "reading_order_codes(order, adjacency); encoders of graphs: 'graphormer_edge', "
    "'graphormer_spatial', 'lap_pe', 'lcp', 'pearl', 'rfp', 'rrwp', 'rwse', 'signnet'",
    'lcpp()': "unknown graph 'lcpp'; did you mean 'lcp'",
    'pearl(signals=300, powers=300)': 'pearl: 90000 features; at most 65536 are accepted',
    'pearl(layers=0)': 'pearl layers must be at least 1 and at most 64, got 0',
    "pearl(pool='max')": "one of 'sum', 'mean'",
    "rfp(operator='gnc')": "did you mean 'gcn'",
    "rfp(normalise='rows')": "one of 'qr', 'l2', 'none'",
    'rfp(features=0)': 'rfp features must be at least 1, got 0',
    'rfp(draws=0)': 'rfp draws must be at least 1 and at most 1024, got 0',
    'rfp(draws=1025)': 'rfp draws must be at least 1 and at most 1024, got 1025',
    'rfp(steps=-1)': 'rfp steps must be at least 0, got -1',
    "rfp(steps=0, operator='learned')": 'rfp steps must be at least 1, got 0',
    'rfp(steps=2000)': '128064 features; at most 65536',
    'rfp(key_width=4)': "key_width=4 is of operator='learned', got 'gcn'",
    "rfp(operator='learned', key_width=0)": 'key_width must be at least 1 and at most 65536, got 0',
    'rope()': 'not as graph',
    'rrwp(steps=0)': 'rrwp steps must be at least 1 and at most 65536, got 0',
    "signnet(combine='add')": "one of 'concat', 'sum'",
    'signnet(layers=65)': 'signnet layers must be at least 1 and at most 64, got 65',
    'rwse(steps=0)': 'steps must be at least 1 and at most 65536, got 0',
    'rwse(steps=65537)': 'at most 65536, got 65537',
}


@pytest.mark.parametrize('spec', COORDINATES)
def test_wrong_coordinate_encoders_are_refused(spec):
    with pytest.raises(SpecError, match=re.escape(COORDINATES[spec])):
        make_features(spec)


@pytest.mark.parametrize('spec', GRAPHS)
def test_wrong_graph_encoders_are_refused(spec):
    with pytest.raises(SpecError, match=re.escape(GRAPHS[spec])):
        make_graph_features(spec)


GRAPH = 1.0 - np.eye(3)


def codes(words, **options):
    return reading_order_codes(jnp.arange(words), jnp.ones((9, 9), bool), **options)


CALLS = {  # what the message says -> the call
    'got 4 levels, coarsest 16 and finest 8': lambda: growth_factor(16, 8, 4),
    "did you mean 'cone'": lambda: section_moments(jnp.zeros(1), jnp.ones(1), 0.1, 'cones'),
    'at least 1 sample, got 0': lambda: fourier_features_bands(0),
    'degrees must lie in 1 .. 128, got 129': lambda: geo_sh_harmonics(jnp.zeros(2), 129),
    'multiple of 4 channels, got 6': lambda: mspe(jnp.zeros(2), 6),
    'at least 1 level, got 0': lambda: MultiScalePositions(levels=0),
    'has levels 0 .. 1, got 2': lambda: MultiScalePositions(levels=2)(jnp.zeros((1, 2, 2, 4)), 2),
    'grid [2, 3], got (3, 2)': lambda: separable_fit(np.eye(2), np.eye(3), np.zeros((3, 2))),
    'at least 2 points, got 1': lambda: blend_weights(jnp.zeros(1), 1, basis_kernel('rff', 1.0)),
    "did you mean 'triangle'": lambda: basis_kernel('triangl', 1.0),
    'at least one graph, got none': lambda: feature_scale([]),
    "operator is 'gnc'; did you mean 'gcn'": lambda: graph_operator(GRAPH, 'gnc'),
    "kind is 'orc'; did you mean 'frc'": lambda: module.forman_ricci(GRAPH, 'orc'),
    'alpha must be below 1, got 1.5': lambda: module.ollivier_ricci(GRAPH, 1.5),
    'rows have 2 pieces, the columns 3': lambda: module.transport_by_assignment(
        np.ones((1, 1)), np.array([2]), np.array([3])
    ),
    'rows have mass 2.0, the columns 0.0': lambda: module.transport_by_program(
        np.ones((2, 2)), np.ones(2), np.zeros(2)
    ),
    'no optimal transport was found': lambda: module.transport_by_program(
        np.ones((2, 2)), np.array([-1.0, 2.0]), np.array([0.5, 0.5])
    ),
    "normalise='qr' needs at most as many features as nodes, got 5 features and 3 nodes": lambda: (
        rfp_features(GRAPH, np.ones((3, 5)), 1)
    ),
    '3 nodes, features=5; use features=3, or pad=True': lambda: make_graph_features(
        'rfp(features=5, steps=2)'
    ).encode(GRAPH),
    'node_width must be at least 1, got 0': lambda: LearnedPropagation(0, 2, 3, rngs=nnx.Rngs(0)),
    "did you mean 'first'": lambda: codes(9, origin='fist'),
    'order of 9 words, [9], got (8,)': lambda: codes(8),
    "feature is 'sine'": lambda: reading_order_features(jnp.zeros((1, 1), int), 4, 'sine'),
    'at least 1 point in a box, got 0': lambda: word_graph(np.array([[0, 0, 1, 1]]), points=0),
    'left, top, right, bottom, got [2.0, 0.0, 1.0, 1.0]': lambda: word_graph(
        np.array([[2, 0, 1, 1]])
    ),
    'code_width of at least 2, got 4 and 1': lambda: ReadingOrderConvolution(
        4, 1, rngs=nnx.Rngs(0)
    ),
}


@pytest.mark.parametrize('message', CALLS)
def test_wrong_calls_are_refused(message):
    error = RuntimeError if message == 'no optimal transport was found' else ValueError
    with pytest.raises(error, match=re.escape(message)):
        CALLS[message]()
