import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval import Passkey
from posenc_jax.lab.tasks.retrieval.passkey import FIRST_FILLER, KEY


def sequences(task, length, batch=300):
    data = task.sample(np.random.default_rng(0), batch, length)
    for tokens, targets, mask in zip(data['tokens'], data['targets'], data['loss_mask']):
        yield np.append(tokens[:1], targets), targets, mask


@pytest.mark.parametrize('depth, place', [(0.0, 0), (0.5, 12), (1.0, 24)])
def test_depth(depth, place):
    assert all(whole[place] == KEY for whole, _, _ in sequences(Passkey(depth=depth), 31))


def test_place_is_uniform_without_depth():
    places = [
        int(np.flatnonzero(whole == KEY)[0]) for whole, _, _ in sequences(Passkey(), 16, batch=4000)
    ]
    assert abs(np.bincount(places, minlength=10) / 4000 - 0.1).max() < 0.02


def test_filler_loss_is_for_training_only():
    task = Passkey(lm_weight=0.1)
    for _, targets, mask in sequences(task, (9, 20)):
        filler = (targets >= FIRST_FILLER) & (targets < task.vocab_size - 1)
        np.testing.assert_allclose(mask[filler], 0.1)
        assert mask[~filler].sum() == 3
    assert (task.dataset(length=20, batch_size=4, seed=0)[0]['loss_mask'] == np.float32(0.1)).any()
    assert set(
        np.unique(task.dataset(length=20, batch_size=4, seed=0, split='test')[0]['loss_mask'])
    ) == {0, 1}
