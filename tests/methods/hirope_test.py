"""HiRoPE: the two levels of the sheet, the defining dense form against tiles, limits, decoding, and
how units are found.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.methods.hirope import (
    hirope_ids,
    line_units,
    paragraph_units,
    python_units,
    token_units,
)
from posenc_jax.methods.rope import rope_frequencies
from tests.golden_files import golden, golden_suite
from tests.methods.by_distance import ROTARY, WIDTH, qkv, run
from tests.methods.models import decoded, model_of, read, text
from tests.methods.pair_logits import logits
from tests.refusals import refused

GOLDEN = golden('hirope')['values']
WINDOW, SPLIT = GOLDEN['window'], GOLDEN['split']
UNITS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 5, 5, 5, 5, 5, 5])


THETA = rope_frequencies(WIDTH, 1e4)


def encoding(window=WINDOW, inner='rope()', **options):
    more = ''.join(f', {name}={value!r}' for name, value in options.items())
    return pj.make(f'hirope(encoding={inner}, window={window}{more})', head_dim=WIDTH, causal=True)


def tokens(units=UNITS, **options):
    ids = hirope_ids(jnp.asarray(units)[None])
    positions = jnp.stack([jnp.arange(len(units))[None], *ids], axis=-1)
    return pj.Tokens.of(positions=positions, **options)


def turns(tok, window=WINDOW, split=SPLIT, level='reset'):
    """A_i - A_j of every pair and plane [T, S, planes], in float64, from the definition."""
    flat, offset, unit = np.moveaxis(np.asarray(tok.pos[0], np.float64), -1, 0)
    gap = lambda p: np.subtract.outer(p, p)[..., None]
    token = gap(offset if level == 'reset' else flat)
    far = np.where(np.arange(WIDTH // 2) < split, token, gap(unit))
    return np.where(gap(flat) < window, gap(flat), far) * THETA


def pairwise(q, k, turn):
    """Logits [T, S] of rows q, k, layout 'half': `(qa ka + qb kb) cos + (qa kb - qb ka) sin` summed
    over planes.
    """
    (qa, qb), (ka, kb) = (np.split(np.asarray(a, np.float64), 2, axis=-1) for a in (q, k))
    qa, qb, ka, kb = qa[:, None], qb[:, None], ka[None], kb[None]
    s = (qa * ka + qb * kb) * np.cos(turn) + (qa * kb - qb * ka) * np.sin(turn)
    return s.sum(-1) / WIDTH**0.5


def defined(q, k, v, turn):
    """Causal softmax attention with the logits of `pairwise`, in float64."""
    length, group = q.shape[1], q.shape[2] // k.shape[2]
    past, outs = np.tril(np.ones((length, length), bool)), []
    for head in range(q.shape[2]):
        s = pairwise(q[0, :, head], k[0, :, head // group], turn)
        w = np.where(past, np.exp(s), 0.0)
        outs.append(w / w.sum(-1, keepdims=True) @ np.asarray(v[0, :, head // group], np.float64))
    return np.stack(outs, axis=1)[None]


test_golden = golden_suite('hirope') | {
    'tok': lambda golden: hirope_ids(jnp.asarray(golden['units']))[0],
    'F': lambda golden: hirope_ids(jnp.asarray(golden['units']))[1],
    'row_reset': (lambda: last_row('reset'), {'atol': 1e-6}),
    'row_absolute': (lambda: last_row('absolute'), {'atol': 1e-6}),
}


def test_the_names_of_units_do_not_matter():
    renamed = hirope_ids(jnp.asarray([[7, 7, 7, 3, 3, 7], [0, 0, 0, 1, 1, 2]]))
    assert renamed[0].tolist() == [GOLDEN['tok']] * 2 and renamed[1].tolist() == [GOLDEN['F']] * 2


def last_row(level):
    ones, tok = jnp.ones((1, len(GOLDEN['row_units']), 1, WIDTH)), tokens(GOLDEN['row_units'])
    return logits(encoding(split=SPLIT, level=level), ones, ones, tok)[0, 0, -1]


@pytest.mark.parametrize(
    'split, level', [(0, 'reset'), (1, 'reset'), (4, 'reset'), (3, 'absolute')]
)
def test_split_says_how_many_planes_are_the_tokens(split, level):
    arrays = qkv(19, kv_heads=2)
    out = run(encoding(split=split, level=level), tokens(), *arrays, block=(5, 3))
    expected = defined(*arrays, turns(tokens(), split=split, level=level))
    np.testing.assert_allclose(out, expected, atol=2e-6)


@pytest.mark.parametrize('tok', [tokens(), pj.Tokens.of(length=19)], ids=['units', 'flat'])
def test_a_window_beyond_the_length_is_the_plain_encoding(tok):
    arrays, inner = qkv(19), pj.make(ROTARY, head_dim=WIDTH, causal=True)
    plain = run(inner, pj.Tokens.of(length=19), *arrays)
    out = run(encoding(window=20, inner=ROTARY), tok, *arrays)
    np.testing.assert_allclose(out, plain, atol=1e-6)


def test_one_unit_with_absolute_positions_is_rope_on_the_fast_planes_and_still_on_the_others():
    part, flat = encoding(window=0, level='absolute').parts[0], pj.Tokens.of(length=19)
    angles, _ = part.hierarchical_angles(tokens(np.zeros(19, int)))
    plain, _ = part.encoding.angles(flat.pos)
    np.testing.assert_array_equal(angles[..., :SPLIT], plain[..., :SPLIT])
    assert not angles[..., SPLIT:].any()
    np.testing.assert_array_equal(part.hierarchical_angles(flat)[0], angles)


def test_both_counters_stay_within_the_trained_length_where_their_product_does_not():
    """The claim of the paper: 40 functions of 40 tokens reach 1600 tokens, and no counter 40."""
    tok = tokens(np.repeat(np.arange(40), 40))
    assert tok.pos[0, :, 0].max() == 40**2 - 1
    assert tok.pos[0, :, 1:].max() == 39 and tok.pos.min() == 0


def test_a_tile_on_one_side_of_the_window_reads_one_set_of_keys():
    part, tok = encoding().parts[0], pj.Tokens.of(length=12)
    q, k, _, tq, tk = part.project(*qkv(12), tok, tok)
    nan = lambda a: jnp.full_like(a, jnp.nan)
    spoil = lambda tok: tok.without_feats().with_feats(hirope=nan(tok.feats['hirope']))

    def tile(q, k, tq, tk, rows, columns):
        cut = lambda a, at: a.swapaxes(1, 2)[:, :, at : at + 4]
        tokens = tq.slice(rows, 4), tk.slice(columns, 4)
        return pair_logits(part, cut(q, rows), cut(k, columns), *tokens, ())[0]

    assert np.isfinite(tile(q, k, spoil(tq), spoil(tk), 0, 0)).all()  # near
    assert np.isfinite(tile(nan(q), nan(k), tq, tk, 8, 0)).all()  # far
    edge = np.isfinite(tile(q, k, spoil(tq), tk, 4, 0))
    assert edge.any() and not edge.all()


@pytest.mark.full
def test_packed_documents_and_padding_with_units():
    arrays, tok = qkv(11), tokens(UNITS[:11])
    alone = run(encoding(), tok, *arrays)
    twice = lambda a: jnp.concatenate([a, a], 1)
    packed = pj.Tokens.of(positions=twice(tok.pos), segment=np.repeat([[0, 1]], 11, axis=1))
    out = run(encoding(), packed, *map(twice, arrays), block=(4, 4))
    np.testing.assert_allclose(out, twice(alone), atol=1e-6)
    padded = [jnp.pad(a, ((0, 0), (3, 0), (0, 0), (0, 0)), constant_values=5.0) for a in arrays]
    positions, valid = jnp.pad(tok.pos, ((0, 0), (3, 0), (0, 0))), np.arange(14)[None] >= 3
    shifted = pj.Tokens.of(positions=positions, valid=valid)
    out = run(encoding(), shifted, *padded, block=(4, 4))
    np.testing.assert_allclose(out[:, 3:], alone, atol=1e-6)


@pytest.mark.full
def test_it_is_switched_on_in_a_trained_model_and_decodes():
    model, ids, tok = model_of('rope()'), text(1, 12), tokens(UNITS[:12])
    near, far = model.extend('hirope(window=12)'), model.extend('hirope(window=4)')
    plain, hierarchical = read(model, ids), read(far, ids, tok)
    np.testing.assert_allclose(read(near, ids, tok), plain, atol=1e-6)
    assert np.abs(hierarchical - plain)[:, 4:].max() > 1e-3
    np.testing.assert_allclose(decoded(far, ids, 6, tok), hierarchical, atol=1e-5)


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
    for end in ('\n', '\r\n', '\r'):
        assert python_units(SOURCE.replace('\n', end)) == LINES
    assert python_units('') == [0]
    assert python_units('\n\ndef f(): pass\ndef g(): pass') == [0, 0, 0, 1]


def test_units_of_lines_agree_where_strings_do_not_look_like_code():
    plain = SOURCE.replace('def not_a', 'not_a').replace('no indentation', '    no indentation')
    assert line_units(plain) == python_units(plain) == LINES
    assert line_units(SOURCE) != LINES
    decorated = '    return 1\ndefault = 2\n@x\n# why\nclass A:\n  pass\n@y\nz = 1'
    assert line_units(decorated) == [0, 1] + [2] * 4 + [3, 3]


def test_this_repository_reads_the_same_by_tree_and_by_line():
    text = Path(pj.methods.dca.__file__).read_text(encoding='utf-8')
    assert python_units(text) == line_units(text) and max(python_units(text)) > 2


def test_paragraphs_and_tokens():
    text = '\none\nstill one\n\n \ntwo\n'
    assert paragraph_units(text) == [0, 0, 0, 0, 0, 1, 1]
    starts = [0, 1, 5, text.index('two') - 1, text.index('two'), len(text)]
    assert token_units(text, paragraph_units(text), starts) == [0, 0, 0, 0, 1, 1]
    assert token_units('a\r\ndef f(): x', [4, 9], [0, 1, 2, 3]) == [4, 4, 4, 9]


test_wrong_calls = refused() | {
    'line 2 does not parse: .*line_units takes any text': lambda: python_units('x = 1\ndef f(:\n'),
    'does not parse': lambda: python_units('x = "\0"'),
    '2 lines, got units of 1': lambda: token_units('a\nb', [0], [0]),
    r'0 \.\. 3, got 4': lambda: token_units('a\nb', [0, 0], [4]),
    'got -1': lambda: token_units('a\nb', [0, 0], [-1]),
    'integers .*float32': lambda: hirope_ids(jnp.ones(3)),
    r'\(flat, tok, F\), got \(1, 5, 2\)': lambda: run(
        encoding(), pj.Tokens.of(positions=jnp.zeros((1, 5, 2))), *qkv(5)
    ),
}
