"""Fields of the Potts model as a task."""

import numpy as np

from posenc_jax.lab.tasks.grid import MarkovField
from posenc_jax.lab.tasks.grid.markov_field import potts_fields
from posenc_jax.methods.nar import near_to_far_positions


def test_two_neighbours_of_a_long_ring_are_as_equal_as_ising_says():
    """On a torus of 2 x 2 cells every neighbour is there twice. With two states the weight of a
    field is exp(coupling * 2 * equal pairs), of 4 pairs, so the distribution is known.
    """
    coupling = 0.4
    x = potts_fields(np.random.default_rng(0), 20000, 2, states=2, coupling=coupling)
    fields = np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1).T.reshape(-1, 2, 2)
    equal = lambda a: (a[:, 1] == a[:, 0]).sum(-1) + (a[:, :, 1] == a[:, :, 0]).sum(-1)
    weights = np.exp(coupling * 2 * equal(fields))
    expected = (equal(fields) * weights).sum() / weights.sum()
    assert abs(equal(x).mean() - expected) < 4 * equal(x).std() / 20000**0.5
    assert abs(expected - 2) > 0.5  # independent cells have 2


def test_both_orders_write_the_same_fields():
    rng = lambda: np.random.default_rng(3)
    rows = MarkovField().sample(rng(), 2, 4)
    near = MarkovField(order='near_to_far').sample(rng(), 2, 4)
    assert (rows['tokens'][:, 0] == 4).all() and rows['loss_mask'].sum(1).tolist() == [16, 16]
    np.testing.assert_array_equal(rows['targets'][:, :-1], rows['tokens'][:, 1:])
    field = rows['tokens'][:, 1:].reshape(2, 4, 4)
    np.testing.assert_array_equal(near['positions'][0], near_to_far_positions((4, 4), 1))
    for place, (row, column) in enumerate(near['positions'][0].tolist()):
        scored = near['loss_mask'][:, place]
        if row < 0:
            assert scored.all() and (near['targets'][:, place] == field[:, 0, 0]).all()
            continue
        assert (near['tokens'][:, place] == field[:, row, column]).all()
        assert (scored == (column < 3)).all()
        if column < 3:
            assert (near['targets'][:, place] == field[:, row, column + 1]).all()
    assert (MarkovField().predicts, MarkovField(order='near_to_far').predicts) == ('next', 'here')
