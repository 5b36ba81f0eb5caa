import numpy as np
import pytest

from posenc_jax.lab.tasks.formal import Parity
from posenc_jax.protocol.errors import SpecError


@pytest.mark.parametrize('length', [1, 6, (1, 9)])
def test_answer_is_the_number_of_ones_modulo_two(length):
    task = Parity()
    batch = task.sample(np.random.default_rng(0), 1000, length)
    seen, ones = set(), 0
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        whole = task.decode(np.append(tokens[:1], targets)).rstrip('_')
        assert whole[0] == whole[-1] == '$'
        question, answer = whole[1:-1].split('=')
        odd = False
        for bit in question:
            odd ^= bit == '1'
        assert answer == '01'[odd] and set(question) <= {'0', '1'}
        assert task.decode(targets[mask == 1]) == answer + '$' and set(mask) <= {0, 1}
        seen.add(len(question))
        ones += odd
    assert seen == ({length} if isinstance(length, int) else set(range(1, 10)))
    assert abs(ones / 1000 - 0.5) < 0.08  # bits are fair, so that answers are


def test_wrong_options():
    with pytest.raises(SpecError, match="did you mean 'coupled'"):
        Parity(ids='couple')
    with pytest.raises(ValueError, match='number of bits must be at least 1, got 0'):
        Parity().width(0)
