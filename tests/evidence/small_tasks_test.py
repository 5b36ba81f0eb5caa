"""The sweep of small tasks: its data by hand."""

import jax
import numpy as np

from evidence.experiments import small_tasks as sweep


def test_pairs_of_the_test_are_not_trained():
    keys = lambda test: {
        tuple(pair.ravel().tolist())
        for pair in np.asarray(sweep.pairs(jax.random.key(3), 3000, test)[0])
    }
    train, test = keys(False), keys(True)
    assert len(train) > 2000 and len(test) > 1500 and not train & test
    everything = len(sweep.all_pairs(False)) + len(sweep.all_pairs(True))
    along = sum(sweep.SIDE - abs(step) for step in range(-sweep.REACH, sweep.REACH + 1))
    assert everything == along**2
    places, classes = map(np.asarray, sweep.pairs(jax.random.key(0), 500, False))
    assert places.min() == 0 and places.max() == sweep.SIDE - 1
    step = places[:, 1] - places[:, 0] + sweep.REACH
    assert (step[:, 0] * (2 * sweep.REACH + 1) + step[:, 1] == classes).all()


def test_texts_are_copied_with_an_end():
    source, length, target = map(np.asarray, sweep.texts(jax.random.key(0), 50))
    for row, count, wanted in zip(source, length, target):
        assert wanted.tolist() == [1, *row[:count], 1, *[0] * (sweep.LONGEST - count)]
        assert (row[:count] > 1).all() and not row[count:].any()


def test_the_label_of_a_word_is_the_kind_that_is_read_before_it():
    found = sweep.forms(np.random.default_rng(0), 4)
    for near, x, wanted in zip(found['near'], found['x'], found['wanted']):
        for word, label in enumerate(wanted):
            earlier = [other for other in np.flatnonzero(near[word]) if other < word]
            kind = x[max(earlier), : sweep.KINDS].argmax() if earlier else sweep.KINDS
            assert label == kind
