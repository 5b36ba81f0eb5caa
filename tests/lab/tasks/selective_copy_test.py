import numpy as np

from posenc_jax.lab.tasks.copy import SelectiveCopy


def test_the_vocabulary_of_the_sheet():
    task = SelectiveCopy()
    assert task.symbols == 16 and task.vocab_size == 20
    assert task.decode(np.arange(14, 20)) == '14 15 . = $ _'
    assert SelectiveCopy(blanks=0.0).width(5) == 11
