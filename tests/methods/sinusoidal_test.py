"""Sinusoidal encoding: the four conventions, positions with components, very long positions."""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.sinusoidal import sinusoidal_frequencies, sinusoidal_table
from tests.golden_files import golden

GOLDEN = golden('sinusoidal')['values']


def embedded(spec, tok, width):
    return pj.make(spec).embed(jnp.zeros((tok.pos.shape[0], tok.length, width)), tok)


@pytest.mark.parametrize('style', ['vaswani', 't2t', 'halves'])
def test_a_row(style):
    row = GOLDEN['row']
    table = sinusoidal_table(jnp.array([[row['position']]]), row['width'], style=style)
    np.testing.assert_allclose(table[0, 0], row[style], atol=1e-6)


@pytest.mark.parametrize('case', GOLDEN['inner_products'], ids=str)
def test_inner_products(case):
    a, b = sinusoidal_table(jnp.array([case['positions']]), case['width'], style=case['style'])[0]
    assert a @ b == pytest.approx(case['product'], abs=2e-6)
    assert a @ a == pytest.approx(case['width'] / 2, abs=1e-5)


def test_halves_is_a_permutation_of_vaswani_with_its_frequencies():
    pos = jnp.arange(20)[None]
    interleaved, halves = (
        sinusoidal_table(pos, 12, style=style)[0] for style in ('vaswani', 'halves')
    )
    np.testing.assert_array_equal(
        halves, jnp.concatenate([interleaved[:, 0::2], interleaved[:, 1::2]], -1)
    )
    assert np.abs(halves - sinusoidal_table(pos, 12, style='t2t')[0]).max() > 0.1


def test_fairseq_counts_from_two_and_leaves_padding_alone():
    tok = pj.Tokens.of(valid=[[False, False, True, True]])
    out = embedded("sinusoidal(style='fairseq')", tok, 8)
    np.testing.assert_array_equal(out[0, :2], 0)
    np.testing.assert_array_equal(
        out[0, 2:], sinusoidal_table(jnp.array([[2, 3]]), 8, style='t2t')[0]
    )


@pytest.mark.parametrize('case', GOLDEN['timescales'], ids=str)
def test_t2t_with_other_timescales(case):
    spec = (
        f"sinusoidal(style='t2t', min_timescale={case['min_timescale']}, "
        f'base={case["max_timescale"]})'
    )
    out = embedded(spec, pj.Tokens.of(positions=[[case['position']]]), case['width'])
    np.testing.assert_allclose(out[0, 0], case['row'], atol=1e-6)


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
    out = sinusoidal_table(jnp.arange(4)[None], 5, style='t2t')
    np.testing.assert_array_equal(
        out[..., :4], sinusoidal_table(jnp.arange(4)[None], 4, style='t2t')
    )
    np.testing.assert_array_equal(out[..., 4], 0)


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


def test_wrong_input_says_what_is_wrong():
    with pytest.raises(ValueError, match='one of .*vaswani'):
        pj.make("sinusoidal(style='vasvani')")
    with pytest.raises(ValueError, match='base must be above min_timescale = 1.0, got 1.0'):
        pj.make('sinusoidal(base=1.0)')
    for arguments, message in (
        ("style='t2t', min_timescale=0", 'min_timescale must be positive, got 0'),
        ("style='t2t', min_timescale=-1.0", 'min_timescale must be positive, got -1'),
        (
            "style='t2t', min_timescale=5.0, base=5.0",
            'base must be above min_timescale = 5.0, got 5.0',
        ),
        (
            "style='halves', min_timescale=2.0",
            "min_timescale is of style 't2t' alone, 'halves' has 1, got 2.0",
        ),
        (
            "style='t2t', min_timescales=2.0",
            "no argument 'min_timescales'; did you mean 'min_timescale'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            pj.make(f'sinusoidal({arguments})')
    with pytest.raises(
        ValueError, match="min_timescale is of style 't2t' alone, 'vaswani' has 1, got 2.0"
    ):
        sinusoidal_frequencies(4, min_timescale=2.0)
    with pytest.raises(ValueError, match='padding_idx must be at least 0, got -1'):
        pj.make('sinusoidal(padding_idx=-1)')
    with pytest.raises(ValueError, match='3 position components need a width >= 6, got 5'):
        sinusoidal_table(jnp.zeros((1, 1, 3), int), 5)
    with pytest.raises(ValueError, match="'fairseq' has no 2-component form"):
        embedded(
            "sinusoidal(style='fairseq')", pj.Tokens.of(positions=jnp.zeros((1, 4, 2), int)), 8
        )
