"""Tasks `$question=answer$`: solvers that read the question, and how questions are drawn."""

import re

import numpy as np
import pytest

from posenc_jax.lab.tasks.arithmetic import Addition
from posenc_jax.lab.tasks.arithmetic.addition import add_digits
from posenc_jax.lab.tasks.copy import Copy
from tests.lab.tasks.rows import make


def rows(task, length, batch=400):
    """Question, answer and the scored text of each row."""
    data = task.sample(np.random.default_rng(0), batch, length)
    for tokens, targets, mask in zip(data['tokens'], data['targets'], data['loss_mask']):
        whole = task.decode(np.append(tokens[:1], targets)).rstrip('_')
        assert whole[0] == whole[-1] == '$' and set(mask) <= {0, 1}
        yield *whole[1:-1].split('='), task.decode(targets[mask == 1])


def added(question, reverse=False, pad=0):
    """The sum of numbers, filled up to their length and `pad` digits more."""
    numbers = question.split('+')
    if pad:
        assert len(set(map(len, numbers))) == 1
    else:
        assert numbers == [str(int(number)) for number in numbers]
    total = str(sum(map(int, numbers))).zfill(pad and len(numbers[0]) + pad)
    return total[::-1] if reverse else total


def padded_as_much_as_sums_need(question):
    """Of several numbers: all are as long as the largest sum of numbers with as many digits."""
    numbers = question.split('+')
    longest = max(len(str(int(number))) for number in numbers)
    width = len(str(len(numbers) * (10**longest - 1)))
    assert {len(number) for number in numbers} == {width}
    return str(sum(map(int, numbers))).zfill(width)[::-1]


SOLVERS = {
    'copy()': lambda x: x,
    'reverse()': lambda x: x[::-1],
    'bucket_sort()': lambda x: ''.join(sorted(x)),
    'parity()': lambda x: '01'[len(x.replace('0', '')) % 2],
    'addition()': added,
    'addition(reverse_output=True)': lambda x: added(x, reverse=True),
    'addition(zero_pad=True)': lambda x: added(x, pad=1),
    'addition(zero_pad=True, reverse_output=True)': lambda x: added(x, reverse=True, pad=1),
    'sums(operands=2)': padded_as_much_as_sums_need,
    'sums(operands=3)': padded_as_much_as_sums_need,
    'sums(operands=7)': padded_as_much_as_sums_need,
}


@pytest.mark.parametrize('length', [1, 5, 30, (1, 8)])
@pytest.mark.parametrize('spec', SOLVERS)
def test_a_solver_agrees_and_loss_covers_the_answer_and_the_end(spec, length):
    seen = set()
    for question, answer, scored in rows(make(spec), length):
        assert answer == SOLVERS[spec](question) and scored == f'{answer}$'
        seen.add(len(re.split('[+]', question)[0]))
    if 'pad' not in spec and 'sums' not in spec:
        assert seen == ({length} if isinstance(length, int) else set(range(1, 9)))


def test_symbols_and_bits_are_uniform_with_replacement():
    batch = Copy(symbols=4).sample(np.random.default_rng(0), 1000, 4)
    counts = np.bincount(batch['tokens'][:, 1:5].ravel(), minlength=4)
    assert abs(counts / 4000 - 0.25).max() < 0.03 and Copy(symbols=4).vocab_size == 7
    task = make('parity()')
    ones = [answer == '1' for _, answer, _ in rows(task, (1, 9), batch=1000)]
    assert abs(np.mean(ones) - 0.5) < 0.08  # bits are fair, so that answers are


def test_digit_counts_are_independent_and_uniform():
    operands = lambda task, length, n=400: [q.split('+') for q, *_ in rows(task, length, n)]
    counts = np.array([(len(a), len(b)) for a, b in operands(Addition(), (1, 4), 4000)])
    joint = np.histogram2d(*counts.T, bins=[np.arange(0.5, 5)] * 2)[0] / 4000
    assert abs(joint - 1 / 16).max() < 0.015
    equal = [(len(a), len(b)) for a, b in operands(Addition(equal_length=True), (1, 4))]
    assert {a for a, _ in equal} == {1, 2, 3, 4} and all(a == b for a, b in equal)


def test_numbers_are_uniform_over_their_digit_count():
    first = lambda length: [int(q.split('+')[0]) for q, *_ in rows(Addition(), length, 4000)]
    # 0 is allowed in one-digit numbers only
    assert abs(np.bincount(first(1), minlength=10) / 4000 - 0.1).max() < 0.02
    twos = np.array(first(2))
    assert twos.min() == 10 and twos.max() == 99 and abs(twos.mean() - 54.5) < 2


def test_add_digits_carries_through():
    a, b = np.array([[9, 9, 9], [5, 0, 0]]), np.array([[1, 0, 0], [4, 0, 0]])
    np.testing.assert_array_equal(add_digits(a, b), [[0, 0, 0, 1], [9, 0, 0, 0]])
