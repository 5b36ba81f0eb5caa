"""Randomized Transformer-XL: the intended table with its negative side, both sides, the plain
baseline, decoding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.methods.transformer_xl import transformer_xl_frequencies, transformer_xl_table
from tests.golden_files import golden
from tests.methods.models import model_of

GOLDEN = golden('randomized_transformer_xl')['values']
HEADS, H, D, L = 2, 4, 8, 6


def make(arguments, std=1.0):
    spec = f'randomized_transformer_xl({arguments}, std={std})'
    return pj.make(spec, heads=HEADS, head_dim=H, model_dim=D)


def qk(rows=1, length=L):
    draw = lambda seed: jax.random.normal(jax.random.key(seed), (rows, length, HEADS, H))
    return draw(1), draw(2)


def logits_of(encoding, tok, key=None):
    q, k = qk(length=tok.length)
    tok = encoding.place(tok, key=None if key is None else jax.random.key(key))
    q, k, _, tq, tk = encoding.project(q, k, k, tok, tok)
    q, k = (jnp.swapaxes(a, 1, 2) for a in (q, k))
    s, _ = encoding.logits(scaled_dot_product(q, k), q, k, tq, tk, None, ())
    return np.asarray(s), np.asarray(encoding.offsets(tq, tk))


def defined(encoding, offsets):
    """The formula of the sheet, pair by pair in double precision."""
    wide = lambda a: np.asarray(a[...], np.float64)
    (q,), (k,) = map(wide, qk(length=offsets.shape[1]))
    u, v, kernel = wide(encoding.u), wide(encoding.v), wide(encoding.kernel)
    angle = np.asarray(offsets[0, ..., None], np.float64) * 10000.0 ** (-np.arange(0, D, 2) / D)
    code = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    content = np.einsum('ihd,jhd->hij', q + u, k)
    return (content + np.einsum('ihd,ijw,whd->hij', q + v, code, kernel)) / H**0.5


def test_golden_table_has_a_negative_side():
    table = transformer_xl_table(jnp.array([GOLDEN['offsets']]), transformer_xl_frequencies(4))
    np.testing.assert_allclose(transformer_xl_frequencies(4), GOLDEN['frequencies'], rtol=1e-12)
    np.testing.assert_allclose(table[0], GOLDEN['code'], atol=1e-6)
    sizes = dict(heads=8, head_dim=16, model_dim=128)
    encoding = pj.make('randomized_transformer_xl(max_len=2048)', **sizes)
    assert np.asarray(encoding.u[...]).std() == pytest.approx(GOLDEN['std'], rel=0.2)
    assert np.asarray(encoding.kernel[...]).std() == pytest.approx(GOLDEN['std'], rel=0.03)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'arguments', ['max_len=50', 'max_len=50, both_sides=True', 'max_len=50, random=False']
)
@pytest.mark.parametrize('key', [None, 2])
def test_logits_are_those_of_the_definition(arguments, key):
    encoding = make(arguments)
    logits, offsets = logits_of(encoding, pj.Tokens.of(length=L), key)
    np.testing.assert_allclose(logits[0], defined(encoding, offsets), atol=3e-5)


def test_offsets_are_signed_sorted_and_toeplitz():
    for arguments, mirrored in (('max_len=200', True), ('max_len=200, both_sides=True', False)):
        _, offsets = logits_of(make(arguments), pj.Tokens.of(length=L), 3)
        right, left = offsets[0, 0], offsets[0, :, 0]
        assert right[0] == 0 and (np.diff(right) > 0).all() and right[-1] <= 199
        assert (np.diff(left) < 0).all()
        assert np.array_equal(-left, right) == mirrored
        for shift in range(-L + 1, L):
            assert np.ptp(np.diagonal(offsets[0], shift)) == 0


def test_a_full_range_is_the_plain_relative_encoding():
    tok = pj.Tokens.of(length=L)
    plain, offsets = logits_of(make('max_len=6, random=False'), tok)
    np.testing.assert_array_equal(offsets[0], np.arange(L)[None] - np.arange(L)[:, None])
    for key in (None, 3):
        np.testing.assert_allclose(logits_of(make('max_len=6'), tok, key)[0], plain, atol=1e-5)


def test_plain_offsets_are_transformer_xl_with_the_sign_of_the_sines():
    encoding = make('max_len=6, random=False')
    other = pj.make('transformer_xl(std=1.0)', heads=HEADS, head_dim=H, model_dim=D)
    other.u, other.v = encoding.u, encoding.v
    sign = jnp.where(jnp.arange(D) < D // 2, -1.0, 1.0)
    other.kernel[...] = encoding.kernel[...] * sign[:, None, None]
    tok, (q, k) = pj.Tokens.of(length=L), qk()
    q, k, _, tq, tk = other.project(q, k, k, tok, tok)
    s = pj.functional.scaled_dot_product(jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2))
    expected, _ = other.logits(s, q, k, tq, tk, None, ())
    np.testing.assert_allclose(logits_of(encoding, tok)[0], expected, atol=3e-5)


@pytest.mark.full
def test_rows_of_different_lengths_have_the_draws_of_their_own():
    encoding, offsets = make('max_len=100'), lambda tok: encoding.offsets(tok, tok)
    valid = np.array([[True] * 6, [True] * 4 + [False] * 2])
    both = offsets(encoding.place(pj.Tokens.of(valid=valid)))
    for row, count in enumerate((6, 4)):
        alone = offsets(encoding.place(pj.Tokens.of(length=count)))
        np.testing.assert_array_equal(both[row, :count, :count], alone[0])


@pytest.mark.full
def test_a_pattern_gives_every_layer_its_own_draw_and_parameters():
    pattern = tuple(f'randomized_transformer_xl(max_len=64, draw={n})' for n in range(2))
    model = model_of('', pattern=pattern, width=D)
    parts = [model.encoding(*at).parts[0] for at in model.layers()]
    assert np.abs(np.asarray(parts[0].kernel[...] - parts[1].kernel[...])).max() > 1e-3
    placed = model.place(pj.Tokens.of(length=8), key=jax.random.key(0))
    assert (parts[0].offsets(placed[0], placed[0]) != parts[1].offsets(placed[1], placed[1])).any()
