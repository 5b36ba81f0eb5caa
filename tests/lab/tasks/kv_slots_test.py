import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval import KVSlots


@pytest.mark.parametrize('ids', ['none', 'locations'])
@pytest.mark.parametrize('slot', [None, 0, 2])
def test_the_asked_pair_lies_in_its_slot(ids, slot):
    task = KVSlots(keys=9, values=5, words=2, slot=slot, ids=ids)
    batch = task.sample(np.random.default_rng(0), 200, (3, 6))
    slots, pair = set(), 3 + (ids == 'locations')
    for row, (tokens, targets, mask) in enumerate(
        zip(batch['tokens'], batch['targets'], batch['loss_mask'])
    ):
        (ask,) = np.flatnonzero(tokens == task.ask)
        count = ask // pair
        assert 3 <= count <= 6 and ask % pair == 0
        pairs = tokens[:ask].reshape(count, pair)[:, -3:]
        (place,) = np.flatnonzero(pairs[:, 0] == tokens[ask + 1])
        slots.add(int(place))
        np.testing.assert_array_equal(targets[mask == 1], pairs[place, 1:])
        if ids == 'locations':
            positions = batch['positions'][row]
            np.testing.assert_array_equal(positions[:, 0], np.arange(len(tokens)))
            np.testing.assert_array_equal(
                positions[:ask, 1], np.outer(1 + np.arange(count), [1, 0, 0, 0]).ravel()
            )
            assert not positions[ask:, 1].any() and (positions[:, 2] == count).all()
    assert slots == ({0, 1, 2, 3, 4, 5} if slot is None else {slot})
