"""VideoRoPE and HoPE for video: pairs and positions by hand, loops, the draw of strides, and what
the pairs that do not turn keep.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.methods.multimodal_rotary import component_reads
from posenc_jax.methods.videorope import STRIDES
from posenc_jax.methods.visual_layout import visual_tokens
from tests.golden_files import golden_suite
from tests.methods.multimodal import (
    EXAMPLE,
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

FRAMES = (2, (2, 1, 1), 1)


test_golden = golden_suite('videorope') | {
    'base': lambda: make('videorope()').base,
    'reads': lambda: component_reads('low_frequency_time', (4, 2, 2), 8).argmax(-1),
    **axes('example', 'videorope()', *EXAMPLE),
    'two_frames.t': lambda: placed('videorope()', *FRAMES)[:, 0],
    'mean_cos': (lambda: mean_cos('videorope()', [10_000])[0], {'atol': 6e-4}),
}
test_golden_hope = golden_suite('hope_video') | {
    'base': lambda: make('hope_video(stride=1.0)').base,
    't': lambda: placed('hope_video(stride=0.75)', 4, (3, 1, 1), 1)[:, 0],
    'strides': lambda: STRIDES,
}


@pytest.mark.parametrize('spec', ['videorope()', 'hope_video(stride=0.75)'])
def test_positions_and_turned_keys_are_those_of_loops(spec):
    check_against_loops(spec)


def test_the_time_never_returns():
    distances = range(0, 20_001, 100)
    falling = mean_cos('videorope()', distances)
    by_loop = [np.mean([np.cos(1e6 ** (-k / 64) * d) for k in range(48, 64)]) for d in distances]
    np.testing.assert_allclose(falling, by_loop, atol=1e-6)
    assert max(np.diff(falling)) < 0


def test_text_goes_on_behind_the_time_alone():
    ids = placed('videorope()', 1, (1, 9, 9), 1)
    assert ids[-1].tolist() == [2, 2, 2] and ids[:, 1:].min() == 1 - 4


def test_all_pairs_of_time_are_no_encoding():
    part = make('hope_video(stride=1.0, sections=(8, 0, 0))')
    tok = part.place(visual_tokens(*MIXED))
    q = jnp.asarray(draw(0, 1, tok.length, 4, 16))
    np.testing.assert_array_equal(part.project(q, q[:, :, :2], q, tok, tok)[0], q)


def test_text_alone_is_rope_in_the_pairs_that_turn():
    (line, three), expected = text_turned('hope_video(stride=1.0)', [*range(9)])
    np.testing.assert_array_equal(line, three)
    turn, rest = [*range(6), *range(8, 14)], [6, 7, 14, 15]  # pairs (k, k + 8)
    np.testing.assert_array_equal(line[..., turn], expected[..., turn])
    np.testing.assert_array_equal(line[..., rest], draw(2, 1, 9, 4, 16)[..., rest])


def test_what_time_pairs_say_is_the_same_at_any_distance():
    """The part of q . k that comes from the pairs of time, of two frames far apart."""
    part, q = make('hope_video(stride=1.5)'), np.tile(draw(1, 1, 1, 4, 16), (1, 9, 1, 1))
    tok = part.place(visual_tokens((9, 1, 1)))
    turned = np.asarray(part.project(jnp.asarray(q), q[:, :, :2], q, tok, tok)[0])
    rest = [6, 7, 14, 15]
    products = (turned[:, :, :, rest] * turned[:, :1, :, rest]).sum(-1)
    assert (products == products[:, :1]).all() and (products > 0).all()


def test_training_draws_a_stride_for_each_video():
    part, tok = make('hope_video(stride=1.0)'), visual_tokens(1, (3, 1, 2), 1, (2, 2, 1), 2)
    tok = jax.tree.map(lambda a: jnp.repeat(a, 400, axis=0), tok)
    ids = np.asarray(part.place(tok, key=jax.random.key(0)).pos)
    np.testing.assert_array_equal(ids, part.place(tok, key=jax.random.key(0)).pos)
    first, second = ids[:, 3, 0] - ids[:, 1, 0], ids[:, 10, 0] - ids[:, 8, 0]
    for row in range(20):
        alone = [
            walk((1, (3, 1, 2), 1), 'diagonal', first[row]),
            walk(((2, 2, 1), 2), 'diagonal', second[row]) + ids[row, 8, 0],
        ]
        np.testing.assert_array_equal(ids[row], np.concatenate(alone))
    together = np.array([[((first == a) & (second == b)).mean() for a in STRIDES] for b in STRIDES])
    assert together.sum() == pytest.approx(1)
    np.testing.assert_allclose(together, 1 / 25, atol=4 * (1 / 25 / 400) ** 0.5)


test_wrong_calls = refused() | {
    r'videorope: sections \(3, 3, 2\): .* by turns, .* nearest is \(4, 2, 2\)': (
        lambda: make('videorope(sections=(3, 3, 2))')
    ),
    'stride must be positive, got -1.0': lambda: make('hope_video(stride=-1.0)'),
    "hope_video needs 'stride'": lambda: make('hope_video()'),
}
