"""Coupled ids against the strings of the paper's official code, and against a reader of what the
tasks write.
"""

import functools

import numpy as np
import pytest

from posenc_jax.lab.tasks.coupling import (
    coupled_addition_ids,
    coupled_copy_ids,
    coupled_grid_ids,
    coupled_multiplication_ids,
    coupled_parity_ids,
    coupled_reverse_ids,
    coupled_sum_ids,
    plain_ids,
)
from tests.golden_files import golden_suite
from tests.lab.tasks.rows import make

BACK = dict(reverse_operands=True)
PLAIN_SUM = dict(reverse_output=False)
IDS = [  # call, ids; the comments are what the paper writes
    (coupled_addition_ids(4, 4, 5), '0 5 4 3 2 1 5 4 3 2 1 2 3 4 5 6 0'),  # $0303+7737=04080$
    (coupled_addition_ids(5, 2, 5), '0 6 5 4 3 2 1 3 2 1 2 3 4 5 6 0'),  # 92566+44=01629
    # $439+089=0528$, then 046+950=0699, the sum alone as people write it
    (coupled_addition_ids(3, 3, 4, **PLAIN_SUM), '0 4 3 2 1 4 3 2 6 5 4 3 2 0'),
    (coupled_addition_ids(3, 3, 4, **BACK, **PLAIN_SUM), '0 2 3 4 1 2 3 4 6 5 4 3 2 0'),
    (coupled_addition_ids(2, 3, 4, **BACK, start=7), '0 8 9 7 8 9 10 7 8 9 10 11 0'),
    (coupled_multiplication_ids(2, 2), '0 3 4 5 3 4 5 4 3 2 1 0'),  # $15*36=0450$
    (coupled_copy_ids(5), '0 2 3 4 5 6 1 2 3 4 5 6 0'),  # $61916=61916$
    (coupled_reverse_ids(3, start=5), '0 5 6 7 8 7 6 5 0'),
    (coupled_sum_ids(2, 3), '0 3 2 1 3 2 1 3 2 1 2 3 0'),  # $05+07+09=12$
    (coupled_sum_ids(5, 2, start=4), '0 9 8 7 6 5 4 9 8 7 6 5 4 5 6 7 8 9 0'),
    (coupled_grid_ids(3, 2, start=(1, 5))[:, 0], '0 2 3 4 2 3 4 1 2 3 4 2 3 4 0'),
    (coupled_grid_ids(3, 2, start=(1, 5))[:, 1], '0 6 6 6 7 7 7 5 6 6 6 7 7 7 0'),
    (coupled_parity_ids(np.array([1, 3]), start=np.array([1, 9]))[0], '0 1 2 1 0 0 0'),
    (coupled_parity_ids(np.array([1, 3]), start=np.array([1, 9]))[1], '0 9 9 9 10 9 0'),
    (plain_ids(3, start=8, width=7), '0 8 9 10 0 0 0'),
]
test_golden = golden_suite(
    'position_coupling',
    {
        'reversed_operands': lambda: coupled_addition_ids(3, 3, 4, **BACK),
        'parity': lambda: coupled_parity_ids(4),
        'plain': lambda: plain_ids(12),
    },
)


@pytest.mark.parametrize('ids, expected', IDS)
def test_spec_strings(ids, expected):
    assert ' '.join(map(str, ids)) == expected


def significance_first(number, reverse):
    """Digits as significances, in writing order."""
    return list(range(len(number))) if reverse else list(range(len(number)))[::-1]


def read_addition(question, answer, reverse_operands=False, reverse_output=False):
    ids = []
    for number in question.split('+'):
        ids += [2 + r for r in significance_first(number, reverse_operands)] + [1]
    if not reverse_output:
        ids[-1] = len(answer) + 2
    return ids + [2 + r for r in significance_first(answer, reverse_output)]


def read_multiplication(question, answer):
    a, b = question.split('*')
    e = 1 + len(a) + len(b)
    return [e - 1 - r for n in (a, b) for r in [*significance_first(n, False), -1]] + [
        e - 1 - r for r in significance_first(answer, True)
    ]


def read_copy(question, answer):
    return [*range(2, len(question) + 2), 1, *range(2, len(answer) + 2)]


def read_reverse(question, answer):
    there = list(range(1, len(question) + 1))
    return [*there, len(question) + 1, *there[::-1]]


def read_parity(question, answer):
    assert len(answer) == 1
    return [1 for _ in question] + [2, 1]


def read_plain(question, answer):
    return list(range(1, len(question) + len(answer) + 2))


