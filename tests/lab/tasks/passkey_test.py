import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval import Passkey
from posenc_jax.lab.tasks.retrieval.passkey import FIRST_FILLER, KEY
from tests.lab.tasks.rows import rows


@pytest.mark.parametrize('depth, place', [(0.0, 0), (0.5, 12), (1.0, 24)])
def test_depth(depth, place):
    assert all(ids[place] == KEY for ids, _ in rows(Passkey(depth=depth), 31))


def test_filler_loss_is_for_training_only():
    task = Passkey(lm_weight=0.1)
    batch = task.sample(np.random.default_rng(0), 300, (9, 20))
    filler = (batch['targets'] >= FIRST_FILLER) & (batch['targets'] < task.vocab_size - 1)
    np.testing.assert_allclose(batch['loss_mask'][filler], 0.1)
    assert (np.where(filler, 0, batch['loss_mask']).sum(axis=1) == 3).all()
    mask = lambda split: task.dataset(length=20, batch_size=4, seed=0, split=split)[0]['loss_mask']
    assert (mask('train') == np.float32(0.1)).any() and set(np.unique(mask('test'))) == {0, 1}
