"""Point Cloud Mamba: the orders against the formulas by hand, on full grids and in programs of JAX,
and the map of the coordinates before every layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.features.coordinates.point_orders import (
    ORDERS,
    TRAVERSES,
    check_points,
    grid_cells,
    hilbert_key,
    point_key,
    point_order,
)
from posenc_jax.features.coordinates.traced_orders import traced_order
from posenc_jax.lab.model.stack import LayerStack
from posenc_jax.methods.pcm import Pcm, pcm_linear, pcm_network
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden, golden_suite
from tests.methods.models import turned_off
from tests.refusals import refused
from tests.small_models import small_model

GOLDEN = golden('pcm')['values']
D = 6


def full_grid(*sizes):
    return np.stack(np.meshgrid(*map(np.arange, sizes), indexing='ij'), axis=-1).reshape(-1, 3)


def check_path(cells, keys):
    """The keys number all cells, and consecutive cells differ by one step along one axis."""
    assert sorted(keys) == list(range(len(cells)))
    steps = np.abs(np.diff(cells[np.argsort(keys)], axis=0)).sum(axis=1)
    assert (steps == 1).all()


@pytest.mark.parametrize('order', TRAVERSES)
def test_a_traverse_steps_through_all_cells_of_a_full_grid(order):
    cells = full_grid(3, 4, 2)
    keys = point_key(cells, order)
    check_path(cells, keys)
    path = cells[np.argsort(keys)]
    fastest, slowest = 'xyz'.index(order[0]), 'xyz'.index(order[2])
    assert (np.diff(path[:, slowest]) >= 0).all()
    assert np.abs(np.diff(path[:, fastest])).sum() > np.abs(np.diff(path[:, slowest])).sum()
    if order == 'xyz':
        assert path[:8].tolist() == GOLDEN['xyz_begins']


@pytest.mark.parametrize('side', [2, 4, 8])
def test_the_hilbert_curve_steps_through_a_full_cube(side):
    cells = full_grid(side, side, side)
    check_path(cells, hilbert_key(cells))


def key(order):
    return lambda values: point_key(np.array(values['cells']), order)


def linear(values):
    return pcm_linear(jnp.array(values['p']), jnp.array(values['w']))


def network(values):
    layers = (jnp.array(values[name]) for name in ('w1', 'b1', 'w2', 'b2', 'w3'))
    return pcm_network(jnp.array(GOLDEN['linear']['p']), *layers)


test_golden = golden_suite('pcm') | {
    **{f'keys.{order}': key(order) for order in ('xyz', 'zyx', 'z', 'z-trans')},
    'linear.vector': (linear, {'rtol': 1e-7}),
    'network.vector': (network, {'rtol': 1e-7}),
}


def test_orders_are_stable_and_do_not_depend_on_whole_cells_of_translation():
    points = np.random.default_rng(0).integers(0, 4, (40, 3)) + 0.5
    for order in ORDERS:
        found = point_order(points, order, size=1.0)
        np.testing.assert_array_equal(point_order(points - [7, 70, 1], order, size=1.0), found)
        keys = point_key(grid_cells(points, 1.0), order)[found]
        assert ((np.diff(keys) > 0) | (np.diff(found) > 0)).all() and (np.diff(keys) >= 0).all()
        np.testing.assert_array_equal(point_order(points[found], order, size=1.0), np.arange(40))


@pytest.fixture(scope='module')
def orders():
    """All orders of a batch of clouds with padding in one program."""
    run = lambda points, valid: {o: traced_order(points, o, valid, 0.25)[0] for o in ORDERS}
    return jax.jit(run)


def test_programs_find_the_same_orders(orders):
    """Of clouds of different sizes in one batch, the largest almost of 2**20 cells."""
    rng = np.random.default_rng(1)
    spread = np.array([0.3, 2.0, 1000.0, 60_000.0])[:, None, None]
    points = (np.floor(rng.uniform(-spread, spread, (4, 50, 3)) * 4) / 4 + 0.125).astype(np.float32)
    valid = np.arange(50) < np.array([[50], [31], [50], [1]])
    found = orders(points, valid)
    for order in ORDERS:
        for row, (cloud, real) in enumerate(zip(points, valid)):
            count = real.sum()
            host = point_order(cloud[:count], order, size=0.25)
            np.testing.assert_array_equal(found[order][row, :count], host, err_msg=order)
            np.testing.assert_array_equal(found[order][row, count:], np.arange(count, 50))


def test_clouds_that_no_grid_holds_are_told():
    points = np.zeros((4, 3, 3), np.float32)
    points[1, 0, 0], points[2, 2, 1], points[3, 1, 2] = np.nan, 2**20, np.inf
    fits = traced_order(jnp.asarray(points), 'z', size=1.0)[1]
    assert fits.tolist() == [True, False, False, False]
    valid = np.ones((4, 3), bool)
    valid[2, 2] = False
    assert traced_order(jnp.asarray(points), 'z', jnp.asarray(valid), 1.0)[1].tolist()[2]


def make(arguments='', width=D):
    return pj.make(f'pcm({arguments})', model_dim=width)


def vectors(encoding, points, **known):
    tok = pj.Tokens.of(positions=points, **known)
    return np.asarray(encoding.embed(jnp.zeros((*tok.pos.shape[:2], D)), tok))


def test_it_moves_with_the_points():
    """Another order of the points reorders the vectors; a translation adds one constant to all."""
    points = np.random.default_rng(2).normal(size=(1, 9, 3)).astype(np.float32)
    encoding, order = make(), np.random.default_rng(3).permutation(9)
    found = vectors(encoding, points)
    np.testing.assert_array_equal(vectors(encoding, points[:, order]), found[:, order])
    shift = vectors(encoding, points + np.float32([0.5, -2.0, 1.0])) - found
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-5)
    assert np.abs(shift).max() > 0.1
    padded = vectors(encoding, points, valid=np.arange(9)[None] < 5)
    np.testing.assert_array_equal(padded[:, :5], found[:, :5])
    assert not padded[:, 5:].any()


def silent_model(spec, layers=2):
    """A model whose layers add nothing to their input."""
    sizes = dict(vocab_size=0, channels=3, output_size=2, pool='mean', train_len=4, kind='encoder')
    model = small_model(1, **sizes, layers=layers, width=D, heads=2, encoding=spec)
    for block in model.blocks:
        turned_off(block.mlp.w_out)
        turned_off(block.attention.w_out)
    return model


@pytest.mark.parametrize('spec, times', [('pcm()', 3), ('pcm(depth=0) | pcm(depth=2)', 1)])
def test_it_acts_before_the_layers_of_its_depth(spec, times):
    model = silent_model(spec, layers=3)
    points = jax.random.normal(jax.random.key(0), (1, 4, 3))
    tok = pj.Tokens.of(positions=points)
    last = jax.jit(lambda model: LayerStack.hidden(model, points, tok))(model)
    maps = [part for part in model.shared if isinstance(part, Pcm)]
    assert len(maps) == spec.count('pcm')
    x = model.vectors(points, tok) + times * sum(part.table(tok, D) for part in maps)
    np.testing.assert_allclose(last, model.norm(x), atol=1e-5)


def test_an_order_that_does_not_exist():
    with pytest.raises(SpecError, match="did you mean 'xyz'"):
        point_order(np.zeros((1, 3)), 'xyzz')


test_wrong_points = refused() | {
    r'expected coordinates \[N, 3\], got an array \(4, 2\)': (
        lambda: check_points(np.zeros((4, 2)))
    ),
    'at least one point': lambda: check_points(np.zeros((0, 3))),
    r'1 of 2 points are not finite, the first is number 1': (
        lambda: check_points([[0, 0, 0], [0, np.nan, 0]])
    ),
    'real numbers': lambda: check_points(np.array([['a', 'b', 'c']])),
    'use a size of at least': lambda: grid_cells(np.array([[0, 0, 0], [1e5, 0, 0]]), size=0.02),
    'side of a cell must be positive': lambda: grid_cells(np.zeros((1, 3)), size=0.0),
    r'needs positions \[B, L, 3\], got \(1, 2\)': lambda: vectors(make(), [[0, 1]]),
    'width 8, got 6': lambda: vectors(make(width=8), np.zeros((1, 2, 3))),
}
