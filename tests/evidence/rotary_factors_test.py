"""The sweep of rotary rules by factor: its runs exist as asked, and claims read what it writes."""

import pytest

from evidence.experiments import rotary_factors as sweep
from tests.evidence.written import effects, evaluation

SEARCHED = 'longrope(long=(1.0, 2.0), factor=2.0)'


def test_every_run_has_fields_that_exist_and_reads_as_many_bytes_a_step(tmp_path):
    for factor in sweep.FACTORS:
        for name, spec in sweep.extensions(factor, SEARCHED).items():
            config = sweep.tuned(tmp_path, name, factor, 3, spec, 60).asked()
            assert config.train.length * config.train.batch == sweep.BYTES
            assert (config.seed, config.train.steps, config.init.extend) == (3, 60, spec)


def test_every_claim_reads_what_the_sweep_writes(tmp_path):
    for factor in sweep.FACTORS:
        tuned = [f'{name}_{factor}' for name in sweep.extensions(factor, SEARCHED)]
        read = [f'base | {spec}' if spec else 'base' for spec in sweep.untuned(factor)]
        lengths = sweep.LENGTH, sweep.LENGTH * factor
        nll = lambda name, length: 1.2 if name == 'pi_4' else 1.3
        evaluation(tmp_path / f'factor_{factor}', [*read, *tuned], lengths, nll)
    found = effects(tmp_path, 'rotary_factors')
    assert found.keys() == {'R13'}
    assert found['R13'][0] == pytest.approx(0.1)
