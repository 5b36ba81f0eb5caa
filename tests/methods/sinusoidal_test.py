"""Sinusoidal encoding: the four conventions, positions with components, very long positions."""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.sinusoidal import sinusoidal_frequencies, sinusoidal_table
from tests.golden_files import golden_suite
from tests.refusals import refused


def embedded(spec, tok, width):
    return pj.make(spec).embed(jnp.zeros((tok.pos.shape[0], tok.length, width)), tok)


def row_of(style):
    table = lambda row: sinusoidal_table(jnp.array([[row['position']]]), row['width'], style=style)
    return lambda row: table(row)[0, 0]


def inner_product(case):
    a, b = sinusoidal_table(jnp.array([case['positions']]), case['width'], style=case['style'])[0]
    assert a @ a == pytest.approx(case['width'] / 2, abs=1e-5)
    return a @ b


def other_timescales(case):
    shortest, longest = case['min_timescale'], case['max_timescale']
    spec = f"sinusoidal(style='t2t', min_timescale={shortest}, base={longest})"
    return embedded(spec, pj.Tokens.of(positions=[[case['position']]]), case['width'])[0, 0]


test_golden = golden_suite('sinusoidal', atol=1e-6) | {
    **{f'row.{style}': row_of(style) for style in ('vaswani', 't2t', 'halves')},
    'inner_products.*.product': (inner_product, {'atol': 2e-6}),
    'timescales.*.row': other_timescales,
}


def test_halves_is_a_permutation_of_vaswani_with_its_frequencies():
    pos = jnp.arange(20)[None]
    table = lambda style: np.asarray(sinusoidal_table(pos, 12, style=style)[0])
    interleaved, halves = table('vaswani'), table('halves')
    expected = np.concatenate([interleaved[:, 0::2], interleaved[:, 1::2]], -1)
    np.testing.assert_array_equal(halves, expected)
    assert np.abs(halves - table('t2t')).max() > 0.1


def test_fairseq_counts_from_two_and_leaves_padding_alone():
    tok = pj.Tokens.of(valid=[[False, False, True, True]])
    out = embedded("sinusoidal(style='fairseq')", tok, 8)
    np.testing.assert_array_equal(out[0, :2], 0)
    expected = sinusoidal_table(jnp.array([[2, 3]]), 8, style='t2t')[0]
    np.testing.assert_array_equal(out[0, 2:], expected)


def test_start_shifts_positions():
    tok = pj.Tokens.of(length=3)
    shifted = embedded("sinusoidal(style='t2t', start=5)", tok, 6)
    np.testing.assert_array_equal(shifted, sinusoidal_table(jnp.array([[5, 6, 7]]), 6, style='t2t'))


@pytest.mark.parametrize('style', ['vaswani', 't2t', 'halves'])
def test_components_share_the_width_and_the_rest_is_zero(style):
    pos = jnp.array([[[3, 8], [0, 1]]])
    out = sinusoidal_table(pos, 11, style=style)  # two groups of 4, three channels left over
    np.testing.assert_array_equal(out[..., :4], sinusoidal_table(pos[..., 0], 4, style=style))
    np.testing.assert_array_equal(out[..., 4:8], sinusoidal_table(pos[..., 1], 4, style=style))
    np.testing.assert_array_equal(out[..., 8:], 0)


def test_an_odd_width_ends_in_a_zero_column():
    table = lambda width: sinusoidal_table(jnp.arange(4)[None], width, style='t2t')
    np.testing.assert_array_equal(table(5)[..., :4], table(4))
    np.testing.assert_array_equal(table(5)[..., 4], 0)


def test_phases_are_right_at_long_positions_and_in_low_precision():
    position = 2_000_003
    tok = pj.Tokens.of(positions=[[position]])
    angle = position * sinusoidal_frequencies(16)
    expected = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(-1)
    np.testing.assert_allclose(embedded('sinusoidal()', tok, 32)[0, 0], expected, atol=2e-6)
    low = pj.make('sinusoidal()').embed(jnp.zeros((1, 1, 32), jnp.bfloat16), tok)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low[0, 0].astype(np.float32), expected, atol=2**-8)


def test_inner_products_depend_on_the_difference_only():
    a, b = (sinusoidal_table(jnp.array([[p, p + 7]]), 32)[0] for p in (0, 1_000_000))
    assert a[0] @ a[1] == pytest.approx(float(b[0] @ b[1]), abs=2e-5)


def fairseq_grid():
    grid = pj.Tokens.of(positions=jnp.zeros((1, 4, 2), int))
    return embedded("sinusoidal(style='fairseq')", grid, 8)


test_wrong_input = refused() | {
    "min_timescale is of style 't2t' alone, 'vaswani' has 1, got 2.0": (
        lambda: sinusoidal_frequencies(4, min_timescale=2.0)
    ),
    '3 position components need a width >= 6, got 5': (
        lambda: sinusoidal_table(jnp.zeros((1, 1, 3), int), 5)
    ),
    "'fairseq' has no 2-component form": fairseq_grid,
}
