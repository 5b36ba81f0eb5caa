"""3-D RoPE: rotations by hand, moved clouds, blocks across heads, refused calls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import posenc_jax as pj
from posenc_jax.base.phases import TWO_PI
from posenc_jax.methods import rope_3d as module
from posenc_jax.methods.rope import rope, rope_frequencies
from tests.golden_files import golden_suite
from tests.methods.pairs import attend, draw, qkv
from tests.methods.turns import turn_of
from tests.refusals import refused

rope_3d = jax.jit(module.rope_3d, static_argnames=('base', 'width', 'scale', 'across_heads'))


def by_hand(case):
    pos = jnp.float32([[case['quarters']]]) * TWO_PI / 4
    return rope_3d(jnp.float32(case['x']).reshape(1, 1, 1, 6), pos).ravel()


test_golden = golden_suite('rope_3d') | {
    'frequencies': (lambda: rope_frequencies(24 // 3, 10000.0), {'rtol': 1e-12}),
    'turned': (by_hand, {'atol': 1e-6}),
}


def points(seed, count=7, components=3):
    return np.random.default_rng(seed).uniform(-1, 1, (1, count, components)).astype(np.float32)


def scores(q, k, pos, **how):
    turn = lambda x: np.float64(rope_3d(x, jnp.asarray(pos), **how))
    return np.einsum('bthf,bshf->hts', turn(q), turn(k))


def test_each_block_is_rope_of_its_coordinate():
    x, pos = draw(0, 2, 7, 3, 12), points(0)
    turned = rope_3d(x, jnp.asarray(pos), scale=5.0)
    for axis in range(3):
        own = slice(4 * axis, 4 * axis + 4)
        at = jnp.asarray(5.0 * pos[..., axis])
        expected = rope(x[..., own], at, layout='interleaved')
        np.testing.assert_allclose(turned[..., own], expected, atol=2e-6)


def test_moving_a_cloud_changes_no_logit_and_turning_it_does():
    q, k, pos = draw(1, 1, 7, 2, 24), draw(2, 1, 7, 2, 24), points(1)
    s = scores(q, k, pos, scale=3.0)
    np.testing.assert_allclose(scores(q, k, pos + [0.5, -0.75, 2.0], scale=3.0), s, atol=2e-5)
    assert np.abs(scores(q, k, -pos, scale=3.0) - s).max() > 0.1
    turned = pos[..., [1, 0, 2]] * [1, -1, 1]
    assert np.abs(scores(q, k, turned, scale=3.0) - s).max() > 0.1
    # Coordinates that are exchanged together with their blocks.
    blocks = lambda a: a.reshape(1, 7, 2, 3, 8)[:, :, :, [2, 0, 1]].reshape(a.shape)
    swapped = scores(blocks(q), blocks(k), pos[..., [2, 0, 1]], scale=3.0)
    np.testing.assert_allclose(swapped, s, atol=1e-5)


def test_logits_are_those_of_the_differences_to_rounding():
    """Of unit vectors, where coordinates and moves are exact in float32."""
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    q, k = (unit(draw(seed, 1, 7, 2, 24)) for seed in (7, 8))
    pos = np.round(64 * points(5)) / 64
    s = scores(q, k, pos)
    np.testing.assert_allclose(scores(q, k, pos + np.float32([0.5, -0.75, 2])), s, atol=1e-6)
    # A query at the origin has the differences as the positions of its keys.
    for i in range(7):
        turned = rope_3d(k, jnp.asarray(pos - pos[:, i : i + 1]))
        own = np.einsum('bhf,bshf->hs', np.float64(q[:, i]), np.float64(turned))
        np.testing.assert_allclose(s[:, i], own, atol=1e-6)


def test_the_origin_is_not_turned_nor_are_features_beyond_the_width():
    x, pos = draw(3, 1, 7, 2, 8), points(2)
    pos[:, 0] = 0
    part = pj.make('rope_3d(width=6)', head_dim=8, heads=2, kv_heads=2)
    turned = np.asarray(turn_of(part, x, pj.Tokens.of(positions=pos)))
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
    np.testing.assert_allclose(turned[..., :6], rope_3d(x[..., :6], jnp.asarray(pos)), atol=1e-6)
    np.testing.assert_allclose((turned**2).sum(-1), (x**2).sum(-1), rtol=1e-5)


def test_blocks_across_heads_divide_the_whole_width():
    x, pos = draw(4, 1, 7, 3, 8), points(3)
    found = rope_3d(x, jnp.asarray(pos), across_heads=True)
    whole = rope_3d(x.reshape(1, 7, 1, 24), jnp.asarray(pos))
    np.testing.assert_allclose(found.reshape(1, 7, 1, 24), whole, atol=1e-6)
    # A head of eight features then has one coordinate.
    other = pos.copy()
    other[..., 1:] += 1
    moved = rope_3d(x, jnp.asarray(other), across_heads=True)
    np.testing.assert_array_equal(moved[:, :, 0], found[:, :, 0])
    assert np.abs(moved[:, :, 1:] - found[:, :, 1:]).max(axis=(0, 1, 3)).min() > 0.01


def test_four_components_and_no_gradient_through_angles():
    x, pos = draw(5, 1, 7, 1, 16), points(4, components=4)
    part = pj.make('rope_3d(components=4)', head_dim=16, heads=1, kv_heads=1)
    found = turn_of(part, x, pj.Tokens.of(positions=pos))
    late = rope(x[..., 12:], jnp.asarray(pos[..., 3]), layout='interleaved')
    np.testing.assert_allclose(found[..., 12:], late, atol=2e-6)
    slope = jax.grad(lambda pos: (rope_3d(x, pos) * draw(6, *x.shape)).sum())(jnp.asarray(pos))
    np.testing.assert_array_equal(slope, 0)


make = functools.partial(pj.make, heads=4, kv_heads=2)
PART = make('rope_3d()', head_dim=6)
test_wrong_calls = refused() | {
    r'rope_3d needs positions \[B, L, 3\], got \(1, 5\)': lambda: attend(PART, *qkv(5, width=6)),
    'rope_3d was built for head_dim=6': lambda: attend(
        PART, *qkv(7), pj.Tokens.of(positions=points(5))
    ),
    r'multiple of 6 features, got 8; the nearest below is 6, as in rope_3d\(width=6\)': (
        lambda: make('rope_3d()', head_dim=8)
    ),
    'width must be at least 2 and at most head_dim=6, got 12': lambda: make(
        'rope_3d(width=12)', head_dim=6
    ),
    'as many key heads as query heads, got width=None and 2 key heads for 4': lambda: make(
        'rope_3d(across_heads=True)', head_dim=6
    ),
    'some of them would lie in two heads': lambda: pj.make(
        'rope_3d(across_heads=True)', head_dim=3, heads=2, kv_heads=2
    ),
    'scale must be positive': lambda: make('rope_3d(scale=0.0)', head_dim=6),
}
