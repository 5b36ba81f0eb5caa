"""RoPE-ViT: rotations by hand, first frequencies, differences of cells, refused calls."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import posenc_jax as pj
from posenc_jax.base.phases import TWO_PI
from posenc_jax.methods import rope_vit
from posenc_jax.methods.axial_rope2d import axial_rope2d
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden_suite
from tests.methods.pairs import attend, draw, grid, qkv
from tests.methods.turns import turn_of
from tests.refusals import refused

rope_axial = jax.jit(rope_vit.rope_axial, static_argnames='theta')
rope_mixed = jax.jit(rope_vit.rope_mixed)
GRID = grid(3, 4)


def one(x):
    return jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1)


def axial_by_hand(case):
    quarters = jnp.float32([[[case['row_quarters'], case['column_quarters']]]])
    return rope_axial(one(case['x']), quarters * TWO_PI / 4, case['base']).ravel()


def mixed_by_hand(case):
    frequencies = jnp.float32([[[TWO_PI / 4, 0.0]], [[0.0, TWO_PI / 4]]])
    pos = jnp.array([[[case['row'], case['column']]]])
    return rope_mixed(one(case['x']), pos, frequencies).ravel()


test_golden_of_axial = golden_suite('rope_axial') | {
    'frequencies': (lambda: rope_frequencies(8, make('rope_axial()').theta), {'rtol': 1e-12}),
    'turned': (axial_by_hand, {'atol': 1e-5}),
}
test_golden_of_mixed = golden_suite('rope_mixed') | {
    'm': (lambda: rope_vit.rope_mixed_start(jnp.zeros(1), 16)[0, 0, :4], {'rtol': 1e-6}),
    'turned': (mixed_by_hand, {'atol': 1e-6}),
}


def make(spec='rope_mixed()', width=8):
    return pj.make(spec, head_dim=width, kv_heads=2, rngs=nnx.Rngs(0))


def scores(pos, q, k, frequencies):
    turn = lambda x: np.float64(rope_mixed(x, jnp.asarray(pos), frequencies))
    return np.einsum('bthf,bshf->hts', turn(q), turn(k))


def test_axial_is_axial_rope2d_with_columns_first():
    x = draw(0, 2, 13, 3, 8)
    expected = axial_rope2d(x, jnp.asarray(GRID)[..., ::-1], 100.0, layout='interleaved')
    np.testing.assert_array_equal(rope_axial(x, jnp.asarray(GRID)), expected)


def test_mixed_starts_as_axial_that_is_turned():
    fx, fy = np.float64(make().frequencies[...])
    m = np.tile(10.0 ** (-np.arange(2) / 2), 2)
    np.testing.assert_allclose(fx**2 + fy**2, np.tile(m**2, (2, 1)), rtol=1e-5)
    across = (fx[:, :2] * fx[:, 2:] + fy[:, :2] * fy[:, 2:]).sum(-1)
    np.testing.assert_allclose(across, 0, atol=1e-6)
    assert np.abs(fx[0] - fx[1]).max() > 0.01  # each head has its own angle
    frozen = rope_vit.rope_mixed_start(jnp.zeros(1), 8)
    x = draw(1, 1, 13, 1, 8)
    found = rope_mixed(x, jnp.asarray(GRID), frozen)
    np.testing.assert_allclose(found, rope_axial(x, jnp.asarray(GRID), 10.0), atol=1e-6)


def test_logits_see_differences_of_cells_whatever_the_frequencies_are():
    frequencies = jnp.asarray(draw(2, 2, 2, 4))
    q, k = draw(3, 1, 1, 2, 8).repeat(13, 1), draw(4, 1, 1, 2, 8).repeat(13, 1)
    s = scores(GRID, q, k, frequencies)
    far = np.concatenate([[[-5, -5]], GRID[0, 1:] + [7000, 123]])[None]
    moved = scores(far, q, k, frequencies)
    np.testing.assert_allclose(moved[:, 1:, 1:], s[:, 1:, 1:], atol=1e-5)
    # The definition, pair by pair, in float64.
    cells, (fx, fy) = np.float64(GRID[0, 1:]), np.float64(frequencies)
    z = lambda a: np.float64(a[0, 0, :, ::2]) + 1j * np.float64(a[0, 0, :, 1::2])
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            angle = (a[1] - b[1]) * fx + (a[0] - b[0]) * fy
            expected = (z(q) * z(k).conj() * np.exp(1j * angle)).real.sum(-1)
            np.testing.assert_allclose(s[:, i + 1, j + 1], expected, atol=1e-5)


def test_class_tokens_and_the_first_cell_are_not_turned():
    x = draw(5, 1, 13, 2, 8)
    turned = np.asarray(rope_mixed(x, jnp.asarray(GRID), make().frequencies[...]))
    np.testing.assert_array_equal(turned[:, :2], x[:, :2])
    assert np.abs(turned[:, 2:] - x[:, 2:]).max() > 0.1


def test_query_heads_share_the_frequencies_of_their_key_head():
    part, tok = make(), pj.Tokens.of(positions=GRID)
    x = draw(6, 1, 13, 2, 8)
    q, k, *_ = part.project(x.repeat(2, axis=2), x, x, tok, tok)
    np.testing.assert_array_equal(q, np.asarray(k).repeat(2, axis=2))


def test_frequencies_are_float32_and_trained():
    part, tok = make(), pj.Tokens.of(positions=GRID[:, 1:])
    x = draw(7, 1, 12, 2, 8).astype(jnp.bfloat16)
    assert turn_of(part, x, tok).dtype == jnp.bfloat16
    assert part.frequencies.dtype == jnp.float32
    loss = lambda f: (rope_mixed(jnp.float32(x), tok.pos, f) * draw(8, 1, 12, 2, 8)).sum()
    assert np.abs(jax.grad(loss)(part.frequencies[...])).min() > 1e-3


AXIAL = pj.make('rope_axial()', head_dim=8)
CELLS = pj.Tokens.of(positions=GRID)
test_wrong_calls = refused() | {
    r'rope_axial needs positions \[B, L, 2\]': lambda: attend(AXIAL, *qkv(5)),
    r'rope_mixed needs positions \[B, L, 2\]': lambda: attend(make(), *qkv(5)),
    'rope_axial was built for head_dim=8': lambda: attend(AXIAL, *qkv(13, width=4), CELLS),
    'rope_mixed was built for head_dim=8': lambda: attend(make(), *qkv(13, width=4), CELLS),
    'rope_axial theta.* must be at least 1, got 0.5': lambda: make('rope_axial(theta=0.5)'),
    'rope_mixed head_dim must be a multiple of 4, got 6; the nearest is 8': lambda: make(
        'rope_mixed()', width=6
    ),
}
