"""The sweep of times: the limits of the effects of its claims."""

import pytest

from evidence.claims import CLAIMS
from evidence.claims.results import ResultRows
from evidence.experiments.tables import report


def written(tmp_path, *rows):
    report(rows, tmp_path, title='t', x='size', value='ratio')
    return ResultRows(tmp_path)


def test_a_limit_that_is_not_kept_counts_against_the_claim(tmp_path):
    found = written(
        tmp_path,
        *(('steps', 'time of cable', 128, 0, 1.02), ('steps', 'memory of cable', 128, 0, 0.6)),
        *(('steps', 'time of cable', 128, 1, 1.30), ('steps', 'memory of cable', 128, 1, 0.6)),
        *(('kernelized', 'softmax', 32768, 0, 10.0), ('kernelized', 'slope', 32768, 0, 1.1)),
        *(('kernelized', 'softmax', 32768, 1, 10.0), ('kernelized', 'slope', 32768, 1, 1.5)),
    )
    assert CLAIMS['B11'].how.effects(found) == pytest.approx({0: 0.4, 1: -0.25})
    assert CLAIMS['B17'].how.effects(found) == pytest.approx({0: 1.0, 1: -0.3})


def test_streaming_heads_are_compared_with_the_mean_of_the_draws(tmp_path):
    rows = [('passkeys', 'trained gates', 0.0, seed, 1.0) for seed in (0, 1)]
    rows += [
        ('passkeys', 'trained gates', 0.5, 0, 0.98),
        ('passkeys', 'trained gates', 0.5, 1, 0.7),
    ]
    rows += [
        ('passkeys', 'random gates', 0.5, seed, value) for seed in (0, 1) for value in (0.4, 0.6)
    ]
    found = CLAIMS['X2'].how.effects(written(tmp_path, *rows))
    assert found == pytest.approx({0: 0.48, 1: -0.3})
