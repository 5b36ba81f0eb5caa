"""Randomized Transformer-XL: the intended table with its negative side, both sides, the plain
baseline, decoding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.transformer_xl import transformer_xl_frequencies, transformer_xl_table
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('randomized_transformer_xl')['values']
HEADS, H, D, L = 2, 4, 8, 6


def make(arguments, std=1.0):
    return pj.make(
        f'randomized_transformer_xl({arguments}, std={std})',
        heads=HEADS,
        head_dim=H,
        model_dim=D,
        rngs=nnx.Rngs(0),
    )


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
    q, k = (np.asarray(a, np.float64)[0] for a in qk(length=offsets.shape[1]))
    u, v, kernel = (
        np.asarray(a[...], np.float64) for a in (encoding.u, encoding.v, encoding.kernel)
    )
    out = np.zeros((HEADS, *offsets.shape[1:]))
    for i in range(offsets.shape[1]):
        for j in range(offsets.shape[2]):
            angle = float(offsets[0, i, j]) * 10000.0 ** (-np.arange(0, D, 2) / D)
            code = np.concatenate([np.sin(angle), np.cos(angle)])
            for h in range(HEADS):
                out[h, i, j] = (
                    (q[i, h] + u[h]) @ k[j, h] + (q[i, h] + v[h]) @ (code @ kernel[:, h])
                ) / H**0.5
    return out


def test_golden_table_has_a_negative_side():
    table = transformer_xl_table(jnp.array([GOLDEN['offsets']]), transformer_xl_frequencies(4))
    np.testing.assert_allclose(transformer_xl_frequencies(4), GOLDEN['frequencies'], rtol=1e-12)
    np.testing.assert_allclose(table[0], GOLDEN['code'], atol=1e-6)
    encoding = pj.make(
        'randomized_transformer_xl(max_len=2048)', heads=8, head_dim=16, model_dim=128
    )
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
        assert (
            right[0] == 0
            and (np.diff(right) > 0).all()
            and (np.diff(left) < 0).all()
            and right[-1] <= 199
        )
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
    other = pj.make(
        'transformer_xl(std=1.0)', heads=HEADS, head_dim=H, model_dim=D, rngs=nnx.Rngs(0)
    )
    other.u, other.v = encoding.u, encoding.v
    other.kernel[...] = (
        encoding.kernel[...] * jnp.where(jnp.arange(D) < D // 2, -1.0, 1.0)[:, None, None]
    )
    tok, (q, k) = pj.Tokens.of(length=L), qk()
    q, k, _, tq, tk = other.project(q, k, k, tok, tok)
    s = pj.functional.scaled_dot_product(jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2))
    np.testing.assert_allclose(
        logits_of(encoding, tok)[0], other.logits(s, q, k, tq, tk, None, ())[0], atol=3e-5
    )


@pytest.mark.full
def test_rows_of_different_lengths_have_the_draws_of_their_own():
    encoding = make('max_len=100')
    valid = np.array([[True] * 6, [True] * 4 + [False] * 2])
    tok = encoding.place(pj.Tokens.of(valid=valid))
    alone = encoding.place(pj.Tokens.of(length=4))
    np.testing.assert_array_equal(
        encoding.offsets(tok, tok)[1, :4, :4], encoding.offsets(alone, alone)[0]
    )


@pytest.mark.full
def test_decoding_equals_the_whole():
    encoding = 'randomized_transformer_xl(max_len=64, std=0.5)'
    cfg = TransformerConfig(
        vocab_size=7, train_len=8, layers=2, width=D, heads=HEADS, encoding=encoding
    )
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    tokens, tok = jnp.array([[0, 3, 1, 2, 5, 6]]), pj.Tokens.of(length=6)
    expected = np.asarray(jax.jit(lambda model: model(tokens, tok))(model))
    logits, cache = jax.jit(prefill)(model, init_cache(model, tok), tokens[:, :3])
    found, step = [*np.moveaxis(np.asarray(logits), 1, 0)], jax.jit(decode_step)
    for t in range(3, 6):
        logits, cache = step(model, cache, tokens[:, t])
        found.append(logits)
    np.testing.assert_allclose(np.stack(found, 1), expected, atol=2e-5)


@pytest.mark.full
def test_a_pattern_gives_every_layer_its_own_draw_and_parameters():
    pattern = tuple(f'randomized_transformer_xl(max_len=64, draw={n})' for n in range(2))
    cfg = TransformerConfig(
        vocab_size=7, train_len=8, layers=2, width=D, heads=HEADS, encoding='', pattern=pattern
    )
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    parts = [model.encoding(*at).parts[0] for at in model.layers()]
    assert np.abs(np.asarray(parts[0].kernel[...] - parts[1].kernel[...])).max() > 1e-3
    placed = model.place(pj.Tokens.of(length=8), key=jax.random.key(0))
    assert (parts[0].offsets(placed[0], placed[0]) != parts[1].offsets(placed[1], placed[1])).any()


def test_wrong_input_says_what_is_wrong():
    for arguments, message in (
        ('max_len=0', 'max_len must be at least 1 and at most 16777216, got 0'),
        ('max_len=8, base=0.0', 'base must be positive, got 0.0'),
    ):
        with pytest.raises(SpecError, match=message):
            make(arguments)
    with pytest.raises(SpecError, match='std must be at least 0'):
        make('max_len=8', std=-1.0)
    with pytest.raises(ValueError, match='position 8 is not in 0 .. 7'):
        make('max_len=8').place(pj.Tokens.of(length=9))


def test_queries_of_another_number_of_heads():
    encoding, q = (
        pj.make(
            'randomized_transformer_xl(max_len=64)',
            heads=2,
            head_dim=8,
            model_dim=8,
            rngs=nnx.Rngs(0),
        ),
        jnp.ones((1, 3, 1, 8)),
    )
    tok = encoding.place(pj.Tokens.of(length=3))
    with pytest.raises(
        ValueError, match='randomized_transformer_xl has parameters of 2 heads, the queries have 1'
    ):
        encoding.project(q, q, q, tok, tok)
