"""Word problems: products composed point by point, and the groups by their axioms."""

import numpy as np
import pytest

from posenc_jax.lab.tasks.formal import WordProblem
from posenc_jax.lab.tasks.formal.word_problem import GROUPS, products

SIZES = {'parity': 2, 's3': 6, 'a4': 12, 's4': 24, 'a5': 60, 's5': 120}
every_group = pytest.mark.parametrize('group', SIZES)


def after(first, second):
    """The text of a permutation that is carried out after another one."""
    return ''.join(second[int(point)] for point in first)


def swaps(text):
    """The number of swaps, by a bubble sort, that sort a permutation."""
    points, count = list(text), 0
    for _ in points:
        for i in range(len(points) - 1):
            if points[i] > points[i + 1]:
                points[i : i + 2], count = points[i : i + 2][::-1], count + 1
    return count


@every_group
@pytest.mark.parametrize('scored', ['all', 'last'])
def test_products_are_composed_point_by_point(group, scored):
    task = WordProblem(group, scored)
    batch = task.sample(np.random.default_rng(0), 60, (1, 12))
    counts = set()
    for tokens, targets, mask, valid in zip(*(batch[name] for name in batch)):
        words, found = (task.decode(ids[valid]).split() for ids in (tokens, targets))
        counts.add(len(words))
        assert not valid[len(words) :].any() and (tokens[len(words) :] == SIZES[group]).all()
        if group == 'parity':
            expected = [str(words[: end + 1].count('1') % 2) for end in range(len(words))]
        else:
            expected = [words[0]]
            for word in words[1:]:
                expected.append(after(expected[-1], word))
        assert found == expected
        wanted = [1.0] * len(words) if scored == 'all' else [0.0] * (len(words) - 1) + [1.0]
        assert mask[valid].tolist() == wanted and not mask[~valid].any()
    assert counts == set(range(1, 13))


@every_group
def test_groups_are_closed_and_of_their_size(group):
    names = WordProblem(group).decode(np.arange(SIZES[group])).split()
    if group != 'parity':
        assert len(set(names)) == len(GROUPS[group]) == SIZES[group]
        assert names == sorted(names) and names[0] == ''.join(sorted(names[0]))
        assert all(after(names[-1], b) in names and after(b, names[1]) in names for b in names)
        even = [swaps(name) % 2 == 0 for name in names]
        assert all(even) if group.startswith('a') else 2 * sum(even) == len(names)
    batch = WordProblem(group).sample(np.random.default_rng(0), 100, 12 * 5)
    assert set(batch['tokens'].ravel()) == set(batch['targets'].ravel()) == set(range(SIZES[group]))


def test_an_element_and_its_inverse_cancel_and_s5_does_not_commute():
    group = GROUPS['s5']
    inverse = [int(np.flatnonzero((group == np.argsort(p)).all(axis=1))[0]) for p in group]
    pairs = np.stack([np.arange(120), inverse], axis=1)
    assert not products(pairs, group)[:, 1].any()
    orders = np.array([[1, 2], [2, 1]])
    assert len(set(products(orders, group)[:, 1])) == 2
