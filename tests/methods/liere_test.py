"""LieRE: rotations by hand and by SciPy in float64, coordinates, what commutes, refusals."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods import liere as module
from posenc_jax.methods.rope_vit import rope_mixed
from tests.golden_files import golden_suite
from tests.methods.pairs import attend, draw, grid, qkv
from tests.methods.turns import place_of, turn_of
from tests.refusals import refused

liere = jax.jit(module.liere)


def make(arguments='block=4', width=8, kv_heads=2, seed=0):
    return pj.make(f'liere({arguments})', head_dim=width, kv_heads=kv_heads, rngs=nnx.Rngs(seed))


def turned_by_hand(entries, width):
    """The vector (1, 2, ..), turned by a block with these entries above the diagonal."""
    raw = np.full((width, width), 7.0, np.float32)  # what is not above it is not read
    raw[np.triu_indices(width, 1)] = entries
    x = jnp.arange(1.0, width + 1).reshape(1, 1, 1, width)
    return liere(x, jnp.ones((1, 1, 1)), jnp.asarray(raw).reshape(1, 1, 1, width, width)).ravel()


def axis(cells, trained):
    part = make(f'trained=(1, {trained})')
    return place_of(part, pj.Tokens.on_grid(1, cells)).pos[0, :, 1]


THIRD = 2 * np.pi / 3 / 3**0.5
test_golden = golden_suite('liere', atol=2e-6) | {
    'two': lambda: turned_by_hand([np.pi / 2], 2),
    'three': lambda: turned_by_hand([-THIRD, THIRD, -THIRD], 3),
    'axis_4_of_2': lambda: axis(4, 2),
    'axis_3_of_4': lambda: axis(3, 4),
}


def matrices(raw, coords):
    """`exp(sum_a p_a A_a)` of every token and block in float64."""
    upper = np.triu(np.float64(raw), 1)
    generators = np.einsum('lp,pkmgh->lkmgh', np.float64(coords), upper - upper.swapaxes(-1, -2))
    return scipy.linalg.expm(generators)


def test_blocks_are_multiplied_by_exponentials():
    x, coords = draw(0, 1, 5, 4, 11), np.abs(draw(1, 1, 5, 2))
    raw = jnp.asarray(2 * np.pi * np.random.default_rng(2).random((2, 2, 2, 4, 4), np.float32))
    found = np.asarray(liere(x, jnp.asarray(coords), raw))
    rotations = matrices(raw, coords[0])
    for head in range(4):
        for block in range(2):
            own = slice(4 * block, 4 * block + 4)
            r = rotations[:, head // 2, block]
            expected = np.einsum('lij,lj->li', r, x[0, :, head, own])
            np.testing.assert_allclose(found[0, :, head, own], expected, atol=1e-5)
            np.testing.assert_allclose(np.linalg.det(r), 1, atol=1e-9)
    np.testing.assert_array_equal(found[..., 8:], x[..., 8:])  # behind the last whole block
    norms = (found**2).sum(-1), (x**2).sum(-1)
    np.testing.assert_allclose(*norms, rtol=1e-5)


def test_blocks_of_a_whole_head_and_first_values():
    part = make('', width=8)
    assert part.raw.shape == (2, 1, 1, 8, 8)
    assert make('block=3, components=3, per_head=True').raw.shape == (3, 2, 2, 3, 3)
    values = np.asarray(make('', width=64).raw[...]).ravel()
    shares = np.histogram(values, bins=4, range=(0, 2 * np.pi))[0] / values.size
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


def scores(part, tok, q, k):
    both = [np.float64(turn_of(part, x, tok)) for x in (q, k)]
    return np.einsum('bthf,bshf->hts', *both)


def change_by_a_shift(block, components=2):
    """The largest change of a logit if all cells move by one along each axis."""
    part = make(f'block={block}, components={components}, size={(6,) * components}')
    cells = np.stack(np.meshgrid(*[np.arange(3)] * components, indexing='ij'), -1)
    cells = cells.reshape(1, -1, components)
    q, k = (draw(seed, 1, len(cells[0]), 1, 8) for seed in (3, 4))
    at = lambda move: place_of(part, pj.Tokens.of(positions=cells + move))
    return np.abs(scores(part, at(1), q, k) - scores(part, at(0), q, k)).max()


def test_only_generators_that_commute_see_differences_alone():
    assert change_by_a_shift(2) < 1e-5
    assert change_by_a_shift(8, components=1) < 1e-5
    assert change_by_a_shift(8) > 1e-1
    assert change_by_a_shift(3) > 1e-1


def test_blocks_of_two_are_rope_mixed_with_normalised_positions():
    part = make('block=2, per_head=True')
    placed = place_of(part, pj.Tokens.of(positions=grid(3, 4)))
    x = draw(5, 1, 13, 2, 8)
    # The sine is above the diagonal, so it turns the other way.
    rows, columns = -part.raw[..., 0, 1]
    expected = rope_mixed(x, placed.pos, jnp.stack([columns, rows]))
    np.testing.assert_allclose(turn_of(part, x, placed), expected, atol=1e-5)


def test_class_tokens_are_not_turned_and_sizes_change_the_step():
    part, x = make(), draw(6, 1, 7, 2, 8)
    placed = place_of(part, pj.Tokens.on_grid(2, 3, extra=1))
    np.testing.assert_array_equal(placed.pos[0, 0], 0)
    turned = np.asarray(turn_of(part, x, placed))
    np.testing.assert_array_equal(turned[:, :2], x[:, :2])  # and so is the first cell
    assert np.abs(turned[:, 2:] - x[:, 2:]).max() > 0.1
    steps = [np.diff(axis(n, 8))[0] for n in (8, 16)]
    np.testing.assert_allclose(steps, [1 / 7, 2 / 15], rtol=1e-5)
    np.testing.assert_array_equal(axis(1, 8), 0)
    assert part.traits == {'rotates', 'moves_positions'}
    assert make('size=(2, 3)').traits == {'rotates'}


def test_a_constant_in_the_difference_cancels():
    raw, coords, x = draw(7, 2, 1, 2, 4, 4), np.abs(draw(8, 1, 3, 2)), draw(9, 1, 3, 1, 8)
    upper = np.triu(raw, 1) - 0.5
    bases = upper - upper.swapaxes(-1, -2)
    expected = liere(x, jnp.asarray(coords), jnp.asarray(bases))
    np.testing.assert_allclose(liere(x, jnp.asarray(coords), jnp.asarray(raw)), expected, atol=1e-5)


def test_rotations_in_bfloat16_are_computed_in_float32():
    x, coords, raw = draw(10, 1, 3, 1, 8), np.abs(draw(11, 1, 3, 2)), 6 * draw(12, 2, 1, 1, 8, 8)
    low = x.astype(jnp.bfloat16)
    found = liere(low, jnp.asarray(coords), jnp.asarray(raw))
    assert found.dtype == jnp.bfloat16
    expected = liere(low.astype(jnp.float32), jnp.asarray(coords), jnp.asarray(raw))
    np.testing.assert_allclose(np.float32(found), expected, rtol=2**-8, atol=1e-6)


def test_queries_and_keys_at_the_same_places_share_the_exponentials():
    part, (q, k, v) = make(), qkv(6, 4, 2)
    tok = part.place(pj.Tokens.on_grid(2, 3))
    same = dataclasses.replace(tok, pos=tok.pos + 0)
    calls = [lambda q, k, of_k=of_k: part.project(q, k, v, tok, of_k)[:2] for of_k in (tok, same)]
    shown = [str(jax.make_jaxpr(call)(q, k)) for call in calls]
    assert [len(re.findall(r'= (?:checkpoint|remat2?)\[', jaxpr)) for jaxpr in shown] == [1, 2]
    for own, expected in zip(*(jax.jit(call)(q, k) for call in calls)):
        np.testing.assert_allclose(own, expected, atol=1e-6)


def unplaced():
    tok = pj.Tokens.on_grid(2, 2)
    return make(kv_heads=4).project(*qkv(4), tok, tok)


def narrow():
    placed = make().place(pj.Tokens.on_grid(1, 5))
    return attend(make(), *qkv(5, width=4), placed)


test_wrong_calls = refused() | {
    r'liere needs positions \[B, L, 2\], got \(1, 4\)': lambda: make().place(
        pj.Tokens.of(length=4)
    ),
    'integer positions': lambda: make().place(pj.Tokens.of(positions=grid(2, 2) / 2)),
    'call tok = encoding.place': unplaced,
    'liere was built for head_dim=8': narrow,
    'block must be at least 2 and at most head_dim=8, got 9': lambda: make('block=9'),
    'size must be a tuple of components=2 entries': lambda: make('size=(2, 3, 4)'),
    'trained must be .*at least 1': lambda: make('trained=(0, 3)'),
}
