"""Learned grid positions: look-up, bicubic interpolation by hand and by definition, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.learned_grid import cubic_weights, learned_grid_vectors
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

VALUES = golden('learned_grid')['values']


def grid(rows, columns, extra=1):
    cells = np.stack(np.divmod(np.arange(rows * columns), columns), axis=-1)
    beside = -np.arange(1, extra + 1)[:, None].repeat(2, 1)
    return np.concatenate([beside, cells])[None]


def make(arguments, width=4):
    return pj.make(f'learned_grid({arguments})', model_dim=width, rngs=nnx.Rngs(0))


@jax.jit
def table(part, tok):
    return part.table(tok, 4)


def resized(cells, size):
    """The definition in float64: the kernel at every distance between the output and the cells."""

    def kernel(x):
        x, a = np.abs(x), -0.75
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    def along(count, new):
        place = (np.arange(new) + 0.5) * count / new - 0.5
        cells = np.arange(-3, count + 3)
        weights = kernel(place[:, None] - cells)
        matrix = np.zeros((new, count))
        for number, cell in enumerate(np.clip(cells, 0, count - 1)):
            matrix[:, cell] += weights[:, number]
        return matrix

    rows, columns = (along(*pair) for pair in zip(cells.shape, size))
    return np.einsum('ir,rcd,jc->ijd', rows, np.float64(cells), columns)


def test_interpolation_by_hand():
    for place, weights in ((1.25, 'weights_of_quarter'), (1.5, 'weights_of_half')):
        around, found = cubic_weights(jnp.array(place), 4)
        np.testing.assert_allclose(found, VALUES[weights], atol=1e-7)
        assert around.tolist() == [0, 1, 2, 3]
    cells = jnp.array(VALUES['cells'])[None, :, None]
    found = learned_grid_vectors(cells, jnp.asarray(grid(1, 8, 0)), (1, 8))[0, :, 0]
    np.testing.assert_allclose(found, VALUES['doubled'], atol=1e-6)


def test_on_its_own_grid_it_is_a_look_up():
    part = make('3, 5')
    out = table(part, pj.Tokens.of(positions=grid(3, 5)))[0]
    np.testing.assert_array_equal(out[1:], part.vectors[...].reshape(15, 4))
    np.testing.assert_array_equal(out[0], 0)
    # Some tokens of the grid, in another order, of a given size.
    part = make('3, 5, size=(3, 5)')
    pos = grid(3, 5)[:, [9, 4, 2]]
    out = table(part, pj.Tokens.of(positions=pos))[0]
    np.testing.assert_array_equal(out, part.vectors[...].reshape(15, 4)[jnp.array([8, 3, 1])])
    assert not part.traits and make('3, 5').traits == {'moves_positions'}


@pytest.mark.full_but_one
@pytest.mark.parametrize('size', [(6, 10), (2, 3), (7, 4)])
def test_other_grids_are_resized(size):
    part = make('3, 5')
    out = table(part, pj.Tokens.of(positions=grid(*size)))[0]
    expected = resized(np.asarray(part.vectors[...]), size).reshape(-1, 4)
    np.testing.assert_allclose(out[1:], expected, atol=1e-6)
    fixed = make(f'3, 5, size={size}')
    np.testing.assert_allclose(table(fixed, pj.Tokens.of(positions=grid(*size)))[0], out, atol=1e-6)
    # A constant table stays constant.
    flat = learned_grid_vectors(jnp.ones((3, 5, 1)), jnp.asarray(grid(*size, 0)), size)
    np.testing.assert_allclose(flat, 1, atol=1e-6)


def test_extra_tokens_have_vectors_of_their_own():
    part = make('2, 2, extra=2')
    out = table(part, pj.Tokens.of(positions=grid(2, 2, extra=3)))[0]
    np.testing.assert_array_equal(out[:2], part.extra[...])
    np.testing.assert_array_equal(out[2], 0)
    np.testing.assert_array_equal(out[3:], part.vectors[...].reshape(4, 4))


def test_documents_have_sizes_of_their_own():
    part = make('3, 5')
    pos = np.concatenate([grid(2, 3), grid(4, 2)], axis=1)
    tok = pj.Tokens.of(positions=pos, segment=np.repeat([0, 1], [7, 9])[None])
    alone = lambda size: table(part, pj.Tokens.of(positions=grid(*size)))[0]
    np.testing.assert_allclose(
        table(part, tok)[0], np.concatenate([alone((2, 3)), alone((4, 2))]), atol=1e-6
    )


def test_wrong_values_are_refused():
    for arguments, message in (
        ('0, 5', 'rows must be at least 1, got 0'),
        ('3, 5, size=(3, 0)', 'size must be at least 1, got 0 in .3, 0.'),
        ('3, 5, extra=-1', 'extra must be at least 0'),
        ('3, 5, std=-1.0', 'std must be at least 0'),
    ):
        with pytest.raises(SpecError, match=message):
            make(arguments)
    tok = pj.Tokens.of(positions=grid(4, 5))
    with pytest.raises(ValueError, match='learned_grid: row 3 is not in 0 .. 2'):
        make('3, 5, size=(3, 5)').table(tok, 4)
    with pytest.raises(ValueError, match='learned_grid: row -2 is not in'):
        make('3, 5').table(pj.Tokens.of(positions=[[[-2, 3]]]), 4)
    with pytest.raises(ValueError, match='integer positions'):
        make('3, 5').table(pj.Tokens.of(positions=tok.pos / 2), 4)
