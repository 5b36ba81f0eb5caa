"""Synthetic translation: the rule of the order, alignments, the batches of an encoder-decoder."""

import numpy as np
import pytest

from posenc_jax.lab.tasks.translation import (
    MARK,
    MODIFIER,
    PADDING,
    PLAIN,
    VERB,
    Translation,
    alignment,
    target_order,
)
from tests.lab.tasks.bracketing import reachable


def reordered(words):
    """The rule, from the left: a unit with a verb goes behind the rest of its phrase."""
    if not words:
        return []
    at = next((i for i, word in enumerate(words) if word[0] != 'm'), len(words))
    if at < len(words) and words[at][0] == ',':
        return [*words[:at][::-1], words[at], *reordered(words[at + 1 :])]
    unit, rest = words[: at + 1][::-1], words[at + 1 :]
    if unit[0][0] != 'v':
        return unit + reordered(rest)
    comma = next((i for i, word in enumerate(rest) if word[0] == ','), len(rest))
    return reordered(rest[:comma]) + unit + reordered(rest[comma:])


@pytest.mark.parametrize('length', [1, 7, (1, 24)])
def test_a_solver_agrees_on_a_thousand_samples(length):
    task, moved = Translation(words=16, seed=3, alignments=True), 0
    batch = task.sample(np.random.default_rng(0), 1000, length)
    for number in range(1000):
        valid = batch['source_valid'][number]
        source = task.decode_source(batch['source'][number][valid]).split()
        targets = batch['targets'][number][batch['loss_mask'][number] == 1]
        expected = reordered(source)
        assert task.decode(targets).lower().split() == [*expected, '$']
        place, found = batch['source_positions'][number][valid].T
        assert place.tolist() == list(range(len(source)))
        assert [expected[there] for there in found] == source
        assert sorted(found) == place.tolist() and reachable(found.tolist())
        moved += found.tolist() != place.tolist()
    assert (moved > 500) == (length != 1)


def test_the_order_by_hand():
    kinds = [MODIFIER, MODIFIER, VERB, PLAIN, VERB, MODIFIER, MARK, MARK, MODIFIER, PLAIN, PADDING]
    # Phrase 1: units (m m v), (n), (v) and (m): n and m stay, then the verbs, the last one first.
    order = [3, 5, 4, 2, 1, 0, 6, 7, 9, 8, 10]
    assert target_order(np.array([kinds])).tolist() == [order]
    assert alignment(np.array([kinds])).tolist() == [[order.index(t) for t in range(11)]]


def test_alignments_are_indices_of_the_target():
    task = Translation(words=64, alignments=True)
    batch = task.sample(np.random.default_rng(0), 50, (3, 20))
    bijection = task.translations()
    assert sorted(bijection) == list(range(64))
    np.testing.assert_array_equal(
        task.align(batch['source']), np.array(batch['source_positions'])[..., 1]
    )
    for source, valid, pairs, targets in zip(
        batch['source'], batch['source_valid'], batch['source_positions'], batch['targets']
    ):
        np.testing.assert_array_equal(bijection[source[valid]], targets[pairs[valid][:, 1]])
        assert (pairs[~valid][:, 0] == pairs[~valid][:, 1]).all()


def test_batches_of_a_decoder():
    task = Translation(words=8)
    batch = task.sample(np.random.default_rng(0), 200, (2, 5))
    assert task.predicts == 'next' and 'source_positions' not in batch
    assert (task.vocab_size, task.source_size, task.source_width((2, 5))) == (11, 9, 5)
    counts = batch['source_valid'].sum(axis=1)
    assert set(counts) == {2, 3, 4, 5}
    for count, tokens, targets, mask, source in zip(
        counts, batch['tokens'], batch['targets'], batch['loss_mask'], batch['source']
    ):
        assert mask.tolist() == [1.0] * (count + 1) + [0.0] * (5 - count)
        assert tokens[0] == 8 and targets[count] == 9 and (targets[count + 1 :] == 10).all()
        assert targets[:count].max() < 8 and (source[count:] == 8).all()
        assert source[:count].max() < 8


def test_kinds_have_their_shares():
    kinds = Translation(words=64).kinds(np.arange(65))
    assert np.bincount(kinds).tolist() == [32, 16, 8, 8, 1] and kinds[64] == PADDING
    assert (np.diff(kinds) >= 0).all()


def test_the_bijection_depends_on_the_seed_alone():
    one, two = Translation(seed=1).translations(), Translation(seed=2).translations()
    np.testing.assert_array_equal(one, Translation(seed=1, alignments=True).translations())
    assert not np.array_equal(one, two)
