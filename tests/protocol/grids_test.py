"""Which tokens stand on a grid, its size by row and by document, and refused positions."""

import jax.numpy as jnp
import pytest

import posenc_jax as pj
from posenc_jax.protocol.grids import check_grid, check_size, grid_size, on_grid


def test_tokens_with_negative_components_alone_are_beside_the_grid():
    pos = jnp.array([[[-1, -1], [-5, -2], [0, 0], [-1, 3], [2, -7]]])
    assert on_grid(pos).tolist() == [[False, False, True, True, True]]
    assert on_grid(jnp.array([[[-0.5, -0.5], [-0.5, 0.0]]])).tolist() == [[False, True]]
    with pytest.raises(ValueError, match=r'positions \[B, L, P\] with components'):
        on_grid(jnp.array([[0, 1]]))


def test_the_size_is_that_of_the_real_tokens_of_a_document():
    pos = [[[-1, -1], [0, 2], [1, 1], [-1, -1], [4, 0], [9, 9]]]
    valid = [[True, True, True, True, True, False]]
    segment = [[0, 0, 0, 1, 1, 1]]
    size = lambda **more: grid_size(pj.Tokens.of(positions=pos, **more)).tolist()[0]
    assert size() == [[10, 10]] * 6
    assert size(valid=valid) == [[5, 3]] * 6
    assert size(valid=valid, segment=segment) == [[2, 3]] * 3 + [[5, 1]] * 3
    two = pj.Tokens.of(positions=pos, segment=[[0] * 6, segment[0]])
    assert grid_size(two)[:, 0].tolist() == [[10, 10], [2, 3]]
    with pytest.raises(ValueError, match='needs integer positions'):
        grid_size(pj.Tokens.of(positions=[[[0.5, 1.0]]]))


def test_wrong_positions_are_refused():
    check_grid('this', jnp.array([[[-1, -1], [1, 2]]]), whole=True, within=(2, 3))
    padded = jnp.array([[[9, 9], [1, 2]]])
    check_grid('this', padded, within=(2, 3), valid=jnp.array([[False, True]]))
    for pos, options, message in (
        (jnp.zeros((1, 4)), {}, r'positions \[B, L, 2\], row and column, got float32 \(1, 4\)'),
        (jnp.zeros((1, 4, 3)), {}, r'got float32 \(1, 4, 3\)'),
        (jnp.zeros((1, 4, 2)), dict(whole=True), 'needs integer positions'),
        (padded, dict(within=(2, 10)), 'row 9 is not in 0 .. 1'),
        (jnp.array([[[2, -1]]]), dict(within=(3, 3)), 'column -1 is not in 0 .. 2'),
    ):
        with pytest.raises(ValueError, match=message):
            check_grid('this', pos, **options)
    for rows, columns in ((2, None), (None, 3), (0, 3), (2, True)):
        with pytest.raises(ValueError, match='must be integers of at least 1'):
            check_size('this', rows, columns)
