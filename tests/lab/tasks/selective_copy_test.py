import numpy as np

from posenc_jax.lab.tasks.copy import SelectiveCopy


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
