"""The position code of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: positions, what decoding adds, rotations,
and where a newer release of the code differs.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.visual_layout import visual_layout, visual_tokens
from tests.golden_files import golden, golden_suite
from tests.methods.multimodal import make, placed

SPECS = {'qwen2_vl': 'mrope()', 'qwen2_5_vl': 'mrope()', 'qwen3_vl': 'mrope_interleaved()'}
POSITIONS, ROTARY = golden('qwen_vl_positions'), golden('qwen_vl_rotary')
segments_of = lambda row: [tuple(s) if isinstance(s, list) else s for s in row['segments']]


def axis(number):
    return lambda row, model, _: placed(SPECS[model], *segments_of(row))[:, number]


def delta(row, model, _):
    return make(SPECS[model]).delta(visual_tokens(*segments_of(row)))[0]


test_golden_positions = golden_suite('qwen_vl_positions') | {
    **{f'positions.*.*.{name}': axis(number) for number, name in enumerate('thw')},
    'positions.*.*.delta': delta,
}


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('model', SPECS)
def test_a_batch_with_padding_on_one_side_has_the_positions_of_its_rows(model, side):
    rows = POSITIONS['batch']
    layouts = [visual_layout(*segments_of(row)) for row in rows]
    length = max(map(len, layouts))
    pads = [(length - len(own), 0) if side == 'left' else (0, length - len(own)) for own in layouts]
    layout = np.stack([np.pad(own, (pad, (0, 0))) for own, pad in zip(layouts, pads)])
    valid = np.stack([np.pad(np.ones(len(own), bool), pad) for own, pad in zip(layouts, pads)])
    found = np.asarray(make(SPECS[model]).place(pj.Tokens.of(positions=layout, valid=valid)).pos)
    for own, row, seen in zip(found, rows, valid):
        np.testing.assert_array_equal(own[seen].T, [row[name] for name in 'thw'])


@pytest.mark.parametrize('model', POSITIONS['newer'])
def test_text_behind_a_long_video_is_behind_its_times_where_a_newer_release_repeats_them(model):
    row = POSITIONS['newer'][model]
    theirs = np.stack([row[name] for name in 'thw'], axis=1)
    ours, text = placed(SPECS[model], *segments_of(row)), row['segments'][-1]
    np.testing.assert_array_equal(ours[:-text], theirs[:-text])
    assert theirs[-text, 0] <= theirs[:-text].max() < ours[-text, 0] == ours[:-text].max() + 1
    np.testing.assert_array_equal(np.diff(ours[-text:], axis=0), np.diff(theirs[-text:], axis=0))


def turned(name):
    def of(row):
        spec = f'mrope(frequencies={row["frequencies"]!r}, sections={tuple(row["sections"])}, '
        encoding = make(f'{spec}base={row["base"]})')
        x, pos = jnp.asarray(ROTARY[name]), jnp.asarray(ROTARY['positions'])
        return encoding.turned(x[None, :, None], pos[None], None)[0, :, 0]

    return of


def of_pairs(spec, half):
    """The cosines (half 0) and the sines of the angles of the pairs, of width 128 by default."""

    def of():
        x = jnp.zeros((1, 1, 1, 128)).at[..., :64].set(1.0)
        found = make(spec, head_dim=128).turned(x, jnp.array([[[3, 5, 7]]]), None)
        return found[0, 0, 0, 64 * half : 64 * (half + 1)]

    return of


test_golden_rotary = golden_suite('qwen_vl_rotary', atol=1e-5) | {
    **{f'{own}.{name}': turned(name) for own in ('chunked', 'interleaved') for name in 'qk'},
    'chunked_128.cos': of_pairs('mrope()', 0),
    'chunked_128.sin': of_pairs('mrope()', 1),
    'interleaved_128.cos': of_pairs('mrope_interleaved()', 0),
    'interleaved_128.sin': of_pairs('mrope_interleaved()', 1),
}