ADDITION = 'addition(reverse_operands={}, reverse_output={}, zero_pad={}, ids="coupled")'
PRODUCTS = 'pad_product=True, reverse_output=True, ids="coupled"'
READERS = {
    ADDITION.format(operands, output, pad): functools.partial(
        read_addition, reverse_operands=operands, reverse_output=output
    )
    for operands in (False, True)
    for output, pad in ((True, True), (True, False), (False, True))
} | {
    'sums(operands=4, ids="coupled")': functools.partial(read_addition, reverse_output=True),
    f'multiplication(second=2, {PRODUCTS})': read_multiplication,
    f'multiplication({PRODUCTS})': read_multiplication,
    'copy(ids="coupled")': read_copy,
    'reverse(ids="coupled")': read_reverse,
    'parity(ids="coupled")': read_parity,
    'addition(reverse_operands=True, ids="plain")': read_plain,
    'sums(ids="plain")': read_plain,
    'multiplication(ids="plain")': read_plain,
    'copy(ids="plain")': read_plain,
    'bucket_sort(ids="plain")': read_plain,
    'parity(ids="plain")': read_plain,
    'minesweeper(ids="plain")': read_plain,
    'random_spaces(addition(ids="plain"), in_evaluation=True)': read_plain,
}


@pytest.mark.parametrize('spec', READERS)
def test_a_reader_of_the_text_finds_the_ids_of_every_row(spec):
    """1000 rows, closing `$` and padding included; the ids follow from what is written and from
    nothing else.
    """
    task = make(spec)
    batch = task.sample(np.random.default_rng(3), 1000, (1, 5))
    lengths = set()
    for tokens, targets, positions in zip(batch['tokens'], batch['targets'], batch['positions']):
        said = ''.join(task.decode(np.append(tokens[:1], targets)))
        question, answer = said[1 : said.index('$', 1)].split('=')
        expected = [0, *READERS[spec](question, answer), 0]
        expected += [0] * (len(positions) + 1 - len(expected))
        np.testing.assert_array_equal(positions, expected[:-1], err_msg=said)
        lengths.add(len(question))
    assert len(lengths) >= 4


def test_digits_of_equal_significance_share_an_id():
    s, a, b, c = 7, 3, 5, 6
    ids = coupled_addition_ids(a, b, c, start=s)
    of_a, of_b, of_c = ids[1 : 1 + a], ids[2 + a : 2 + a + b], ids[3 + a + b : 3 + a + b + c]
    np.testing.assert_array_equal(of_a[::-1], s + 1 + np.arange(a))
    np.testing.assert_array_equal(of_b[::-1], s + 1 + np.arange(b))
    np.testing.assert_array_equal(of_c, s + 1 + np.arange(c))
    assert ids[1 + a] == ids[2 + a + b] == s


@pytest.mark.parametrize(
    'function, count',
    [
        (coupled_addition_ids, 3),
        (coupled_multiplication_ids, 2),
        (coupled_copy_ids, 1),
        (coupled_reverse_ids, 1),
        (coupled_sum_ids, 2),
        (coupled_parity_ids, 1),
        (plain_ids, 1),
    ],
)
def test_a_later_start_shifts_every_id_but_zero(function, count):
    early, late = function(*[4] * count), function(*[4] * count, start=11)
    np.testing.assert_array_equal(late, np.where(early > 0, early + 10, 0))
    assert early.min() == 0 and early[early > 0].min() == 1


def test_batches_equal_single_sequences():
    a, b, c, s = np.array([4, 1]), np.array([4, 3]), np.array([5, 4]), np.array([1, 9])
    batch = coupled_addition_ids(a, b, c, start=s, width=20)
    assert batch.shape == (2, 20)
    for row, counts in zip(batch, np.stack([a, b, c], axis=1).tolist()):
        single = coupled_addition_ids(*counts, start=[9, 1][counts[0] == 4], width=20)
        np.testing.assert_array_equal(row, single)


def test_largest_id_of_the_official_multiplication_range():
    # N = 4, M = 2, P = 20: the official start range [1, P - N - 1] lets ids reach P + 1.
    assert coupled_multiplication_ids(4, 2, start=20 - 4 - 1).max() == 21


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(symbols=0), 'symbols must be'),
        (dict(symbols=3, start=0), 'start must be'),
        (dict(symbols=3, width=8), 'width 8 is less than the longest sequence, 9'),
        (dict(symbols=2.0), 'symbols must be'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        coupled_copy_ids(**arguments)
