import numpy as np
import pytest

from posenc_jax.lab.tasks.copy import SelectiveCopy


@pytest.mark.parametrize('blanks', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('length', [8, (1, 12)])
def test_the_answer_is_the_text_without_blanks(blanks, length):
    task = SelectiveCopy(symbols=10, blanks=blanks)
    batch = task.sample(np.random.default_rng(0), 100, length)
    high = length if isinstance(length, int) else 12
    assert batch['tokens'].shape == (100, task.width(length)) == (100, int((2 + blanks) * high) + 1)
    seen = set()
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        text, _, answer = task.decode(np.append(tokens, targets[-1])).rstrip('_').partition('=')
        assert answer == text.replace('.', '') + '$'
        assert task.decode(targets[mask == 1]) == answer
        count = len(answer) - 1
        assert text.count('.') == int(blanks * count + 0.5)
        seen.add(count)
    assert seen == ({8} if length == 8 else set(range(1, 13)))


def test_all_orders_are_equally_likely():
    batch = SelectiveCopy(symbols=1).sample(np.random.default_rng(0), 3000, 2)
    orders, counts = np.unique(batch['tokens'][:, :4], axis=0, return_counts=True)
    assert len(orders) == 6 and abs(counts / 500 - 1).max() < 0.15
    symbols = SelectiveCopy(symbols=4).sample(np.random.default_rng(0), 1000, 4)['targets']
    assert abs(np.bincount(symbols[:, -5:-1].ravel(), minlength=4) / 4000 - 0.25).max() < 0.03


def test_the_vocabulary_of_the_sheet():
    task = SelectiveCopy()
    assert task.symbols == 16 and task.vocab_size == 20
    assert task.decode(np.arange(14, 20)) == '14 15 . = $ _'
    assert SelectiveCopy(blanks=0.0).width(5) == 11
