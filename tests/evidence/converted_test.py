"""Models that are trained on: every run exists as asked, behind its source, and claims read what is
written.
"""

import json

import pytest

from evidence.claims import CLAIMS
from evidence.claims.results import ResultRows
from evidence.experiments import converted

BATCHES = 400


def runs_of(group, tmp_path):
    words = [group, '--seeds', '3', '--steps', str(BATCHES), '--workdir', str(tmp_path)]
    return converted.runs(converted.PROGRAM.parse(words))


def claims_of(group):
    own = [claim.how for claim in CLAIMS.values() if claim.how]
    return [how for how in own if (how.sweep, *how.arguments[:1]) == ('converted', group)]


@pytest.mark.parametrize('group', converted.GROUPS)
def test_a_run_follows_its_source_and_has_no_more_batches_than_the_others(group, tmp_path):
    found, batches = runs_of(group, tmp_path), {}
    for (name, seed), run in found.items():
        config, source = run.asked(), converted.GROUPS[group].runs[name].source
        assert (seed, config.seed) == (3, 3)
        assert config.init.source == (str(found[source, 3].directory) if source else '')
        assert not source or source in batches  # it is trained before
        batches[name] = config.train.steps + batches.get(source, 0)
    assert batches['rope' if group != 'longer' else 'long'] == BATCHES
    for name in ('dropped', 'continued'):
        assert batches.get(name, BATCHES) == BATCHES


def test_windows_of_any_length_have_as_many_bytes_in_a_batch(tmp_path):
    configs = [run.asked().train for run in runs_of('longer', tmp_path).values()]
    assert {own.length for own in configs} == {64, 256}
    assert len({own.length * own.batch for own in configs}) == 1


@pytest.mark.parametrize('group', converted.GROUPS)
def test_the_claims_read_what_a_group_writes(group, tmp_path):
    made = converted.GROUPS[group]
    rows = [
        {'run': f'{name}_0', 'extend': extension, 'seed': 0, 'length': n, 'nll': 1.0, 'value': 0.5}
        for name, stage in made.runs.items()
        for extension in ('', *stage.extended)
        for n in made.evaluation['eval.lengths']
    ]
    (tmp_path / 'comparison').mkdir()
    (tmp_path / 'comparison' / 'results.json').write_text(json.dumps({'results': rows}))
    found = [how.effects(ResultRows(tmp_path))[0] for how in claims_of(group)]
    assert found and max(found) < 0.005  # where all sides are equal, no claim holds
