import numpy as np
import pytest

from posenc_jax.lab.tasks.arithmetic import Addition
from posenc_jax.lab.tasks.arithmetic.addition import add_digits
from posenc_jax.lab.tasks.coupling import coupled_addition_ids
from posenc_jax.protocol.errors import SpecError


def rows(task, length, batch=400, seed=0):
    data = task.sample(np.random.default_rng(seed), batch, length)
    for index in range(batch):
        whole = task.decode(np.append(data['tokens'][index, :1], data['targets'][index])).rstrip(
            '_'
        )
        assert whole[0] == whole[-1] == '$'
        operands, answer = whole[1:-1].split('=')
        yield *operands.split('+'), answer, {name: array[index] for name, array in data.items()}


@pytest.mark.parametrize('length', [(1, 6), 3, 1, 30])
@pytest.mark.parametrize('reverse_output', [False, True])
@pytest.mark.parametrize('zero_pad', [False, True])
def test_sums_are_right_and_loss_covers_the_sum_and_the_end(length, reverse_output, zero_pad):
    task = Addition(reverse_output=reverse_output, zero_pad=zero_pad)
    for a, b, answer, row in rows(task, length):
        assert int(a) + int(b) == int(answer[::-1] if reverse_output else answer)
        if zero_pad:
            assert len(a) == len(b) == len(answer) - 1
        else:
            assert [a, b] == [str(int(a)), str(int(b))]
            assert len(answer) == len(str(int(a) + int(b)))
        assert task.decode(row['targets'][row['loss_mask'] == 1]) == answer + '$'
        assert set(row['loss_mask']) <= {0, 1}


def test_digit_counts_are_independent_and_uniform():
    counts = np.array([(len(a), len(b)) for a, b, _, _ in rows(Addition(), (1, 4), batch=4000)])
    joint = np.histogram2d(*counts.T, bins=[np.arange(0.5, 5)] * 2)[0] / 4000
    assert abs(joint - 1 / 16).max() < 0.015
    assert all(len(a) == len(b) == 4 for a, b, _, _ in rows(Addition(), 4))
    equal = [(len(a), len(b)) for a, b, _, _ in rows(Addition(equal_length=True), (1, 4))]
    assert {a for a, _ in equal} == {1, 2, 3, 4} and all(a == b for a, b in equal)


def test_numbers_are_uniform_over_their_digit_count():
    ones = np.array([int(a) for a, *_ in rows(Addition(), 1, batch=4000)])
    assert (
        abs(np.bincount(ones, minlength=10) / 4000 - 0.1).max() < 0.02
    )  # 0 is allowed in one-digit numbers only
    twos = np.array([int(a) for a, *_ in rows(Addition(), 2, batch=4000)])
    assert twos.min() == 10 and twos.max() == 99 and abs(twos.mean() - 54.5) < 2


def test_coupled_ids_of_the_spec_string():
    task = Addition(reverse_output=True, zero_pad=True, ids='coupled')
    batch = task.sample(np.random.default_rng(0), 3, 4)
    np.testing.assert_array_equal(
        batch['positions'], [[0, 5, 4, 3, 2, 1, 5, 4, 3, 2, 1, 2, 3, 4, 5, 6]] * 3
    )
    task = Addition(zero_pad=True, ids='coupled')
    batch = task.sample(np.random.default_rng(0), 3, 3)
    np.testing.assert_array_equal(batch['positions'], [[0, 4, 3, 2, 1, 4, 3, 2, 6, 5, 4, 3, 2]] * 3)


def test_reversed_operands_with_coupled_ids():
    task = Addition(reverse_operands=True, reverse_output=True, zero_pad=True, ids='coupled')
    for a, b, answer, row in rows(task, 3):
        assert (
            int(a[::-1]) + int(b[::-1]) == int(answer[::-1]) and len(a) == len(b) == len(answer) - 1
        )
        np.testing.assert_array_equal(row['positions'], [0, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5])


def test_coupled_ids_follow_the_written_digits():
    for a, b, answer, row in rows(Addition(reverse_output=True, ids='coupled'), (1, 6)):
        expected = coupled_addition_ids(len(a), len(b), len(answer), width=len(row['tokens']) + 1)[
            :-1
        ]
        np.testing.assert_array_equal(row['positions'], expected)


def test_plain_ids_count_from_one_and_boundaries_and_padding_are_zero():
    for a, b, answer, row in rows(Addition(ids='plain'), (1, 4)):
        count = len(a) + len(b) + len(answer) + 2
        ids = np.r_[0 : count + 1, np.zeros(20, int)][: len(row['tokens'])]
        np.testing.assert_array_equal(row['positions'], ids)


def test_coupled_ids_need_a_known_significance():
    with pytest.raises(SpecError, match='reverse_output=True or zero_pad=True'):
        Addition(ids='coupled')
    with pytest.raises(SpecError, match="did you mean 'coupled'"):
        Addition(ids='copled')


def test_add_digits_carries_through():
    a, b = np.array([[9, 9, 9], [5, 0, 0]]), np.array([[1, 0, 0], [4, 0, 0]])
    np.testing.assert_array_equal(add_digits(a, b), [[0, 0, 0, 1], [9, 0, 0, 0]])
