"""Self-Extend, ReRoPE, leaky ReRoPE: the distances of the sheet, tables against tiles,
limits, errors.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.self_extend import self_extend_capacity, self_extend_distance
from tests.golden_files import golden, golden_suite
from tests.methods.by_distance import ROTARY, WIDTH, defined, qkv, rotary_logits, run, softmax

GOLDEN = golden('self_extend')['values']
FORMS = {
    'grouped': dict(group=2, local=4),
    'not dividing': dict(group=3, local=4),
    'rerope': dict(group=None, local=4),
    'leaky': dict(group=1.5, local=4, floor=False),
}


SIZES = dict(head_dim=WIDTH, train_len=64, causal=True)


def encoding(group=GOLDEN['group'], local=GOLDEN['local'], floor=True):
    spec = f'self_extend(encoding=rope(), group={group}, local={local}, floor={floor})'
    return pj.make(spec, **SIZES)


def distances(length, **form):
    pos = jnp.arange(length)[None]
    return np.asarray(self_extend_distance(pos, pos, **form))[0]


def capacity(values):
    """So many tokens have the largest distance that was trained, and one more exceeds it."""
    form, train_len = dict(group=values['group'], local=values['local']), values['train_len']
    found = self_extend_capacity(train_len, **form)
    assert [distances(found + more, **form).max() - train_len for more in (0, 1)] == [-1, 0]
    return found


test_golden = golden_suite('self_extend') | {
    'last_row': lambda v: distances(12, group=v['group'], local=v['local'])[-1],
    'capacity': capacity,
}


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
@pytest.mark.full
def test_tiles_equal_the_table_of_distances(form):
    arrays, tok = qkv(19), pj.Tokens.of(length=19)
    found = run(encoding(**form), tok, *arrays, block=(5, 3))
    np.testing.assert_allclose(found, defined(*arrays, distances(19, **form)), atol=2e-6)


def test_the_three_forms_of_one_formula():
    """Leaky distances are w + (i - j - w) / k beyond w; as k grows they and the grouped ones become
    min(i - j, w).
    """
    gap = np.subtract.outer(np.arange(19), np.arange(19))
    leaky = distances(19, group=3.0, local=5, floor=False)
    np.testing.assert_allclose(leaky, np.where(gap < 5, gap, 5 + (gap - 5) / 3), rtol=1e-6)
    endless = distances(19, group=None, local=5)
    np.testing.assert_array_equal(endless, np.minimum(gap, 5))
    np.testing.assert_allclose(distances(19, group=1e6, local=5, floor=False), endless, atol=1e-4)
    np.testing.assert_allclose(distances(19, group=10**6, local=5), endless, atol=1e-4)


@pytest.mark.parametrize(
    'form', [dict(group=3, local=4), dict(group=3.0, local=4, floor=False)], ids=str
)
def test_far_out_it_is_as_exact_as_at_the_beginning(form):
    """Angles, not fractional positions, which float32 would round: 3e6 / 3 + 4 - 4/3 has two binary
    digits behind the point.
    """
    arrays, start = qkv(12), 3 * 2**20
    far, near = (
        run(encoding(**form), pj.Tokens.of(positions=first + np.arange(12)[None]), *arrays)
        for first in (start, 0)
    )
    np.testing.assert_allclose(far, near, atol=1e-5)


def test_other_layouts_widths_and_frequencies():
    arrays = qkv(12)
    part = pj.make(f'self_extend(encoding={ROTARY}, group=3, local=1)', **SIZES)
    expected = softmax(rotary_logits(*arrays[:2], distances(12, group=3, local=1)), arrays[2])
    found = run(part, pj.Tokens.of(length=12), *arrays)
    np.testing.assert_allclose(found, expected, atol=4e-6)
