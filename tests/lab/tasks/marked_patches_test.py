import numpy as np
import pytest

from posenc_jax.lab.tasks.grid import MarkedPatches
from tests.refusals import refused


def marked(task, length, batch=400):
    """The rows and columns of each picture of a batch, its marked cells, and its class."""
    data = task.sample(np.random.default_rng(0), batch, length)
    rows = zip(data['tokens'], data['positions'], data['valid'], data['targets'][:, 0])
    for tokens, positions, valid, label in rows:
        size = positions[valid].max(axis=0) + 1
        assert valid.sum() == size.prod() and not positions[~valid].any()
        np.testing.assert_array_equal(positions[valid], [*np.ndindex(*size)])
        text = task.decode(tokens)
        assert {*text[valid.sum() :]} <= {'_'} and {*text[: valid.sum()]} == {*'.x'}
        yield tuple(size.tolist()), positions[tokens == task.names.index('x')], int(label)


@pytest.mark.parametrize('length', [6, (2, 5)])
def test_the_class_says_whether_one_diagonal_has_both(length):
    sizes, classes, directions = set(), [], set()
    for size, (one, other), label in marked(MarkedPatches(), length):
        down, right = other - one
        assert label == (abs(down) == abs(right))
        sizes.add(size)
        classes.append(label)
        directions |= {np.sign(down * right)} if label else set()
    assert len(sizes) == (1 if length == 6 else 16)
    assert 0.4 < np.mean(classes) < 0.6 and directions == {-1, 1}


@pytest.mark.parametrize('length', [5, 6, (2, 7)])
def test_the_class_is_the_quarter_of_the_marked_patch(length):
    task, found = MarkedPatches('quadrant', most=20), set()
    for size, (place,), label in marked(task, length):
        lower, right = (2 * place + 1 > size).astype(int)
        assert (2 * place + 1 != size).all() and label == 2 * lower + right
        assert length != (2, 7) or size[0] * size[1] <= 20
        found.add(label)
    assert found == {0, 1, 2, 3}


def test_the_limit_of_patches_holds_for_ranges_alone():
    task = MarkedPatches('quadrant', most=20)
    assert (task.width((2, 7)), task.width(7), MarkedPatches().width((2, 7))) == (20, 49, 49)


test_refused = refused(
    {'more than most=20 patches; nearest: most=25': lambda: MarkedPatches(most=20).width((5, 7))}
)
