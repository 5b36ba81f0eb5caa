"""Circle-RoPE: a picture of 2 x 2 by hand, loops over cells, distances to text, what its options
do, and a model whose layers have different positions.
"""

import numpy as np
import pytest

from posenc_jax.methods.circlerope import age_pattern
from posenc_jax.methods.visual_layout import visual_tokens
from tests.golden_files import golden_suite
from tests.methods.models import decoded, model_of, read, text
from tests.methods.multimodal import KEYS, MIXED, axes, check_against_loops, make, placed, walk
from tests.refusals import refused


def distances(spec, rows=2, columns=2, s=7):
    """From (s, s, s) to the cells of a picture at the beginning of a text."""
    cells = placed(spec, (rows, columns))
    return np.linalg.norm(cells - s, axis=1)


def golden_axes():
    return {name.removeprefix('.'): row for name, row in axes('', 'circlerope()', (2, 2)).items()}


test_golden = golden_suite('circlerope', atol=6e-5) | {
    'base': lambda: make('circlerope()').base,
    **golden_axes(),
    'distance': lambda: distances('circlerope()'),
    'next': lambda: placed('circlerope()', (2, 2), 1)[-1],
}


def test_positions_and_turned_keys_are_those_of_loops():
    check_against_loops('circlerope()')


PICTURES = [(1, 1), (1, 4), (5, 1), (4, 1), (3, 3), (4, 3), (3, 4), (6, 5)]


@pytest.mark.parametrize(
    'spec, given',
    [
        ('circlerope()', {}),
        ('circlerope(alpha=1.0, radius=3.0)', dict(alpha=1.0, radius=3.0)),
        ('circlerope(alpha=0.0)', dict(alpha=0.0)),
        ('circlerope(auto=True)', dict(auto=True, radius=1.0)),
        ('circlerope(auto=True, radius=2.0)', dict(auto=True, radius=2.0)),
        ('circlerope(move_to_origin=False)', dict(move=False)),
        (
            'circlerope(auto=True, radius=1.0, move_to_origin=False)',
            dict(auto=True, radius=1.0, move=False),
        ),
        ('circlerope(dff_rate=0.25)', dict(dff_rate=0.25)),
        ('circlerope(dff_rate=1.0)', dict(dff_rate=1.0)),
    ],
)
def test_options_are_those_of_a_loop_over_cells(spec, given):
    segments = [part for size in PICTURES for part in (size, 1)] + [(2, 2, 3), 1]
    np.testing.assert_allclose(
        placed(spec, *segments), walk(segments, 'circle', **given), atol=2e-5, rtol=1e-6
    )


def test_every_token_of_text_has_one_distance_to_all_cells():
    for size in ((3, 4), (1, 6)):
        own = distances('circlerope()', *size)
        np.testing.assert_allclose(own, (100 + 3 * 7**2) ** 0.5, rtol=1e-6)
        assert distances('mrope()', *size).std() > 0.1
        np.testing.assert_allclose(placed('circlerope()', size).sum(-1), 0, atol=1e-5)


def test_cells_on_one_ray_have_one_position_if_their_order_does_not_count():
    ids = placed('circlerope(alpha=1.0)', (2, 2))
    np.testing.assert_allclose(ids[0], ids[2], atol=1e-5)  # the least and the largest angle
    flat = placed('circlerope(alpha=1.0)', (5, 5)).reshape(5, 5, 3)
    np.testing.assert_allclose(flat[0, 4], flat[1, 3], atol=1e-5)
    cells = placed('circlerope()', (5, 5))
    gaps = np.linalg.norm(cells[:, None] - cells[None], axis=-1) + 9 * np.eye(25)
    assert gaps.min() > 0.1


def test_the_circle_goes_with_any_frequencies_and_any_key_may_have_it():
    for spec in KEYS:
        name = spec.split('(')[0]
        if name != 'circlerope':
            arguments = spec.removeprefix(f'{name}(').removesuffix(')')
            own = f'{name}(positions="circle"' + f', {arguments}' * bool(arguments)
            own = own if 'stride' in arguments else f'{own}, stride=1.0'
            stride = make(f'{own})').stride
            circle = placed(f'circlerope(stride={stride})', *MIXED)
            np.testing.assert_array_equal(placed(f'{own})', *MIXED), circle)
    for frequencies in ('interleaved', 'low_frequency_time', 'no_time'):
        part = make(f'circlerope(frequencies="{frequencies}")')
        np.testing.assert_array_equal(
            part.place(visual_tokens((2, 2))).pos[0], placed('circlerope()', (2, 2))
        )


LAYOUT = 1, (2, 2), 1, (1, 2), 4


def test_layers_may_have_different_positions():
    """Even layers of a model have the circle and odd ones the positions of `mrope`."""
    assert age_pattern(4) == ('circlerope()', 'mrope()')
    assert age_pattern(4, 3) == ('mrope()', 'mrope()', 'circlerope()', 'circlerope()')
    ids, tok = text(1, 12), visual_tokens(*LAYOUT)
    model = model_of('rope()', pattern=age_pattern(2))
    for placed_tokens, spec in zip(model.place(tok), age_pattern(2), strict=True):
        np.testing.assert_allclose(placed_tokens.pos[0], placed(spec, *LAYOUT), atol=2e-6)
    whole = read(model, ids, tok)
    np.testing.assert_allclose(decoded(model, ids, 11, tok), whole, atol=2e-5)
    same = read(model_of('rope()', pattern=('mrope()', 'mrope()')), ids, tok)
    assert np.abs(same - whole).max() > 1e-3


test_wrong_calls = refused() | {
    'the strategy must be 2, 3 or 4, got 1': lambda: age_pattern(4, 1),
    'the layers must be an even number of at least 2, got 3': lambda: age_pattern(3),
    'alpha must be at least 0 and at most 1, got 1.5': lambda: make('circlerope(alpha=1.5)'),
    'radius must be positive, got 0.0': lambda: make('circlerope(radius=0.0)'),
    'dff_rate must be at least 0 and at most 1, got -0.5': lambda: make(
        'circlerope(dff_rate=-0.5)'
    ),
    'positions': lambda: make('circlerope(positions="mrope")'),
}
