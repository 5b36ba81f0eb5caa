"""What tasks draw follows its law: shares of symbols, lengths and places in large batches."""

import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval.passkey import KEY
from tests.lab.tasks.rows import sampled


def even(n):
    return np.full(n, 1 / n)


def normed(weights):
    return np.asarray(weights) / np.sum(weights)


def first(found):
    """The first place of each row where something is found."""
    return np.argmax(found, axis=1)


def digits(batch):
    """How many digits both operands of a sum have, less one."""
    tokens = batch['tokens']
    return first(tokens == 10) - 2, first(tokens == 11) - first(tokens == 10) - 2


def pair_of_digits(batch):
    a, b = digits(batch)
    return 4 * a + b


def equal_digits(batch):
    a, b = digits(batch)
    return np.where(a == b, a, 4)


def orders(batch):
    return np.unique(batch['tokens'][:, :4], axis=0, return_inverse=True)[1]


def switching_points(batch):
    language = batch['tokens'][:, :24] // 2
    return np.nonzero(np.diff(language, axis=1))[1]


def slot(batch):
    return first(batch['tokens'][:, :8:2] == batch['tokens'][:, 9:10])


LAWS = [  # spec, length, rows, what is counted from 0 on, its shares, tolerance of each
    ('copy(symbols=4)', 4, 1000, lambda b: b['tokens'][:, 1:5], even(4), 0.03),
    ('parity()', (1, 9), 1000, lambda b: b['targets'][b['loss_mask'] == 1][::2], even(2), 0.08),
    ('addition()', (1, 4), 4000, pair_of_digits, even(16), 0.015),
    ('addition(equal_length=True)', (1, 4), 400, equal_digits, even(4), 0.08),
    ('addition()', 1, 4000, lambda b: b['tokens'][:, 1], even(10), 0.02),  # 0 is allowed
    ('addition()', 2, 4000, lambda b: b['tokens'][:, 1] - 1, even(9), 0.02),  # and here it is not
    ('addition()', 2, 4000, lambda b: b['tokens'][:, 2], even(10), 0.02),
    ('flip_flop(0.5)', 50, 400, lambda b: b['tokens'][:, 2:-2:2] - 2, [0.25, 0.25, 0.5], 0.02),
    ('flip_flop(0.5)', 50, 400, lambda b: b['targets'][b['tokens'] == 4], even(2), 0.02),
    ('selective_copy(symbols=1)', 2, 3000, orders, even(6), 0.025),
    ('selective_copy(symbols=4)', 4, 1000, lambda b: b['targets'][:, -5:-1], even(4), 0.03),
    ('passkey()', 16, 4000, lambda b: first(b['tokens'] == KEY), even(10), 0.02),
    # The lower one of two places among 25 tokens of filler.
    ('passkeys(keys=2, words=3)', 40, 2000, lambda b: first(b['tokens'] == 0),
     normed(2 * np.arange(26)[::-1] + 1), 0.02),
    ('kv_slots(keys=9, words=1, skew=1.0)', 4, 4000, slot, normed(np.exp(-np.arange(4.0))), 0.03),
    ('code_mixed(letters=2, switches=3)', 24, 400, switching_points, even(23), 0.02),
    # The first operands have every length, and stacks every height.
    ('chomsky15("binary_addition")', 9, 2000, lambda b: first(b['tokens'][:, :9] == 2) - 1,
     even(7), 0.03),
    ('chomsky15("stack_manipulation")', 6, 2000, lambda b: first(b['tokens'] >= 2) - 1,
     even(5), 0.03),
]  # fmt: skip


@pytest.mark.parametrize('spec, length, rows, counted, shares, tolerance', LAWS)
def test_shares_are_those_of_the_law(spec, length, rows, counted, shares, tolerance):
    found = np.ravel(counted(sampled(spec, length, rows)))
    counts = np.bincount(found)
    assert len(counts) <= len(shares)
    found = np.pad(counts, (0, len(shares) - len(counts))) / counts.sum()
    np.testing.assert_allclose(found, shares, atol=tolerance)
