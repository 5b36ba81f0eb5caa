"""STRING: the distances of the sheet, the table of distances against tiles, decoding, limits,
errors.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.string import string_distance
from tests.golden_files import golden, golden_suite
from tests.methods.by_distance import ROTARY, WIDTH, defined, qkv, rotary_logits, run, softmax

GOLDEN = golden('string')['values']
SIZES = dict(head_dim=WIDTH, train_len=64, causal=True)


def encoding(shift=GOLDEN['shift'], local=GOLDEN['local'], **options):
    more = ''.join(f', {name}={value}' for name, value in options.items())
    return pj.make(f'string(encoding=rope(), shift={shift}, local={local}{more})', **SIZES)


def distances(length, shift, local):
    pos = jnp.arange(length)[None]
    return np.asarray(string_distance(pos, pos, shift, local))[0]


def counts(moved):
    """How often every relative position occurs: the rare ones become frequent, the largest
    disappear.
    """

    def row(counted):
        length = counted['length']
        d = distances(length, counted['shift'] if moved else length, counted['local'])
        found = d[np.tril_indices(length)]
        return [(found == distance).sum() for distance in counted['distances']]

    return row


test_golden = golden_suite('string') | {
    'last_row': lambda values: distances(10, values['shift'], values['local'])[-1],
    'counted.counts': counts(True),
    'counted.plain': counts(False),
    'released_attention_factor': (lambda _: 0.1 * math.log(2) + 1, {'atol': 1e-7}),
}


@pytest.mark.parametrize(
    'factor, of_logits',
    [(GOLDEN['released_attention_factor'], GOLDEN['logits_factor']), (1.5, 2.25)],
)
def test_attention_factor_scales_logits_by_its_square(factor, of_logits):
    (q, k, v), tok = qkv(12), pj.Tokens.of(length=12)
    found, expected = encoding(attention_factor=factor), run(encoding(), tok, of_logits * q, k, v)
    np.testing.assert_allclose(run(found, tok, q, k, v), expected, atol=2e-6)


@pytest.mark.full
def test_works_on_other_layouts_widths_and_frequencies():
    part = pj.make(f'string(encoding={ROTARY}, shift=4, local=2)', **SIZES)
    q, k, v = qkv(19)
    expected = softmax(rotary_logits(q, k, distances(19, 4, 2)), v)
    found = run(part, pj.Tokens.of(length=19), q, k, v, block=(5, 4))
    np.testing.assert_allclose(found, expected, atol=4e-6)


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
