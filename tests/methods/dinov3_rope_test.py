"""The rotary encoding of DINOv3: coordinates and rotations by hand, draws of training, refusals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.phases import TWO_PI
from posenc_jax.methods import dinov3_rope as module
from posenc_jax.methods.dinov3_rope import (
    dinov3_rope_augmented,
    dinov3_rope_coordinates,
    dinov3_rope_periods,
)
from posenc_jax.methods.rope import rotate
from tests.golden_files import golden_suite
from tests.methods.pairs import draw, grid, qkv
from tests.methods.turns import place_of, turn_of
from tests.refusals import refused

dinov3_rope = jax.jit(lambda x, coords: module.dinov3_rope(x, coords, np.array([1.0])))


def make(arguments='', width=8):
    return pj.make(f'dinov3_rope({arguments})', head_dim=width)


def coordinates(arguments, rows, columns, extra=0, key=None):
    part = make(arguments)
    return np.asarray(place_of(part, pj.Tokens.on_grid(rows, columns, extra=extra), key=key).pos[0])


def by_hand(case):
    coords = jnp.asarray(coordinates('', 4, 1))[None, 1:2]
    return dinov3_rope(jnp.float32(case['x']).reshape(1, 1, 1, 4), coords).ravel()


test_golden = golden_suite('dinov3_rope', atol=1e-6) | {
    'periods': (lambda: dinov3_rope_periods(4), {'rtol': 1e-12}),
    'between': (lambda: dinov3_rope_periods(3, periods=(1.0, 100.0)), {'rtol': 1e-12}),
    'square': lambda: coordinates('', 2, 2),
    'cell_1_2_of_4x3.*': lambda _, how: coordinates(f'normalise={how!r}', 4, 3)[5],
    'turned': by_hand,
}


def test_class_tokens_are_at_the_origin_and_are_not_turned():
    placed = place_of(make(), pj.Tokens.on_grid(2, 3, extra=2))
    np.testing.assert_array_equal(placed.pos[0, :2], 0)
    x = draw(0, 1, 8, 2, 8)
    turned = np.asarray(turn_of(make(), x, placed))
    np.testing.assert_array_equal(turned[:, :2], x[:, :2])
    assert np.abs(turned[:, 2:] - x[:, 2:]).max() > 0.1


def test_the_range_of_coordinates_does_not_depend_on_the_grid():
    fine, coarse = (coordinates('', *size).reshape(*size, 2) for size in ((6, 10), (3, 5)))
    np.testing.assert_allclose(fine.mean((0, 1)), 0, atol=1e-6)
    # The centre of a cell is the mean of those of its four parts.
    parts = fine.reshape(3, 2, 5, 2, 2).mean((1, 3))
    np.testing.assert_allclose(parts, coarse, atol=1e-6)


def test_on_one_grid_it_is_axial_with_frequencies_of_its_cells():
    x, cells = draw(1, 1, 15, 2, 8), grid(3, 5, beside=0)
    found = np.asarray(turn_of(make(), x, place_of(make(), pj.Tokens.of(positions=cells))))
    frequencies = 2 * TWO_PI / (dinov3_rope_periods(2)[:, None] * np.array([3, 5]))
    half = (np.array([3, 5]) - 1) / 2  # the centre of the grid is not turned
    angles = ((cells[0] - half)[:, None] * frequencies).transpose(0, 2, 1).reshape(1, 15, 1, 4)
    np.testing.assert_allclose(found, rotate(x, jnp.float32(angles)), atol=1e-5)


def test_documents_have_grids_of_their_own():
    cells = np.concatenate([grid(2, 3), grid(4, 2)], axis=1)
    tok = pj.Tokens.of(positions=cells, segment=np.repeat([0, 1], [7, 9])[None])
    alone = [coordinates('', *size, extra=1) for size in ((2, 3), (4, 2))]
    np.testing.assert_allclose(place_of(make(), tok).pos[0], np.concatenate(alone), atol=1e-6)
    assert make('size=(2, 3)').traits == {'rotates'}
    assert make().traits == {'rotates', 'moves_positions'}
    given = coordinates('size=(2, 3)', 2, 3)
    np.testing.assert_allclose(given, coordinates('', 2, 3), atol=1e-6)


@pytest.mark.parametrize(
    'draws',
    [
        dict(shift=0.5),
        dict(jitter=1.5),
        dict(rescale=2.0),
        dict(shift=0.25, jitter=1.2, rescale=2.0),
    ],
    ids=lambda draws: '_'.join(draws),
)
def test_training_draws_shift_jitter_and_scale_in_this_order(draws):
    arguments = ', '.join(f'{name}={value}' for name, value in draws.items())
    plain = np.float64(coordinates('', 3, 4))
    np.testing.assert_array_equal(coordinates(arguments, 3, 4), coordinates('', 3, 4))
    key = jax.random.key(3)
    found = coordinates(arguments, 3, 4, key=key)
    # Both axes are affine: y' = scale (y + shift).
    scale = (found[-1] - found[0]) / (plain[-1] - plain[0])
    shift = found.mean(0) / scale
    np.testing.assert_allclose(found, scale * (plain + shift), atol=1e-5)
    moved = draws.get('shift', 0.0)
    assert (np.abs(shift) <= moved + 1e-5).all() and (np.abs(shift) > 1e-3).all() == bool(moved)
    most = math.log(draws.get('jitter', 1.0)) + math.log(draws.get('rescale', 1.0))
    assert (np.abs(np.log(scale)) <= most + 1e-5).all()
    assert (scale[0] != pytest.approx(scale[1], rel=1e-4)) == ('jitter' in draws)
    other = coordinates(arguments, 3, 4, key=jax.random.key(4))
    assert np.abs(other - found).max() > 1e-3


def test_nothing_is_drawn_unless_it_is_asked_for():
    found = coordinates('', 3, 4, key=jax.random.key(0))
    np.testing.assert_array_equal(found, coordinates('', 3, 4))


def test_the_images_of_a_batch_share_a_draw():
    part, key = make('rescale=2.0'), jax.random.key(0)
    tok = pj.Tokens.of(positions=grid(2, 2).repeat(3, axis=0))
    placed = np.asarray(place_of(part, tok, key=key).pos)
    np.testing.assert_array_equal(placed, placed[:1].repeat(3, axis=0))
    np.testing.assert_array_equal(placed[:, 0], 0)


def test_a_draw_is_uniform_in_the_logarithm():
    one = jnp.ones((1, 1, 2))
    scale = lambda key: dinov3_rope_augmented(one, key, rescale=2.0)[0, 0]
    drawn = np.log2(jax.vmap(scale)(jax.random.split(jax.random.key(0), 2000)))
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    shares = np.histogram(drawn[:, 0], bins=4, range=(-1, 1))[0] / 2000
    np.testing.assert_allclose(shares, 0.25, atol=0.05)  # five standard deviations


def test_shifts_change_logits_with_class_tokens_alone():
    part, tok = make(), pj.Tokens.on_grid(3, 3, extra=1)
    q, k = draw(2, 1, 1, 1, 8).repeat(10, 1), draw(3, 1, 1, 1, 8).repeat(10, 1)

    def scores(move, scale=1.0):
        placed = place_of(part, tok)
        pos = placed.pos.at[:, 1:].set(scale * (placed.pos[:, 1:] + move))
        q_, k_, *_ = part.project(q, k, k, *[dataclasses.replace(placed, pos=pos)] * 2)
        return np.float64(q_)[0, :, 0] @ np.float64(k_)[0, :, 0].T

    plain, shifted = scores(0.0), scores(jnp.array([0.3, -0.2]))
    np.testing.assert_allclose(shifted[1:, 1:], plain[1:, 1:], atol=1e-5)
    assert np.abs(shifted[0, 1:] - plain[0, 1:]).max() > 0.1
    assert np.abs(scores(0.0, 1.5)[1:, 1:] - plain[1:, 1:]).max() > 0.1


def test_sizes_may_differ_between_rows():
    size = jnp.float32([[[2, 2]], [[4, 4]]])
    found = dinov3_rope_coordinates(jnp.zeros((1, 1, 2), jnp.int32), size)
    np.testing.assert_allclose(found[:, 0], [[-0.5, -0.5], [-0.75, -0.75]])


def unplaced():
    tok = pj.Tokens.on_grid(2, 2)
    return make().project(*qkv(4), tok, tok)


test_wrong_calls = refused() | {
    r'dinov3_rope needs positions \[B, L, 2\], got \(1, 4\)': lambda: make().place(
        pj.Tokens.of(length=4)
    ),
    'integer positions': lambda: make().place(pj.Tokens.of(positions=grid(2, 2) / 2)),
    'call tok = encoding.place': unplaced,
    'rescale must be at least 1, got 0.5': lambda: make('rescale=0.5'),
    'shift must be positive': lambda: make('shift=0.0'),
    "did you mean 'separate'": lambda: make("normalise='seperate'"),
    'head_dim must be a multiple of 4, got 6; the nearest is 8': lambda: make(width=6),
}
