import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval import Passkey
from posenc_jax.lab.tasks.retrieval.passkey import ASK, FIRST_FILLER, KEY


def sequences(task, length, batch=300):
    data = task.sample(np.random.default_rng(0), batch, length)
    for tokens, targets, mask in zip(data['tokens'], data['targets'], data['loss_mask']):
        yield np.append(tokens[:1], targets), targets, mask


@pytest.mark.parametrize('length', [48, 7, (9, 20)])
@pytest.mark.parametrize('digits', [1, 3])
def test_answer_is_the_hidden_key_and_only_it_is_scored(length, digits):
    task = Passkey(digits=digits)
    lengths = set()
    for whole, targets, mask in sequences(task, length):
        whole = whole[whole < task.vocab_size - 1]  # without padding
        lengths.add(len(whole) - 1)
        (key_at,), (ask_at,) = np.flatnonzero(whole == KEY), np.flatnonzero(whole == ASK)
        key, answer = whole[key_at + 1 : key_at + 1 + digits], whole[ask_at + 1 :]
        np.testing.assert_array_equal(key, answer)
        np.testing.assert_array_equal(targets[mask == 1], answer)
        assert set(mask) <= {0, 1} and mask.sum() == digits
        rest = np.concatenate([whole[:key_at], whole[key_at + 1 + digits : ask_at]])
        assert (rest >= FIRST_FILLER).all() and len(rest) == len(whole) - 2 * digits - 2
    assert lengths == ({length} if isinstance(length, int) else set(range(9, 21)))


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
