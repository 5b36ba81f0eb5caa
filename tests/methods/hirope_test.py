"""HiRoPE: the two levels of the sheet, the defining dense form against tiles, limits, decoding, and
how units are found.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.layer import cache
from posenc_jax.methods.hirope import (
    hierarchical_ids,
    line_units,
    paragraph_units,
    python_units,
    token_units,
)
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden

GOLDEN = golden('hirope')['values']
WIDTH, WINDOW, SPLIT = 8, GOLDEN['window'], GOLDEN['split']
UNITS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 5, 5, 5, 5, 5, 5])


def encoding(window=WINDOW, inner='rope()', **options):
    more = ''.join(f', {name}={value!r}' for name, value in options.items())
    return pj.make(f'hirope(encoding={inner}, window={window}{more})', head_dim=WIDTH, causal=True)


def tokens(units=UNITS, **options):
    ids = hierarchical_ids(jnp.asarray(units)[None])
    return pj.Tokens.of(
        positions=jnp.stack([jnp.arange(len(units))[None], *ids], axis=-1), **options
    )


def qkv(length, kv_heads=1):
    draw = lambda seed, heads: jax.random.normal(jax.random.key(seed), (1, length, heads, WIDTH))
    return draw(0, 2), draw(1, kv_heads), draw(2, kv_heads)


def run(part, tok, *arrays, **options):
    return jax.jit(
        lambda tok, *arrays: pj.attend(
            part, *part.project(*arrays, tok, tok), **options, applied=pj.TOKEN_STAGE
        )
    )(tok, *arrays)


def logits(part, tok, q, k):
    """One dense tile, [N, T, S]."""
    q, k, _, tq, tk = part.project(q, k, k, tok, tok)
    heads_first = lambda a: a.swapaxes(1, 2)
    return np.asarray(pair_logits(part, heads_first(q), heads_first(k), tq, tk)[0][0])


def turns(tok, window=WINDOW, split=SPLIT, level='reset'):
    """A_i - A_j of every pair and plane [T, S, planes], in float64, from the definition."""
    flat, offset, unit = np.moveaxis(np.asarray(tok.pos[0], np.float64), -1, 0)
    theta, gap = rope_frequencies(WIDTH, 1e4), lambda p: np.subtract.outer(p, p)[..., None]
    far = np.where(
        np.arange(WIDTH // 2) < split, gap(offset if level == 'reset' else flat), gap(unit)
    )
    return np.where(gap(flat) < window, gap(flat), far) * theta


def pairwise(q, k, turn):
    """Logits [T, S] of rows q, k, layout 'half': `(qa ka + qb kb) cos + (qa kb - qb ka) sin` summed
    over planes.
    """
    (qa, qb), (ka, kb) = (np.split(np.asarray(a, np.float64), 2, axis=-1) for a in (q, k))
    qa, qb, ka, kb = qa[:, None], qb[:, None], ka[None], kb[None]
    return ((qa * ka + qb * kb) * np.cos(turn) + (qa * kb - qb * ka) * np.sin(turn)).sum(
        -1
    ) / WIDTH**0.5


def defined(q, k, v, turn):
    """Causal softmax attention with the logits of `pairwise`, in float64."""
    length, group = q.shape[1], q.shape[2] // k.shape[2]
    outs = []
    for head in range(q.shape[2]):
        s = np.where(
            np.tril(np.ones((length, length), bool)),
            pairwise(q[0, :, head], k[0, :, head // group], turn),
            -np.inf,
        )
        w = np.exp(s - s.max(-1, keepdims=True))
        outs.append(w / w.sum(-1, keepdims=True) @ np.asarray(v[0, :, head // group], np.float64))
    return np.stack(outs, axis=1)[None]


def test_golden_ids():
    tok, unit = hierarchical_ids(jnp.asarray(GOLDEN['units']))
    assert tok.tolist() == GOLDEN['tok'] and unit.tolist() == GOLDEN['F']
    renamed = hierarchical_ids(jnp.asarray([[7, 7, 7, 3, 3, 7], [0, 0, 0, 1, 1, 2]]))
    assert renamed[0].tolist() == [GOLDEN['tok']] * 2 and renamed[1].tolist() == [GOLDEN['F']] * 2


@pytest.mark.parametrize('level', ['reset', 'absolute'])
def test_golden_logits(level):
    ones = jnp.ones((1, len(GOLDEN['row_units']), 1, WIDTH))
    row = logits(encoding(split=SPLIT, level=level), tokens(GOLDEN['row_units']), ones, ones)[0, -1]
    np.testing.assert_allclose(row, GOLDEN[f'row_{level}'], atol=1e-6)


@pytest.mark.parametrize('block', [None, (1, 1), (5, 3)], ids=str)
@pytest.mark.full
def test_tiles_equal_the_defining_dense_form(block):
    q, k, v = qkv(19)
    out = run(encoding(), tokens(), q, k, v, block=block)
    np.testing.assert_allclose(out, defined(q, k, v, turns(tokens())), atol=2e-6)


@pytest.mark.parametrize(
    'split, level', [(0, 'reset'), (1, 'reset'), (4, 'reset'), (3, 'absolute')]
)
def test_split_says_how_many_planes_are_the_tokens(split, level):
    q, k, v = qkv(19, kv_heads=2)
    out = run(encoding(split=split, level=level), tokens(), q, k, v)
    np.testing.assert_allclose(
        out, defined(q, k, v, turns(tokens(), split=split, level=level)), atol=2e-6
    )


@pytest.mark.parametrize('tok', [tokens(), pj.Tokens.of(length=19)], ids=['units', 'flat'])
def test_a_window_beyond_the_length_is_the_plain_encoding(tok):
    arrays = qkv(19)
    inner = 'rope(partial=0.5, layout="interleaved", freqs=yarn(factor=4.0, train_len=8))'
    plain = run(pj.make(inner, head_dim=WIDTH, causal=True), pj.Tokens.of(length=19), *arrays)
    np.testing.assert_allclose(
        run(encoding(window=20, inner=inner), tok, *arrays), plain, atol=1e-6
    )


def test_one_unit_with_absolute_positions_is_rope_on_the_fast_planes_and_still_on_the_others():
    part = encoding(window=0, level='absolute').parts[0]
    flat = pj.Tokens.of(length=19)
    one = tokens(np.zeros(19, int))
    angles, _ = part.hierarchical_angles(one)
    plain, _ = part.encoding.angles(flat.pos)
    np.testing.assert_array_equal(angles[..., :SPLIT], plain[..., :SPLIT])
    np.testing.assert_array_equal(angles[..., SPLIT:], jnp.zeros_like(angles[..., SPLIT:]))
    np.testing.assert_array_equal(part.hierarchical_angles(flat)[0], angles)
    q, k, _ = qkv(19)
    gap, past = (
        np.subtract.outer(np.arange(19), np.arange(19))[..., None],
        np.tril(np.ones((19, 19), bool)),
    )
    still = gap * np.where(np.arange(4) < SPLIT, rope_frequencies(WIDTH, 1e4), 0)
    expected = pairwise(q[0, :, 0], k[0, :, 0], still)
    np.testing.assert_allclose(
        logits(encoding(window=0), flat, q, k)[0][past], expected[past], atol=3e-6
    )


def test_tokens_of_one_function_differ_by_the_angles_of_rope():
    angles, _ = encoding(split=4).parts[0].hierarchical_angles(tokens())
    difference = lambda a: np.asarray(a[0, :, None] - a[0, None])
    same = np.equal.outer(UNITS, UNITS)
    plain = np.subtract.outer(np.arange(19), np.arange(19))[..., None] * rope_frequencies(
        WIDTH, 1e4
    )
    wrapped = lambda a: (a + np.pi) % (2 * np.pi) - np.pi
    apart = np.abs(wrapped(difference(angles) - plain)).max(-1)
    assert apart[same].max() < 2e-6 and apart[~same].min() > 0.1


def test_both_counters_stay_within_the_trained_length_where_their_product_does_not():
    """The claim of the paper: 40 functions of 40 tokens reach 1600 tokens, no pair beyond 40 at
    either level.
    """
    trained, units = 40, np.repeat(np.arange(40), 40)
    tok = tokens(units)
    assert tok.pos[0, :, 0].max() == trained**2 - 1
    assert tok.pos[0, :, 1:].max() == trained - 1 and tok.pos.min() == 0
    reached = np.abs(turns(tok, window=trained)[::7, ::7] / rope_frequencies(WIDTH, 1e4))[
        np.tril(np.ones((229, 229), bool))
    ]
    assert reached.max() < trained + 1e-6


def test_a_tile_on_one_side_of_the_window_reads_one_set_of_keys():
    part, tok = encoding().parts[0], pj.Tokens.of(length=12)
    q, k, _, tq, tk = part.project(*qkv(12), tok, tok)
    heads_first = lambda a: a.swapaxes(1, 2)
    spoil = lambda tok: tok.without_feats().with_feats(
        hirope=jnp.full_like(tok.feats['hirope'], jnp.nan)
    )

    def tile(q, k, tq, tk, rows, columns):
        cut = lambda a, at: heads_first(a)[:, :, at : at + 4]
        return pair_logits(
            part, cut(q, rows), cut(k, columns), tq.slice(rows, 4), tk.slice(columns, 4), ()
        )[0]

    near = tile(q, k, spoil(tq), spoil(tk), 0, 0)
    far = tile(jnp.full_like(q, jnp.nan), jnp.full_like(k, jnp.nan), tq, tk, 8, 0)
    edge = tile(q, k, spoil(tq), tk, 4, 0)
    assert (
        np.isfinite(near).all()
        and np.isfinite(far).all()
        and np.isnan(edge).any()
        and np.isfinite(edge).any()
    )


@pytest.mark.full
def test_decoding_through_the_cache():
    q, k, v = qkv(19)
    part, tok = encoding(), tokens()
    whole = run(part, tok, q, k, v)
    rows = jnp.zeros((1, 19, 1))
    _, held = cache.start(part, q[:, :6], k[:, :6], v[:, :6], tok.slice(0, 6), rows[:, :6], 19)
    assert part.cached == 'encoded' and held.feats['hirope'].shape == (1, 19, 1, WIDTH)

    @jax.jit
    def step(held, n):
        *heads, row = (jax.lax.dynamic_slice_in_dim(a, n, 1, axis=1) for a in (q, k, v, rows))
        arguments, held = cache.step(part, held, *heads, tok, row, n)
        return pj.attend(part, *arguments, heads_first=True, applied=pj.TOKEN_STAGE)[:, 0], held

    for n in range(6, 19):
        out, held = step(held, n)
        np.testing.assert_allclose(out, whole[:, n], atol=1e-6)


@pytest.mark.full
def test_packed_documents_and_padding_with_units():
    arrays = qkv(11)
    tok = tokens(UNITS[:11])
    alone = run(encoding(), tok, *arrays)
    twice = [jnp.concatenate([a, a], 1) for a in arrays]
    packed = pj.Tokens.of(
        positions=jnp.concatenate([tok.pos, tok.pos], 1), segment=np.repeat([[0, 1]], 11, axis=1)
    )
    out = run(encoding(), packed, *twice, block=(4, 4))
    np.testing.assert_allclose(out, jnp.concatenate([alone, alone], 1), atol=1e-6)
    padded = [jnp.pad(a, ((0, 0), (3, 0), (0, 0), (0, 0)), constant_values=5.0) for a in arrays]
    shifted = pj.Tokens.of(
        positions=jnp.pad(tok.pos, ((0, 0), (3, 0), (0, 0))), valid=np.arange(14)[None] >= 3
    )
    np.testing.assert_allclose(
        run(encoding(), shifted, *padded, block=(4, 4))[:, 3:], alone, atol=1e-6
    )


def test_bfloat16():
    arrays = [a.astype(jnp.bfloat16) for a in qkv(19)]
    out = run(encoding(), tokens(), *arrays)
    assert out.dtype == jnp.bfloat16
    exact = defined(*(a.astype(jnp.float32) for a in arrays), turns(tokens()))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.02)


@pytest.mark.full
def test_it_is_switched_on_in_a_trained_model_and_generates():
    cfg = TransformerConfig(
        vocab_size=7, train_len=8, layers=1, width=16, heads=2, encoding='rope()'
    )
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    text, tok = jnp.arange(12)[None] % 7, tokens(UNITS[:12])
    near, far = model.extend('hirope(window=12)'), model.extend('hirope(window=4)')
    plain = model(text)
    np.testing.assert_allclose(near(text, tok), plain, atol=1e-6)
    assert np.abs(far(text, tok) - plain)[:, 4:].max() > 1e-3
    out = generate(far, text[:, :6], max_new_tokens=6, temperature=0.0, positions=tok.pos)
    following = far(out, tok).argmax(-1)
    np.testing.assert_array_equal(out[:, 6:], following[:, 5:11])


SOURCE = '''"""Module.

