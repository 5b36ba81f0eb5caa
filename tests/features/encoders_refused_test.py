"""What encoders of coordinates and of graphs refuse in a spec string, and what the message says."""

import re

import pytest

from posenc_jax.features.coordinates import make_features
from posenc_jax.features.graphs import make_graph_features
from posenc_jax.protocol.errors import SpecError

COORDINATES = {  # spec -> what the message says
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
    "reading_order_codes(order, adjacency); encoders of graphs: 'lap_pe', 'lcp', 'rfp', 'rwse'",
    'lcpp()': "unknown graph 'lcpp'; did you mean 'lcp'",
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
