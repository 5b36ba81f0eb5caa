"""The sweep of rotary rules by factor: its runs exist as asked, and claims read what it writes."""

import math

import pytest

from evidence.experiments import rotary_factors as sweep
from evidence.experiments.tables import report
from tests.evidence.written import effects, evaluation

SEARCHED = 'longrope(long=(1.0, 2.0), factor=2.0)'


def test_every_run_has_fields_that_exist_and_reads_as_many_bytes_a_step(tmp_path):
    for factor in sweep.FACTORS:
        for name, spec in sweep.extensions(factor, SEARCHED).items():
            config = sweep.tuned(tmp_path, name, factor, 3, spec, 60).asked()
            assert config.train.length * config.train.batch == sweep.BYTES
            assert (config.seed, config.train.steps, config.init.extend) == (3, 60, spec)


def test_every_claim_reads_what_the_sweep_writes(tmp_path):
    # Before the tuning YaRN has the least loss with four times the factor, PI with the factor.
    losses = {'base': 1.0, 'pi_4': 1.2, 'rope_4': 1.1}
    for factor in sweep.FACTORS:
        losses[f'base | yarn(factor={4 * factor}.0)'] = 1.15 if factor == 16 else 1.1
        losses[f'base | pi(factor={factor}.0)'] = 1.25
    curves = []
    for factor in sweep.FACTORS:
        tuned = [f'{name}_{factor}' for name in sweep.extensions(factor, SEARCHED)]
        read = [f'base | {spec}' if spec else 'base' for spec in sweep.untuned(factor)]
        lengths = sweep.LENGTH, sweep.LENGTH * factor
        nll = lambda name, length: losses.get(name, 1.3)
        evaluation(tmp_path / f'factor_{factor}', [*read, *tuned], lengths, nll)
        last = {'pi': 1.2, 'ntk_aware': 1.0, 'yarn': 1.1}
        curves += [
            (f'factor {factor}', name, float(step), seed, nats + (199 - step) / 1000)
            for name, nats in last.items()
            for seed in (0, 1, 2)
            for step in range(10, 201, 10)
        ]
    report(curves, tmp_path / 'tuning', title='t', x='step', value='nats')
    found = effects(tmp_path, 'rotary_factors')
    assert found.keys() == {'R6', 'R7', 'R9', 'R13'}
    first = {name: values[0] for name, values in found.items()}
    assert first['R6'] == pytest.approx(0.05 - 0.1)
    # Tuned, PI leads at factor 4 by .1; without tuning YaRN leads by .1 at least.
    assert first['R9'] == pytest.approx(-0.1)
    assert first['R13'] == pytest.approx(0.1)
    # YaRN is at 1.2 from step 100 on, PI from 200; the NTK-aware rule is at 1.1 from step 100 on.
    assert first['R7'] == pytest.approx(math.log10(100 / 200))
