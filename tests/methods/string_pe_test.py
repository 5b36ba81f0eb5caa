"""STRING: bases and rotations by hand, matrices in float64, differences of coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import posenc_jax as pj
from posenc_jax.methods import string_pe as module
from posenc_jax.methods.md_lrpe import md_lrpe, md_lrpe_angles, md_lrpe_frequencies
from posenc_jax.methods.rope import rope, rope_frequencies, rotate
from tests.golden_files import golden_suite
from tests.methods.pairs import attend, draw, grid, qkv
from tests.methods.turns import turn_of
from tests.refusals import refused

string_cayley = jax.jit(module.string_cayley)
string_circulant = jax.jit(module.string_circulant)
basis_of = jax.jit(module.string_cayley_basis, static_argnums=1)
POINTS = np.random.default_rng(0).uniform(-2, 2, (1, 6, 3)).astype(np.float32)


def basis_by_hand(s):
    return lambda: basis_of(jnp.float32([[s, 0, 0, 0, 0, 0]]), 4)[0]


def turned_by_hand(_, eighths):
    columns = jnp.float32([0, 1, 0, 0]).reshape(1, 1, 4)
    pos = jnp.float32(int(eighths) * np.pi / 4).reshape(1, 1, 1)
    return string_circulant(jnp.float32([1, 0, 0, 0]).reshape(1, 1, 1, 4), pos, columns).ravel()


test_golden_of_cayley = golden_suite('string_cayley', atol=1e-6) | {
    'half': basis_by_hand(0.5),
    'one': basis_by_hand(1.0),
}
test_golden_of_circulant = golden_suite('string_circulant', atol=1e-6) | {
    'eighths.*': turned_by_hand
}


def entries(seed, heads=2, width=6):
    return jnp.asarray(draw(seed, heads, width * (width - 1) // 2))


def columns(seed, components=3, heads=2, width=6):
    return jnp.asarray(0.5 * draw(seed, components, heads, width))


def scores(turn, q, k, pos):
    both = [np.float64(turn(x, jnp.asarray(pos))) for x in (q, k)]
    return np.einsum('bthf,bshf->hts', *both)


def test_cayley_is_a_rotation_in_another_basis():
    """The matrices of the definition, in float64."""
    x = draw(5, 1, 6, 4, 6)
    found = string_cayley(x, jnp.asarray(POINTS), basis_of(entries(3), 6))
    angles = (POINTS[0, :, :, None] * md_lrpe_frequencies(3, 3)).reshape(6, -1)[:, :3]
    for head, values in enumerate(np.float64(entries(3))):
        s = np.zeros((6, 6))
        s[np.triu_indices(6, 1)] = values
        s = s - s.T
        p = (np.eye(6) - s) @ np.linalg.inv(np.eye(6) + s)
        y = np.einsum('ij,lhj->lhi', p, x[0, :, 2 * head : 2 * head + 2])
        u, v = y[..., :3], y[..., 3:]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        expected = np.concatenate([u * cos - v * sin, v * cos + u * sin], axis=-1)
        np.testing.assert_allclose(found[0, :, 2 * head : 2 * head + 2], expected, atol=1e-5)


def test_cayley_starts_as_rope():
    part = pj.make('string_cayley()', head_dim=8, kv_heads=2)
    x, tok = draw(6, 1, 9, 4, 8), pj.Tokens.of(length=9)
    np.testing.assert_allclose(turn_of(part, x, tok), rope(x, tok.pos), atol=1e-6)
    part = pj.make('string_cayley(components=2)', head_dim=8, kv_heads=2)
    cells = jnp.asarray(grid(3, 3, beside=0))
    angles = md_lrpe_angles(cells, md_lrpe_frequencies(4, 2), 4)
    found = turn_of(part, x, pj.Tokens.of(positions=cells))
    np.testing.assert_allclose(found, md_lrpe(x, angles), atol=1e-6)


def test_queries_and_keys_share_a_basis_that_is_made_once():
    part, (q, k, v), tok = make('string_cayley()'), qkv(5, 8, 4), pj.Tokens.of(length=5)
    part.entries[...] = entries(12, 4, 8)
    call = lambda q, k: part.project(q, k, v, tok, tok)[:2]
    assert str(jax.make_jaxpr(call)(q, k)).count('= scan[') == 1
    for own, x in zip(call(q, k), (q, k)):
        np.testing.assert_allclose(own, turn_of(part, x, tok), atol=1e-6)


def test_a_basis_behind_the_rotation_cancels():
    """The fault that logits would not show: it is plain RoPE for any S."""
    basis = np.asarray(basis_of(entries(3, heads=1), 6))[0]
    q, k = draw(7, 1, 6, 1, 6), draw(8, 1, 6, 1, 6)
    pos = jnp.arange(6.0)[None, :, None]
    behind = lambda x, pos: rope(x, pos[..., 0]) @ basis.T
    plain = scores(lambda x, pos: rope(x, pos[..., 0]), q, k, pos)
    np.testing.assert_allclose(scores(behind, q, k, pos), plain, atol=1e-5)
    before = scores(lambda x, pos: string_cayley(x, pos, jnp.asarray(basis[None])), q, k, pos)
    assert np.abs(before - plain).max() > 0.1


def test_circulant_is_the_exponential_of_its_matrices():
    x = draw(9, 1, 6, 4, 6)
    found = string_circulant(x, jnp.asarray(POINTS), columns(4))
    c = np.float64(columns(4))
    i, j = np.indices((6, 6))
    matrices = c[..., (i - j) % 6]
    matrices = matrices - matrices.swapaxes(-1, -2)
    for head in range(4):
        for place, p in enumerate(np.float64(POINTS[0])):
            r = scipy.linalg.expm(np.einsum('a,aij->ij', p, matrices[:, head // 2]))
            np.testing.assert_allclose(found[0, place, head], r @ x[0, place, head], atol=1e-5)


@pytest.mark.parametrize('width', [7, 8])
def test_circulant_starts_with_frequencies_of_rope(width):
    first = np.float64(module.string_circulant_start(width, base=100.0))[0]
    turns = 2 * np.fft.fft(first).imag
    half = (width - 1) // 2
    np.testing.assert_allclose(turns[1 : half + 1], rope_frequencies(2 * half, 100.0), atol=1e-6)
    np.testing.assert_allclose(turns[1:], -turns[:0:-1], atol=1e-6)
    # It is RoPE in the Fourier basis, whose first direction (and the last for even widths) stays.
    x, pos = draw(10, 1, 5, 1, width), jnp.arange(5)[None]
    part = pj.make('string_circulant(base=100.0)', head_dim=width, kv_heads=1)
    waves = np.fft.rfft(np.asarray(turn_of(part, x, pj.Tokens.of(positions=pos)))[0, :, 0])
    plain = np.fft.rfft(x[0, :, 0])
    np.testing.assert_allclose(waves[:, [0]], plain[:, [0]], atol=1e-5)
    pairs = np.concatenate([plain.real, plain.imag], -1)[None, :, None, :]
    size = plain.shape[1]
    angles = pos[..., None] * np.pad(turns[1 : half + 1], (1, size - 1 - half))
    expected = np.asarray(rotate(jnp.float32(pairs), jnp.float32(angles)[:, :, None]))[0, :, 0]
    np.testing.assert_allclose(waves.real, expected[:, :size], atol=1e-5)
    np.testing.assert_allclose(waves.imag, expected[:, size:], atol=1e-5)


def test_each_coordinate_of_circulant_starts_with_directions_of_its_own():
    turns = 2 * np.fft.rfft(np.float64(module.string_circulant_start(9, 2))).imag[:, 1:]
    np.testing.assert_allclose(turns, [[1, 0.01, 0, 0], [0, 0, 1, 0.01]], atol=1e-6)


@pytest.mark.parametrize('key', ['string_cayley', 'string_circulant'])
def test_class_tokens_are_not_turned_and_points_are(key):
    part = pj.make(f'{key}(components=2)', head_dim=8, kv_heads=1)
    x, cells = draw(11, 1, 7, 1, 8), grid(2, 3)
    turned = np.asarray(turn_of(part, x, pj.Tokens.of(positions=cells)))
    np.testing.assert_allclose(turned[:, :2], x[:, :2], atol=1e-6)
    assert np.abs(turned[:, 2:] - x[:, 2:]).max() > 0.1
    floats = turn_of(part, x, pj.Tokens.of(positions=np.float32(cells)))
    assert np.abs(floats[:, 0] - x[:, 0]).max() > 0.1


make = lambda spec, width=8: pj.make(spec, head_dim=width, kv_heads=4)
test_wrong_calls = refused() | {
    r'string_cayley needs positions \[B, L, 2\], got \(1, 5\)': lambda: attend(
        make('string_cayley(components=2)'), *qkv(5)
    ),
    r'string_circulant was built for head_dim=8': lambda: attend(
        make('string_circulant()'), *qkv(5, width=6)
    ),
    'string_cayley components must lie in 1 .. 4': lambda: make('string_cayley(components=5)'),
    'string_circulant components must lie in 1 .. 3': lambda: make(
        'string_circulant(components=4)'
    ),
    'string_cayley head_dim must be even, got 7': lambda: make('string_cayley()', 7),
    'string_circulant head_dim must be at least 3': lambda: make('string_circulant()', 2),
}
