"""STRING: the distances of the sheet, the table of distances against tiles, decoding, limits,
errors.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.string import string_distance
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
from tests.methods.by_distance import (
    ROTARY,
    WIDTH,
    check_tiles,
    defined,
    qkv,
    rotary_logits,
    run,
    softmax,
)

GOLDEN = golden('string')['values']


def encoding(shift=GOLDEN['shift'], local=GOLDEN['local'], **options):
    more = ''.join(f', {name}={value}' for name, value in options.items())
    return pj.make(
        f'string(encoding=rope(), shift={shift}, local={local}{more})',
        head_dim=WIDTH,
        train_len=64,
        causal=True,
    )


def distances(length, shift, local):
    pos = jnp.arange(length)[None]
    return np.asarray(string_distance(pos, pos, shift, local))[0]


def test_golden_last_row():
    assert distances(10, GOLDEN['shift'], GOLDEN['local'])[-1].tolist() == GOLDEN['last_row']


@pytest.mark.parametrize('moved', [True, False])
def test_golden_counts(moved):
    """How often every relative position occurs: the rare ones become frequent, the largest
    disappear.
    """
    counted = GOLDEN['counted']
    length = counted['length']
    d = distances(length, counted['shift'] if moved else length, counted['local'])[
        np.tril_indices(length)
    ]
    expected = counted['counts' if moved else 'plain']
    assert [int((d == distance).sum()) for distance in counted['distances']] == expected


def test_the_released_factor():
    factor = GOLDEN['released_attention_factor']
    assert abs(factor - 0.1 * math.log(2) - 1) < 1e-7
    (q, k, v), tok = qkv(12), pj.Tokens.of(length=12)
    found = run(encoding(attention_factor=factor), tok, q, k, v)
    np.testing.assert_allclose(
        found, run(encoding(), tok, GOLDEN['logits_factor'] * q, k, v), atol=2e-6
    )


@pytest.mark.full
def test_works_on_other_layouts_widths_and_frequencies():
    part = pj.make(
        f'string(encoding={ROTARY}, shift=4, local=2)', head_dim=WIDTH, train_len=64, causal=True
    )
    q, k, v = qkv(19)
    expected = softmax(rotary_logits(q, k, distances(19, 4, 2)), v)
    np.testing.assert_allclose(
        run(part, pj.Tokens.of(length=19), q, k, v, block=(5, 4)), expected, atol=4e-6
    )


@pytest.mark.parametrize('shift, local', [(4, 2), (5, 0), (3, 3), (1, 1)])
def test_largest_distance_and_what_stays_exact(shift, local):
    d, gap = distances(30, shift, local), np.subtract.outer(np.arange(30), np.arange(30))
    near = (gap >= 0) & (gap < shift)
    np.testing.assert_array_equal(d[near], gap[near])
    assert d[gap >= shift].min() == local and d[gap >= 0].max() == 29 - shift + local


def test_attention_has_the_distances_of_the_table():
    arrays, tok = qkv(12), pj.Tokens.of(length=12)
    expected = defined(*arrays, distances(12, GOLDEN['shift'], GOLDEN['local']))
    np.testing.assert_allclose(run(encoding(), tok, *arrays), expected, atol=2e-6)


@pytest.mark.full
def test_tiles_equal_the_table_of_distances():
    check_tiles(encoding(), distances(19, 4, 2), None, (5, 3))


@pytest.mark.parametrize('options', [dict(shift=12), dict(shift=4, local=4)], ids=str)
def test_a_long_shift_or_one_that_is_undone_is_rope(options):
    arrays, tok = qkv(12), pj.Tokens.of(length=12)
    plain = pj.make('rope()', head_dim=WIDTH, causal=True)
    np.testing.assert_allclose(
        run(encoding(**options), tok, *arrays), run(plain, tok, *arrays), atol=1e-6
    )


def test_attention_factor_scales_logits_by_its_square():
    (q, k, v), tok = qkv(12), pj.Tokens.of(length=12)
    np.testing.assert_allclose(
        run(encoding(attention_factor=1.5), tok, q, k, v),
        run(encoding(), tok, 2.25 * q, k, v),
        atol=2e-6,
    )


def test_longer_than_trained_repeats_distances_that_were_trained():
    """M + S - W tokens have no distance of M or more, and the last query reaches it exactly."""
    part = pj.make('rope() | causal()', head_dim=WIDTH)
    longer = pj.extend(part, 'string(shift=6, local=2)', train_len=16)
    assert longer.parts[0].encoding is part.parts[0]
    assert distances(16 + 6 - 2, 6, 2).max() == 15


@pytest.mark.parametrize(
    'train_len, expected', [(768, (256, 128)), (96, (32, 16)), (131072, (43690, 128))]
)
def test_defaults(train_len, expected):
    part = pj.make('string(encoding=rope())', head_dim=8, train_len=train_len)
    assert (part.shift, part.local) == expected


@pytest.mark.parametrize(
    'spec, message',
    [
        ('string(encoding=alibi())', 'rotary encoding, got alibi'),
        ('string(encoding=rope(freqs=dynamic_ntk()))', 'do not depend on the current length'),
        (
            'string(encoding=rope(freqs=longrope(long=(1.0, 2.0, 3.0, 4.0), start=2, factor=4.0)))',
            'use start=0',
        ),
        ('string(encoding=rope(), shift=0)', 'shift=0'),
        ('string(encoding=rope(), train_len=2)', r'at least 1, got 0 \(train_len=2\)'),
        ('string(encoding=rope(), shift=4, local=5)', 'between 0 and shift=4, got 5'),
        ('string(encoding=rope(), attention_factor=0.0)', 'positive, got 0.0'),
        ('string()', 'extends another encoding'),
    ],
)
def test_errors(spec, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, head_dim=8, heads=2, train_len=64)
