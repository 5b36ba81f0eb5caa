"""MRoPE, MRoPE-Interleave and MHRoPE: positions and pairs by hand, loops over tokens and pairs,
text alone, layouts, decoding, and what is refused.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
import posenc_jax.functional as F
from posenc_jax.methods.multimodal_rotary import component_reads
from posenc_jax.methods.visual_layout import visual_layout, visual_tokens
from posenc_jax.methods.visual_positions import DESIGNS, check_layout
from tests.golden_files import golden, golden_suite
from tests.methods.models import model_of, read
from tests.methods.multimodal import (
    EXAMPLE,
    KEYS,
    MIXED,
    axes,
    check_against_loops,
    make,
    mean_cos,
    placed,
    text_turned,
    walk,
)
from tests.methods.pairs import draw
from tests.refusals import refused

GOLDEN = golden('mrope')['values']
VIDEO = (3, 1, 2, 0.5)  # half a second a frame


TIMES = {
    'chunked': ('mrope()', [*range(16)]),
    'interleaved': ('mrope(frequencies="interleaved")', [*range(0, 58, 3), 60, 61, 62, 63]),
    'rope': ('mrope(sections=(64, 0, 0))', [*range(64)]),
}


@pytest.mark.parametrize('spec, pairs', TIMES.values(), ids=TIMES)
def test_means_of_cosines_are_those_of_a_loop(spec, pairs):
    distances = GOLDEN['distances']
    by_loop = [np.mean([np.cos(1e6 ** (-k / 64) * d) for k in pairs]) for d in distances]
    np.testing.assert_allclose(mean_cos(spec, distances), by_loop, atol=1e-6)


test_golden = golden_suite('mrope') | {
    **axes('example', 'mrope()', *EXAMPLE),
    'delta': lambda: make('mrope()').delta(visual_tokens(*EXAMPLE))[0],
    'seconds.t': lambda: placed('mrope()', 1, VIDEO, 1)[:, 0],
    'seconds.third': lambda: placed('mrope()', 1, (4, 1, 1, 1 / 3))[:, 0],
    'mean_cos.*': (lambda _, name: mean_cos(TIMES[name][0], GOLDEN['distances']), {'atol': 6e-4}),
    'largest_return': (lambda: mean_cos('mrope()', range(50, 2001)).max(), {'atol': 6e-4}),
}
test_golden_interleaved = golden_suite('mrope_interleaved') | {
    'base': lambda: make('mrope_interleaved()').base,
    'reads': lambda: component_reads('interleaved', (4, 2, 2), 8).argmax(-1),
    'h_pairs': lambda: np.flatnonzero(component_reads('interleaved', (24, 20, 20), 64)[:, 1]),
    'w_pairs': lambda: np.flatnonzero(component_reads('interleaved', (24, 20, 20), 64)[:, 2]),
    **axes('reset', 'mrope_interleaved(positions="spatial_reset")', *EXAMPLE),
}


def of_heads(heads, kv_heads, sections=None):
    part = make(f'mhrope(sections={sections})', heads=heads, kv_heads=kv_heads)
    turning = part.q_heads[...][:, 0]
    return part, np.where(turning.sum(-1) > 0, turning.argmax(-1), -1)


test_golden_heads = golden_suite('mhrope') | {
    'base': lambda: of_heads(16, 8)[0].base,
    'sections': lambda: of_heads(16, 8)[0].sections,
    'reads_of_queries': lambda: of_heads(16, 8)[1],
    'left_over': lambda: of_heads(4, 4, (1, 1, 1))[1],
}


@pytest.mark.parametrize('spec', [*KEYS][:3])
def test_positions_and_turned_keys_are_those_of_loops(spec):
    check_against_loops(spec)


WHOLE_ROPE = [
    *('mrope()', 'mrope_interleaved()', 'mrope_interleaved(positions="spatial_reset")'),
    *('videorope()', 'circlerope()', 'mhrope(sections=(1, 1, 0))'),
    *('mrope(positions="circle", frequencies="low_frequency_time")',),
]


@pytest.mark.parametrize('spec', WHOLE_ROPE)
def test_text_alone_is_rope_bit_for_bit(spec):
    for pos in (range(9), range(70_000, 70_009)):
        turned, expected = text_turned(spec, [*pos])
        for own in turned:
            np.testing.assert_array_equal(own, expected)
    tok = pj.Tokens.of(length=5)
    assert make(spec).place(tok) is tok


def test_text_of_a_layout_is_rope_bit_for_bit_in_a_model():
    ids = jnp.array([[3, 1, 4, 1, 5, 9]])
    plain = read(model_of('rope(base=1000000.0)'), ids)
    np.testing.assert_array_equal(read(model_of('mrope()'), ids), plain)
    np.testing.assert_array_equal(read(model_of('mrope()'), ids, visual_tokens(6)), plain)
    with_picture = read(model_of('mrope()'), ids, visual_tokens(1, (2, 2), 1))
    assert np.abs(with_picture - plain).max() > 1e-3


@pytest.mark.parametrize('spec', [*KEYS, *(f'mrope(positions="{own}")' for own in DESIGNS)])
def test_text_of_a_layout_counts(spec):
    np.testing.assert_array_equal(placed(spec, 4, 5), np.arange(9).repeat(3).reshape(9, 3))


def test_one_component_of_all_pairs_hides_the_cells_of_a_picture():
    part = make('mrope(sections=(8, 0, 0))')
    tok = part.place(visual_tokens(1, (2, 3), 1))
    q = jnp.tile(jnp.asarray(draw(0, 1, 1, 4, 16)), (1, tok.length, 1, 1))
    turned = np.asarray(part.project(q, q[:, :, :2], q, tok, tok)[0])
    assert (turned[:, 1:7] == turned[:, 1:2]).all() and (turned[:, 7] != turned[:, 6]).any()


def test_a_head_that_is_left_does_not_turn_and_a_group_is_not_cut():
    part, _ = of_heads(8, 4, (1, 1, 1))
    tok = part.place(visual_tokens(*MIXED))
    q = jnp.asarray(draw(3, 1, tok.length, 8, 16))
    turned, keys, *_ = part.project(q, q[:, :, ::2], q, tok, tok)
    np.testing.assert_array_equal(turned[:, :, 6:], q[:, :, 6:])
    np.testing.assert_array_equal(turned[:, :, ::2], keys)
    assert (np.asarray(turned[:, 1:, :6]) != q[:, 1:, :6]).any(axis=(0, 1, 3)).all()


@pytest.mark.parametrize('design', ['mrope', 'spatial_reset'])
def test_a_stride_may_be_fractional_and_the_maximum_runs_over_all_components(design):
    for stride, segments in ((0.75, MIXED), (3.0, (1, (4, 2, 2), 2)), (1.0, (1, (9, 2, 2), 2))):
        own = placed(f'mrope(positions="{design}", stride={stride})', *segments)
        np.testing.assert_allclose(own, walk(segments, design, stride), rtol=1e-6)
        assert np.issubdtype(own.dtype, np.integer) == stride.is_integer()
    reset, plain = (placed(f'mrope(positions="{p}")', *MIXED) for p in ('spatial_reset', 'mrope'))
    np.testing.assert_array_equal(reset[:, 0], plain[:, 0])  # text goes on at the same place


def test_seconds_are_read_where_tokens_have_a_rate():
    segments = (1, (4, 2, 2, 0.75), 1, (2, 1, 1), 1)
    for spec, rate in (('mrope()', 2.0), ('mrope(tokens_per_second=None)', None)):
        np.testing.assert_array_equal(placed(spec, *segments), walk(segments, per_second=rate))


def test_packed_documents_and_padding_start_anew():
    one, two = (2, (2, 3), 1, (1, 2)), ((2, 2), 3)
    layout = np.concatenate([visual_layout(*one), visual_layout(*two)])
    segment = np.repeat([[0, 1]], [len(walk(one)), len(walk(two))], axis=1)
    for spec, design in (('mrope()', 'mrope'), ('circlerope()', 'circle')):
        tok = pj.Tokens.of(positions=layout[None], segment=segment)
        both = np.concatenate([walk(one, design), walk(two, design)])
        np.testing.assert_allclose(make(spec).place(tok).pos[0], both, atol=2e-5)
        padded = np.pad(layout[: len(walk(one))], ((3, 0), (0, 0)), mode='edge')
        valid = np.arange(len(padded))[None] >= 3
        left = make(spec).place(pj.Tokens.of(positions=padded[None], valid=valid)).pos[0]
        np.testing.assert_allclose(left[3:], walk(one, design), atol=2e-5)


@pytest.mark.parametrize('spec', KEYS)
def test_no_position_depends_on_what_follows(spec):
    layout, whole = visual_layout(*MIXED), placed(spec, *MIXED)
    for cut in (4, 11, 20):
        other = np.concatenate([layout[:cut], visual_layout(*EXAMPLE)])
        cut_off = make(spec).place(pj.Tokens.of(positions=other[None])).pos[0]
        np.testing.assert_array_equal(cut_off[:cut], whole[:cut])


@pytest.mark.parametrize('spec', KEYS)
def test_delta_gives_new_text_its_position(spec):
    part = make(spec)
    longer = placed(spec, *MIXED, 5)
    tok = visual_tokens(*MIXED)
    delta = np.asarray(part.delta(tok))[0]
    expected = np.arange(tok.length, tok.length + 5)[:, None] + delta
    np.testing.assert_allclose(longer[tok.length :], np.repeat(expected, 3, axis=1), rtol=1e-6)
    assert part.delta(pj.Tokens.of(length=7)).tolist() == [0]
    np.testing.assert_allclose(part.delta(part.place(tok)), [delta], rtol=1e-6)
    picture = visual_tokens(*MIXED, (2, 5))  # at the end, where times are not the largest
    np.testing.assert_allclose(part.delta(part.place(picture)), part.delta(picture), rtol=1e-6)


def test_positions_of_three_components_are_taken_as_they_are():
    tok = pj.Tokens.of(positions=walk(MIXED)[None])
    assert make('mrope()').place(tok) is tok


def test_far_positions_keep_their_phases():
    far = 4_000_000
    layout = visual_layout(*MIXED)
    moved = dataclasses.replace(
        visual_tokens(*MIXED), pos=jnp.asarray(layout + far * np.eye(6, dtype=np.int32)[0])[None]
    )
    part, k = make('mrope()'), jnp.asarray(draw(5, 1, len(layout), 2, 16))
    logits = []
    for tok in (visual_tokens(*MIXED), moved):
        tok = part.place(tok)
        q, turned, *_ = part.project(jnp.repeat(k, 2, axis=2), k, k, tok, tok)
        logits.append(np.einsum('tnh,snh->nts', q[0, :, ::2], turned[0]))
    np.testing.assert_allclose(*logits, atol=2e-5)


def at_call(spec, layout):
    return lambda: make(spec).place(pj.Tokens.of(positions=np.asarray(layout)[None]))


def cell(**changed):
    names = ('count', 'frame', 'row', 'column', 'rows', 'columns')
    return [[{**dict.fromkeys(names, 0), 'rows': 2, 'columns': 2, **changed}[n] for n in names]]


test_wrong_options = refused() | {
    r'mrope: sections \(2, 2, 2\) are 6, expected 8, half .*nearest is \(4, 2, 2\)': lambda: make(
        'mrope(sections=(2, 2, 2))'
    ),
    r'sections \(1, 9, 9\) are 19, .*nearest is \(2, 3, 3\)': lambda: make(
        'mrope(sections=(1, 9, 9))'
    ),
    'must be even and at least 2, got 15': lambda: make('mrope()', head_dim=15),
    'at least 0, got -1': lambda: make('mrope(sections=(9, -1, 0))'),
    '2 pairs are fewer than the three components': lambda: make('mrope()', head_dim=4),
    'mhrope: 2 key heads are fewer than the three': lambda: make('mhrope()'),
    r'sections \(1, 1, 1\) are 3, expected at most 2, the key heads': lambda: make(
        'mhrope(sections=(1, 1, 1))'
    ),
    r'at most 3 read h and 2 read w; the nearest is \(3, 3, 2\)': lambda: make(
        'mrope_interleaved(sections=(2, 3, 3))'
    ),
    "did you mean 'chunked'": lambda: make('mrope(frequencies="chunks")'),
    "did you mean 'spatial_reset'": lambda: make('mrope(positions="reset")'),
    'stride must be positive, got 0.0': lambda: make('mrope(stride=0.0)'),
    'base of rotary frequencies, must be at least 1': lambda: make('mrope(base=0.5)'),
}
test_wrong_layouts = refused() | {
    r'a video has at least one frame and .*column, got \(0, 2, 2\)': lambda: visual_layout(
        1, (0, 2, 2)
    ),
    'a picture has at least one row': lambda: visual_layout((0, 2)),
    'a text has at least one token, got 0': lambda: visual_layout(0),
    'a segment is n for text': (lambda: visual_layout('2'), lambda: visual_layout((1,))),
    'at least one segment': lambda: visual_layout(),
    'the seconds of a frame must be positive and finite, got -1': lambda: visual_layout(
        (2, 2, 2, -1)
    ),
    'at most 16777216 tokens, got 17179869184': lambda: visual_layout((2**17, 2**17)),
    r'needs positions \[B, L\], all text, .* got \(1, 1, 2\)': at_call('mrope()', [[0, 1]]),
    'row 2 of a token whose picture has 2 rows': at_call('mrope()', cell(row=2)),
    'the frame of a token is -1; 0 is the least': at_call('mrope()', cell(frame=-1)),
    'the row of a token must be a whole number': at_call('mrope()', cell(row=0.5)),
    'this: the seconds of a frame must be finite': (
        lambda: check_layout('this', np.array([[[0, 0, 0, 0, 1, 1, np.inf]]])),
        lambda: check_layout('this', np.array([[[0, 0, 0, 0, 1, 1, np.nan]]])),
    ),
    'column 1 of a token whose picture has 0 columns': at_call(
        'mrope()', cell(column=1, rows=0, columns=0)
    ),
    'built for head_dim=16, got vectors of width 8': lambda: make('mrope()').turned(
        jnp.ones((1, 1, 4, 8)), jnp.zeros((1, 1), jnp.int32), None
    ),
    'call `place` first': lambda: make('mrope()').project(
        *[jnp.ones((1, 1, 4, 16))] * 3, *[visual_tokens(1)] * 2
    ),
}


def test_traced_layouts_are_not_checked():
    jax.eval_shape(lambda layout: check_layout('mrope', layout), jnp.full((1, 2, 6), -1))


OWN_FUNCTIONS = 'mrope', 'mrope_interleaved', 'mhrope', 'videorope', 'hope_video'


@pytest.mark.parametrize('key', OWN_FUNCTIONS)
def test_the_function_of_a_method_turns_as_the_encoding_does(key):
    spec = f'{key}(stride=1.0)'  # which these positions do not read
    encoding = pj.make(spec, head_dim=16, heads=8, kv_heads=4)
    q, k = (draw(n, 1, 6, heads, 16) for n, heads in enumerate((8, 4)))
    pos = jnp.asarray(np.random.default_rng(0).integers(0, 50, (1, 6, 3)))
    tok = pj.Tokens.of(positions=pos)
    turned = encoding.project(q, k, k, tok, tok)[:2]
    own = {'kv_heads': 4} if key == 'mhrope' else {}
    for x, expected in zip((q, k), turned):
        np.testing.assert_array_equal(getattr(F, key)(x, pos, **own), expected)
