import numpy as np
import pytest

from posenc_jax.lab.tasks.formal import BucketSort
from posenc_jax.protocol.errors import SpecError


@pytest.mark.parametrize('length', [1, 6, (1, 9)])
def test_answer_is_the_sorted_string(length):
    task = BucketSort()
    batch = task.sample(np.random.default_rng(0), 200, length)
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        question, answer = task.decode(np.append(tokens[:1], targets)).strip('_$').split('=')
        assert answer == ''.join(sorted(question))
        assert task.decode(targets[mask == 1]) == answer + '$'


def test_there_are_no_coupled_ids():
    with pytest.raises(SpecError, match="no coupled ids; use ids='none' or 'plain'"):
        BucketSort(ids='coupled')
