"""The sweep of times: what it writes is what the claims read, and the limits of their effects."""

import math

import pytest

from evidence.claims import caches, timing
from evidence.claims.claim import Results
from evidence.experiments import timings
from evidence.experiments.tables import report

SMALL = {timing.LENGTH: 512, timing.WINDOW: 16, timing.CONTEXT: 8}


def written(tmp_path, *rows):
    report(rows, tmp_path, title='t', x='size', value='ratio')
    return Results(tmp_path)


@pytest.mark.full
@pytest.mark.parametrize('group', timings.GROUPS)
def test_every_group_writes_what_its_claims_read(group, tmp_path, monkeypatch):
    sizes = ('--rounds', '2', '--window', '16', '--tokens', '64', '--length', '512')
    words = ('timings', '--groups', group, '--seeds', '0', '1', *sizes, '--context', '8')
    monkeypatch.setattr('sys.argv', [*words, '--workdir', str(tmp_path)])
    timings.main()
    found = Results(tmp_path)
    for row in found.rows:  # as if the sizes were those of the claims
        row['x'] = {small: size for size, small in SMALL.items()}.get(row['x'], row['x'])
    own = [how for how in timing.MEASUREMENTS.values() if how.arguments == ('--groups', group)]
    assert own
    for how in own:
        effects = how.measure(found)
        assert effects.keys() == {0, 1} and all(map(math.isfinite, effects.values()))


def test_a_limit_that_is_not_kept_counts_against_the_claim(tmp_path):
    found = written(
        tmp_path,
        *(('steps', 'time of cable', 128, 0, 1.02), ('steps', 'memory of cable', 128, 0, 0.6)),
        *(('steps', 'time of cable', 128, 1, 1.30), ('steps', 'memory of cable', 128, 1, 0.6)),
        *(('kernelized', 'softmax', 32768, 0, 10.0), ('kernelized', 'slope', 32768, 0, 1.1)),
        *(('kernelized', 'softmax', 32768, 1, 10.0), ('kernelized', 'slope', 32768, 1, 1.5)),
    )
    assert timing.MEASUREMENTS['B11'].measure(found) == pytest.approx({0: 0.4, 1: -0.25})
    assert timing.MEASUREMENTS['B17'].measure(found) == pytest.approx({0: 1.0, 1: -0.3})


def test_streaming_heads_are_compared_with_the_mean_of_the_draws(tmp_path):
    rows = [('passkeys', 'trained gates', 0.0, seed, 1.0) for seed in (0, 1)]
    rows += [
        ('passkeys', 'trained gates', 0.5, 0, 0.98),
        ('passkeys', 'trained gates', 0.5, 1, 0.7),
    ]
    rows += [
        ('passkeys', 'random gates', 0.5, seed, value) for seed in (0, 1) for value in (0.4, 0.6)
    ]
    found = caches.MEASUREMENTS['X2'].measure(written(tmp_path, *rows))
    assert found == pytest.approx({0: 0.48, 1: -0.3})
