"""2-D axial RoPE: rotations by hand, symmetries of the logits, extra tokens, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods import axial_rope2d as module
from posenc_jax.methods.rope import rope, rope_frequencies
from tests.golden_files import golden
from tests.methods.pairs import attend, draw, grid, qkv
from tests.refusals import refused

VALUES = golden('axial_rope2d')['values']
# Compiled, because a call of many small operations takes longer.
axial_rope2d = jax.jit(module.axial_rope2d, static_argnames=('base', 'layout', 'scale'))
GRID = grid(3, 5)
CELLS = GRID[0, 1:]


def scores(pos, q, k, **options):
    turn = lambda x: np.float64(axial_rope2d(x, jnp.asarray(pos), 100.0, **options))
    return np.einsum('bthf,bshf->hts', turn(q), turn(k))


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_rotations_by_hand(layout):
    x = jnp.asarray(VALUES['x'], jnp.float32).reshape(1, 1, 1, 8)
    np.testing.assert_allclose(rope_frequencies(4, VALUES['base']), VALUES['frequencies'])
    # Rows and columns are quarters of a turn of the second plane, which are whole turns of the
    # first.
    pos = np.float32(VALUES['quarters']).reshape(1, 1, 2) * np.float32(np.pi / 2)
    turned = axial_rope2d(x, jnp.asarray(pos), VALUES['base'], layout=layout)
    np.testing.assert_allclose(turned.ravel(), VALUES[layout], atol=1e-5)


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_each_half_is_rope_of_its_coordinate(layout):
    x = draw(0, 2, 15, 3, 8)
    turned = axial_rope2d(x, jnp.asarray(CELLS[None]), 100.0, layout=layout)
    for half, axis in ((slice(0, 4), 0), (slice(4, 8), 1)):
        expected = rope(x[..., half], jnp.asarray(CELLS[None, :, axis]), 100.0, layout=layout)
        np.testing.assert_allclose(turned[..., half], expected, atol=1e-6)


@pytest.mark.parametrize('layout', ['half', 'interleaved'])
def test_logits_see_differences_of_rows_and_columns(layout):
    q, k = draw(1, 1, 1, 2, 8).repeat(16, 1), draw(2, 1, 1, 2, 8).repeat(16, 1)
    s = scores(GRID, q, k, layout=layout)
    far = np.concatenate([[[-7, -9]], CELLS + [70000, 123]])[None]
    moved = scores(far, q, k, layout=layout)
    np.testing.assert_allclose(moved[:, 1:, 1:], s[:, 1:, 1:], atol=1e-5)
    assert np.abs(moved[:, 0] - s[:, 0]).max() > 0.1  # a class token sees where a token is
    # Position (0, 0) and a class token change nothing.
    plain = np.einsum('bhf,bhf->h', q[:, 0], k[:, 0])
    np.testing.assert_allclose(
        np.diagonal(s, axis1=1, axis2=2), plain[:, None] + 0 * s[:, 0], rtol=1e-5
    )
    np.testing.assert_allclose(s[:, 0, 1], plain, rtol=1e-5)
    swap = lambda a: np.roll(a, 4, axis=-1)
    swapped = scores(GRID[..., ::-1].copy(), swap(q), swap(k), layout=layout)
    np.testing.assert_allclose(swapped, s, atol=1e-5)
    assert np.abs(scores(GRID[..., ::-1].copy(), q, k, layout=layout) - s).max() > 0.1


def test_norms_and_class_token():
    x = draw(3, 1, 16, 2, 8)
    turned = np.asarray(axial_rope2d(x, jnp.asarray(GRID)))
    np.testing.assert_allclose((turned**2).sum(-1), (x**2).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, :2], x[:, :2])
    assert np.abs(turned[:, 2:] - x[:, 2:]).max() > 0.1


def test_scale_interpolates_positions():
    x, pos = draw(4, 1, 15, 1, 8), jnp.asarray(CELLS[None])
    half = axial_rope2d(x, 2 * pos, scale=0.5)
    np.testing.assert_allclose(half, axial_rope2d(x, pos), atol=1e-6)
    both = axial_rope2d(x, pos * jnp.array([3, 4]), scale=(1 / 3, 0.25))
    np.testing.assert_allclose(both, axial_rope2d(x, pos), atol=1e-6)
    part = pj.make('axial_rope2d(scale=(0.5, 1.0))', head_dim=8)
    tok = pj.Tokens.of(positions=pos)
    np.testing.assert_allclose(
        part.project(x, x, x, tok, tok)[1], axial_rope2d(x, pos, scale=(0.5, 1.0))
    )


PART = pj.make('axial_rope2d()', head_dim=8)
test_wrong_calls = refused() | {
    r'positions \[B, L, 2\]': lambda: attend(PART, *qkv(15)),
    'built for head_dim=8': lambda: attend(
        PART, *qkv(15, width=4), pj.Tokens.of(positions=CELLS[None])
    ),
}
