"""The seven functions of prefixes against solvers that follow their words, and the numbers they are
asked about.
"""

import statistics

import numpy as np
import pytest

from posenc_jax.lab.tasks.number_lists import NUMBER_TASKS, intervals, prefix_minimum_of_sums


def largest_run(prefix):
    return max(sum(prefix[i:j]) for i in range(len(prefix)) for j in range(i + 1, len(prefix) + 1))


def smallest_sums(row):
    half = len(row) // 2
    sums = [min(row[i] + row[half + i] for i in range(end)) for end in range(1, half + 1)]
    return sums + sums


def of_prefixes(function):
    return lambda row: [function(row[:end]) for end in range(1, len(row) + 1)]


SOLVERS = {
    'cumsum': of_prefixes(sum),
    'cummin': of_prefixes(min),
    'cummax': of_prefixes(max),
    'median': of_prefixes(statistics.median),
    'sort': sorted,
    'maxsub': of_prefixes(largest_run),
    'minsum': smallest_sums,
}
NAN = float('nan')
every_task = pytest.mark.parametrize('name', NUMBER_TASKS)


def test_every_task_has_a_solver():
    assert SOLVERS.keys() == NUMBER_TASKS.keys() and len(SOLVERS) == 7


@every_task
@pytest.mark.parametrize('length, scale', [(8, 1.0), (5, 10.0)])
def test_a_solver_agrees_on_1000_samples(name, length, scale):
    x, y = NUMBER_TASKS[name].sample(np.random.default_rng(0), 1000, length, scale)
    assert x.shape == y.shape == (1000, length * (2 if name == 'minsum' else 1))
    assert x.dtype == y.dtype == np.float32
    again, _ = NUMBER_TASKS[name].sample(np.random.default_rng(0), 1000, length, scale)
    np.testing.assert_array_equal(x, again)
    other, _ = NUMBER_TASKS[name].sample(np.random.default_rng(1), 1000, length, scale)
    assert not np.array_equal(x, other)
    expected = [SOLVERS[name](row) for row in x.astype(np.float64).tolist()]
    np.testing.assert_allclose(y, expected, atol=2e-6 * scale * length)


@pytest.mark.parametrize(
    'name, x, y',
    [
        ('cumsum', [3, 1, 2], [3, 4, 6]),
        ('cummin', [3, 1, 2], [3, 1, 1]),
        ('cummax', [1, 3, 2], [1, 3, 3]),
        ('median', [3, 1, 2], [3, 2, 2]),
        ('sort', [3, 1, 2], [1, 2, 3]),
        ('maxsub', [1, -2, 3], [1, 1, 3]),
        ('maxsub', [-3, -1, -2], [-3, -1, -1]),
        ('minsum', [1, 2, 5, 0], [6, 2, 6, 2]),
    ],
)
def test_numbers_of_the_paper(name, x, y):
    assert NUMBER_TASKS[name].answer(np.array([x], np.float32)).tolist() == [y]


@pytest.mark.parametrize('scale', [1.0, 1.01, 3.0])
def test_intervals_leave_the_range_of_training(scale):
    ends = intervals(np.random.default_rng(0), 500, scale)
    assert (np.diff(ends) >= 0).all() and np.abs(ends).max() <= 2 * scale
    assert (np.abs(ends).max(axis=1) > 2).all() == (scale > 1)
    # The first draws of a sample are the intervals.
    x, _ = NUMBER_TASKS['sort'].sample(np.random.default_rng(0), 500, 8, scale)
    assert (x >= ends[:, :1] - 1e-6).all() and (x <= ends[:, 1:] + 1e-6).all()


@pytest.mark.parametrize(
    'name, value', [('batch', 0), ('length', 0), ('scale', 0.5), ('scale', NAN)]
)
def test_wrong_sizes(name, value):
    with pytest.raises(ValueError, match=f'{name} must be at least 1, got {value}'):
        NUMBER_TASKS['sort'].sample(
            np.random.default_rng(0), **{'batch': 2, 'length': 3, name: value}
        )


def test_halves_need_an_even_number():
    with pytest.raises(ValueError, match='got rows of 3 numbers; use 4'):
        prefix_minimum_of_sums(np.zeros((1, 3)))
