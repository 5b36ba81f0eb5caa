import numpy as np
import pytest

from posenc_jax.lab.tasks.copy import Reverse


@pytest.mark.parametrize('length', [1, 5, (1, 8)])
def test_answer_is_the_reversed_string(length):
    task = Reverse(symbols=10)
    batch = task.sample(np.random.default_rng(0), 200, length)
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        question, answer = task.decode(np.append(tokens[:1], targets)).strip('_$').split('=')
        assert answer == question[::-1]
        assert task.decode(targets[mask == 1]) == answer + '$'


def test_symbol_and_its_image_share_an_id():
    batch = Reverse(ids='coupled').sample(np.random.default_rng(0), 1, 4)
    np.testing.assert_array_equal(batch['positions'][0], [0, 1, 2, 3, 4, 5, 4, 3, 2, 1])
