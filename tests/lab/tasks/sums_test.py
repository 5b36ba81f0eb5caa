import re

import numpy as np
import pytest

from posenc_jax.lab.tasks.arithmetic import Sums
from posenc_jax.lab.tasks.coupling import coupled_addition_ids, coupled_sum_ids
from posenc_jax.protocol.errors import SpecError


@pytest.mark.parametrize('operands', [2, 3, 7])
@pytest.mark.parametrize('length', [(1, 4), 3])
def test_sums_are_right_and_padded_to_the_most_digits_a_sum_can_have(operands, length):
    task = Sums(operands=operands)
    batch = task.sample(np.random.default_rng(0), 200, length)
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        said = task.decode(np.append(tokens[:1], targets)).rstrip('_')
        *numbers, total = re.split('[+=]', said.strip('$'))
        assert len(numbers) == operands and sum(map(int, numbers)) == int(total[::-1])
        longest = max(len(str(int(number))) for number in numbers)
        assert {len(number) for number in [*numbers, total]} == {
            len(str(operands * (10**longest - 1)))
        }
        assert task.decode(targets[mask == 1]) == total + '$'


def test_coupled_ids_follow_the_written_digits():
    task = Sums(operands=3, ids='coupled')
    batch = task.sample(np.random.default_rng(0), 50, (1, 4))
    for tokens, targets, ids in zip(batch['tokens'], batch['targets'], batch['positions']):
        digits = task.decode(np.append(tokens[:1], targets)).index('+') - 1
        np.testing.assert_array_equal(ids, coupled_sum_ids(digits, 3, width=len(ids) + 1)[:-1])
    np.testing.assert_array_equal(coupled_sum_ids(4, 2), coupled_addition_ids(4, 4, 4))


def test_wrong_options():
    with pytest.raises(SpecError, match='at least 2 operands, got 1'):
        Sums(operands=1)
    with pytest.raises(SpecError, match="did you mean 'coupled'"):
        Sums(ids='couple')
    with pytest.raises(ValueError, match='operands must be at least 1, got 0'):
        coupled_sum_ids(2, 0)