def not_a_function
"""
import os

@cache
@wraps(
    x,
)
def f(
    a,
):
    """
no indentation here
    """
    return a
    # the end

class C: pass
async def g():
    def inner(): pass

# about nothing
if os:
    def h(): pass
def last(): pass
'''
LINES = [0] * 6 + [1] * 13 + [2] + [3] * 3 + [4] * 3 + [5] * 2


def test_units_of_a_source_are_those_of_its_syntax_tree():
    assert python_units(SOURCE) == LINES
    assert (
        python_units(SOURCE.replace('\n', '\r\n'))
        == python_units(SOURCE.replace('\n', '\r'))
        == LINES
    )
    assert python_units('') == [0] and python_units('\n\ndef f(): pass\ndef g(): pass') == [
        0,
        0,
        0,
        1,
    ]


def test_units_of_lines_agree_where_strings_do_not_look_like_code():
    plain = SOURCE.replace('def not_a', 'not_a').replace('no indentation', '    no indentation')
    assert line_units(plain) == python_units(plain) == LINES
    assert line_units(SOURCE) != LINES
    assert line_units('    return 1\ndefault = 2\n@x\n# why\nclass A:\n  pass\n@y\nz = 1') == [
        0,
        1,
        2,
        2,
        2,
        2,
        3,
        3,
    ]


def test_this_repository_reads_the_same_by_tree_and_by_line():
    text = Path(pj.methods.dca.__file__).read_text(encoding='utf-8')
    assert python_units(text) == line_units(text) and max(python_units(text)) > 2


def test_paragraphs_and_tokens():
    text = '\none\nstill one\n\n \ntwo\n'
    assert paragraph_units(text) == [0, 0, 0, 0, 0, 1, 1]
    starts = [0, 1, 5, text.index('two') - 1, text.index('two'), len(text)]
    assert token_units(text, paragraph_units(text), starts) == [0, 0, 0, 0, 1, 1]
    assert token_units('a\r\ndef f(): x', [4, 9], [0, 1, 2, 3]) == [4, 4, 4, 9]


@pytest.mark.parametrize(
    'call, message',
    [
        (
            lambda: python_units('x = 1\ndef f(:\n'),
            'line 2 does not parse: .*line_units takes any text',
        ),
        (lambda: python_units('x = "\0"'), 'does not parse'),
        (lambda: token_units('a\nb', [0], [0]), '2 lines, got units of 1'),
        (lambda: token_units('a\nb', [0, 0], [4]), r'0 \.\. 3, got 4'),
        (lambda: token_units('a\nb', [0, 0], [-1]), 'got -1'),
        (lambda: hierarchical_ids(jnp.ones(3)), 'integers .*float32'),
        (
            lambda: run(encoding(), pj.Tokens.of(positions=jnp.zeros((1, 5, 2))), *qkv(5)),
            r'\(flat, tok, F\), got \(1, 5, 2\)',
        ),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    'spec, message',
    [
        ('hirope(encoding=alibi())', 'rotary encoding, got alibi'),
        ('hirope(encoding=rope(freqs=dynamic_ntk()))', 'do not depend on the current length'),
        ('hirope(encoding=rope(), window=-1)', 'at least 0, got -1'),
        ('hirope(encoding=rope(), split=5)', 'between 0 and the 4 planes of the encoding, got 5'),
        ('hirope(encoding=rope(), split=-1)', 'got -1'),
        ('hirope(encoding=rope(), level="relative")', 'level'),
        ('hirope()', 'extends another encoding'),
    ],
)
def test_errors(spec, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, head_dim=8, heads=2, train_len=64)


def test_it_is_causal_only():
    with pytest.raises(SpecError, match='hirope is defined for causal attention only'):
        pj.make('hirope(encoding=rope())', head_dim=8, causal=False)
