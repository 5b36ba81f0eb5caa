import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval import Passkeys


@pytest.mark.parametrize('length', [40, 15, (15, 30)])
def test_every_key_is_hidden_in_order_and_asked_for_in_order(length):
    task = Passkeys(keys=2, words=3, alphabet=9, fillers=5)
    data = task.sample(np.random.default_rng(0), 200, length)
    lengths, firsts = set(), set()
    for tokens, targets, mask in zip(data['tokens'], data['targets'], data['loss_mask']):
        whole = np.append(tokens[:1], targets)
        whole = whole[whole < task.vocab_size - 1]
        lengths.add(len(whole) - 1)
        places = [int(np.flatnonzero(whole == marker)[0]) for marker in range(4)]
        assert places == sorted(places)
        firsts.add(places[0])
        words = [whole[place + 1 : place + 4] for place in places]
        np.testing.assert_array_equal(words[:2], words[2:])
        np.testing.assert_array_equal(targets[mask == 1], np.concatenate(words[2:]))
        assert ((np.concatenate(words) >= 4) & (np.concatenate(words) < 13)).all()
        rest = np.delete(whole, [place + i for place in places for i in range(4)])
        assert (rest >= 13).all() and len(rest) == len(whole) - 16
    assert lengths == ({length} if isinstance(length, int) else set(range(15, 31)))
    assert len(firsts) > 5 or length == 15  # depths differ
