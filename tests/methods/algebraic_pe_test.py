"""Algebraic positional encodings of sequences and grids: powers by hand, RoPE, decay, refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import posenc_jax as pj
from posenc_jax.methods import algebraic_pe as module
from posenc_jax.methods.rope import rotate
from tests.golden_files import golden_suite
from tests.methods.pairs import attend, draw, grid, qkv
from tests.methods.turns import turn_of
from tests.refusals import refused

algebraic_pe = jax.jit(module.algebraic_pe, static_argnums=3)
QUARTER = jnp.float32([[0, np.pi / 4], [-np.pi / 4, 0]])  # half of the logarithm


def make(spec, width=8, kv_heads=2, seed=None):
    part = pj.make(spec, head_dim=width, kv_heads=kv_heads)
    if seed is not None:
        part.b[...] = jnp.asarray(0.5 * draw(seed, *part.b.shape))
    return part


def power_by_hand(_, p):
    x = jnp.float32([1, 2]).reshape(1, 1, 1, 2)
    return algebraic_pe(x, jnp.array([[int(p)]]), QUARTER[None], 1024).ravel()


def grid_by_hand(case):
    part = make('algebraic_grid()', width=4, kv_heads=1)
    part.b[...] = jnp.stack([QUARTER, QUARTER])[:, None]
    tok = pj.Tokens.of(positions=[[[case['row'], case['column']]]])
    return turn_of(part, jnp.float32(case['x']).reshape(1, 1, 1, 4), tok).ravel()


test_golden = golden_suite('algebraic_pe', rtol=1e-6) | {
    'angles': lambda: 2 * np.diagonal(module.algebraic_pe_start(8), 1)[::2],
    'powers.*': (power_by_hand, {'atol': 1e-3}),  # 1001 quarters are 1572 radians
}
test_golden_of_grids = golden_suite('algebraic_grid', {'turned': grid_by_hand}, atol=1e-5)


def rotation(b):
    return scipy.linalg.expm(np.float64(b) - np.float64(b).T)


def test_powers_of_a_dense_rotation():
    part, tok = make('algebraic_pe()', seed=0), pj.Tokens.of(positions=[[0, 1, 5, 6, 63]])
    # The library's own turn of the unit vectors, as the queries of eight heads with one matrix.
    units = jnp.eye(8)[None, None].repeat(5, 1)
    turns = np.asarray(turn_of(make('algebraic_pe()', kv_heads=1, seed=0), units, tok))[0]
    np.testing.assert_allclose(turns @ turns.mT, np.eye(8)[None].repeat(5, 0), atol=2e-5)
    x = draw(1, 1, 5, 4, 8)
    found = np.asarray(turn_of(part, x, tok))
    for head in range(4):
        w = rotation(part.b[0, head // 2])
        for place, p in enumerate(np.asarray(tok.pos)[0]):
            expected = np.linalg.matrix_power(w, p) @ x[0, place, head]
            np.testing.assert_allclose(found[0, place, head], expected, atol=5e-5)
    np.testing.assert_array_equal(found[:, 0], x[:, 0])


def test_far_positions_have_the_error_of_a_float32_product():
    part = make('algebraic_pe()', seed=0)
    x, far = draw(2, 1, 1, 2, 8), 20_011
    found = turn_of(part, x, pj.Tokens.of(positions=[[far]]))[0, 0, 1]
    w = rotation(part.b[0, 1])
    b = np.float64(part.b[0, 1])
    angle = np.linalg.norm(b - b.T, 2) * far
    error = np.abs(np.linalg.matrix_power(w, far) @ x[0, 0, 1] - found).max()
    assert error < 4 * angle * 2**-24 * np.linalg.norm(x[0, 0, 1])
    np.testing.assert_allclose((found**2).sum(), (x[0, 0, 1] ** 2).sum(), rtol=1e-5)


def test_it_starts_as_rope_that_turns_the_other_way():
    part, x = make('algebraic_pe()'), draw(6, 1, 7, 2, 8)
    angles = -np.arange(7)[None, :, None, None] * np.array([1, 1, 0.01, 0.01])
    expected = rotate(x, jnp.float32(angles), layout='interleaved')
    np.testing.assert_allclose(turn_of(part, x, pj.Tokens.of(length=7)), expected, atol=1e-5)


def test_grids_turn_halves_by_columns_and_rows_and_leave_class_tokens():
    part, x = make('algebraic_grid()', seed=7), draw(8, 1, 7, 2, 8)
    tok = pj.Tokens.of(positions=grid(2, 3))
    found = np.asarray(turn_of(part, x, tok))
    np.testing.assert_array_equal(found[:, :2], x[:, :2])
    for place, (row, column) in enumerate(grid(2, 3)[0][1:], start=1):
        for head in range(2):
            w_x, w_y = (rotation(part.b[axis, head]) for axis in (0, 1))
            own = x[0, place, head]
            first = np.linalg.matrix_power(w_x, column) @ own[:4]
            second = np.linalg.matrix_power(w_y, row) @ own[4:]
            expected = np.concatenate([first, second])
            np.testing.assert_allclose(found[0, place, head], expected, atol=1e-5)


@pytest.mark.parametrize('key', ['algebraic_pe', 'algebraic_grid'])
def test_decay_multiplies_logits(key):
    is_grid = key == 'algebraic_grid'
    pos = grid(3, 4, beside=0) if is_grid else np.arange(12)[None]
    tok, (q, k, v) = pj.Tokens.of(positions=pos), qkv(12, heads=2)
    part = make(f'{key}(decay=0.9)')
    out = attend(pj.chain(part, pj.make('full()')), q, k, v, tok)
    turned = [np.float64(turn_of(make(f'{key}()'), a, tok)) for a in (q, k)]
    cells = np.float64(pos[0].reshape(12, -1))
    distance = np.floor(np.sqrt(((cells[:, None] - cells) ** 2).sum(-1)))
    s = np.einsum('bthf,bshf->bhts', *turned) / 8**0.5 * 0.9**distance
    w = np.exp(s) / np.exp(s).sum(-1, keepdims=True)
    np.testing.assert_allclose(out, np.einsum('bhts,bshf->bthf', w, v), atol=1e-5)
    assert part.opens('logits') and not make(f'{key}()').opens('logits')


def test_distances_of_cells_are_rounded_down_exactly():
    """Also where float32 rounds the sum of squares up to a square, as that of (20000, 200)."""
    apart = np.random.default_rng(0).integers(-4095, 4096, (20_000, 2))
    apart = np.concatenate([apart, [[20000, 200], [20000, 400], [32767, 32767], [0, 0], [3, -4]]])
    expected = [math.isqrt(int(square)) for square in (apart**2).sum(-1)]
    np.testing.assert_array_equal(jax.jit(module.whole_length)(jnp.asarray(apart)), expected)


def test_traced_positions_beyond_the_length_give_nan():
    part = make('algebraic_pe(max_len=8)')
    run = jax.jit(lambda x, pos: part.turned(x, pj.Tokens.of(positions=pos)))
    found = np.asarray(run(draw(9, 1, 3, 2, 8), jnp.array([[7, 8, -1]])))
    np.testing.assert_array_equal(np.isnan(found).any((2, 3)), [[False, True, True]])


def at(spec, positions, width=8):
    count = np.shape(positions)[1]
    return lambda: attend(
        make(spec, kv_heads=4), *qkv(count, width=width), pj.Tokens.of(positions=positions)
    )


def known(spec, positions):
    tok = pj.Tokens.of(positions=positions)
    return lambda: make(spec).turned(draw(0, 1, tok.length, 2, 8), tok)


test_wrong_calls = refused() | {
    r'position \[8\] is not in 0 .. 7; use a larger max_len': known(
        'algebraic_pe(max_len=8)', [[3, 8]]
    ),
    r'algebraic_grid: position \[0, 9\] is not in 0 .. 7': known(
        'algebraic_grid(max_len=8)', [[[0, 1], [0, 9]]]
    ),
    'algebraic_pe needs integer positions, got float32': known('algebraic_pe()', [[0.5, 1.0]]),
    r'algebraic_pe needs positions \[B, L, 1\]': at('algebraic_pe()', grid(2, 2)),
    r'algebraic_grid needs positions \[B, L, 2\]': at('algebraic_grid()', [[0, 1]]),
    'algebraic_pe was built for head_dim=8': at('algebraic_pe()', [[0, 1]], width=4),
    'decay must be positive and at most 1, got 1.5': lambda: make('algebraic_pe(decay=1.5)'),
    'max_len must be at least 2 and at most 32768, got 65536': lambda: make(
        'algebraic_grid(max_len=65536)'
    ),
    'head_dim must be a multiple of 4, got 6': lambda: make('algebraic_grid()', width=6),
}
