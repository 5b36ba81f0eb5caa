"""Learned grid positions: look-up, bicubic interpolation by hand and by definition, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.learned_grid import learned_grid_vectors, learned_grid_weights
from tests.golden_files import golden, golden_suite
from tests.methods.pairs import grid
from tests.methods.resizing import resized
from tests.refusals import refused

GOLDEN = golden('learned_grid')['values']


def make(arguments, width=4):
    return pj.make(f'learned_grid({arguments})', model_dim=width, rngs=nnx.Rngs(0))


@jax.jit
def table(part, positions, segment=None):
    return part.table(pj.Tokens.of(positions=positions, segment=segment), 4)[0]


def doubled():
    cells = jnp.array(GOLDEN['cells'])[None, :, None]
    return learned_grid_vectors(cells, jnp.asarray(grid(1, 8, 0)), (1, 8))[0, :, 0]


test_golden = golden_suite('learned_grid') | {
    'weights_of_quarter': (lambda: learned_grid_weights(jnp.array(1.25), 4)[1], {'atol': 1e-7}),
    'weights_of_half': (lambda: learned_grid_weights(jnp.array(1.5), 4)[1], {'atol': 1e-7}),
    'doubled': (doubled, {'atol': 1e-6}),
}


def test_the_four_cells_around_a_place_are_read():
    for place in (1.25, 1.5):
        assert learned_grid_weights(jnp.array(place), 4)[0].tolist() == [0, 1, 2, 3]


def test_on_its_own_grid_it_is_a_look_up():
    part = make('3, 5')
    out = table(part, grid(3, 5))
    np.testing.assert_array_equal(out[1:], part.vectors[...].reshape(15, 4))
    np.testing.assert_array_equal(out[0], 0)
    # Some tokens of the grid, in another order, of a given size.
    part = make('3, 5, size=(3, 5)')
    out = table(part, grid(3, 5)[:, [9, 4, 2]])
    np.testing.assert_array_equal(out, part.vectors[...].reshape(15, 4)[jnp.array([8, 3, 1])])
    assert not part.traits and make('3, 5').traits == {'moves_positions'}


@pytest.mark.full_but_one
@pytest.mark.parametrize('size', [(6, 10), (2, 3), (7, 4)])
def test_other_grids_are_resized(size):
    part = make('3, 5')
    out = table(part, grid(*size))
    expected = resized(np.asarray(part.vectors[...]), size).reshape(-1, 4)
    np.testing.assert_allclose(out[1:], expected, atol=1e-6)
    np.testing.assert_allclose(table(make(f'3, 5, size={size}'), grid(*size)), out, atol=1e-6)
    # A constant table stays constant.
    flat = learned_grid_vectors(jnp.ones((3, 5, 1)), jnp.asarray(grid(*size, 0)), size)
    np.testing.assert_allclose(flat, 1, atol=1e-6)


def test_extra_tokens_have_vectors_of_their_own():
    """Token number n beside the grid is at (-n, -n)."""
    part = make('2, 2, extra=2')
    beside = -np.arange(1, 4)[None, :, None].repeat(2, axis=2)
    out = table(part, np.concatenate([beside, grid(2, 2, 0)], axis=1))
    np.testing.assert_array_equal(out[:2], part.extra[...])
    np.testing.assert_array_equal(out[2], 0)
    np.testing.assert_array_equal(out[3:], part.vectors[...].reshape(4, 4))


def test_documents_have_sizes_of_their_own():
    part, grids = make('3, 5'), (grid(2, 3), grid(4, 2))
    packed = table(part, np.concatenate(grids, axis=1), np.repeat([0, 1], [7, 9])[None])
    alone = np.concatenate([table(part, positions) for positions in grids])
    np.testing.assert_allclose(packed, alone, atol=1e-6)


def read_at(arguments, positions):
    return lambda: make(arguments).table(pj.Tokens.of(positions=positions), 4)


test_wrong_calls = refused() | {
    'learned_grid: row 3 is not in 0 .. 2': read_at('3, 5, size=(3, 5)', grid(4, 5)),
    'learned_grid: row -2 is not in': read_at('3, 5', [[[-2, 3]]]),
    'integer positions': read_at('3, 5', grid(4, 5) / 2),
}
