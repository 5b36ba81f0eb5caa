"""The sweep of long tunings: its runs exist as asked, and its claims read what it writes."""

import math

import pytest

from evidence.experiments import rotary_steps as sweep
from evidence.experiments.tables import report
from tests.evidence.written import effects, evaluation


def test_every_run_has_fields_that_exist_and_reads_as_many_bytes_a_step(tmp_path):
    assert sweep.base(tmp_path, 1, 20).asked().train.length == sweep.LENGTH
    for factor in sweep.FACTORS:
        for name, spec in sweep.extensions(factor).items():
            config = sweep.tuned(tmp_path, name, factor, 3, 60).asked()
            assert config.train.length * config.train.batch == sweep.BYTES
            assert (config.seed, config.train.steps, config.init.extend) == (3, 60, spec)


def test_every_claim_reads_what_the_sweep_writes(tmp_path):
    losses = {'base': 1.0, 'pi_4': 1.2, 'rope_4': 1.1, 'pi_16': 1.15, 'yarn_16': 1.0}
    losses |= {'base | yarn(factor=4.0)': 1.2, 'base | yarn(factor=16.0)': 1.1, 'yarn_4': 1.15}
    curves = []
    for factor in sweep.FACTORS:
        tuned = [f'{name}_{factor}' for name in sweep.extensions(factor)]
        read = ['base', *(f'base | {rule.format(factor)}' for rule in sweep.RULES.values())]
        lengths = sweep.LENGTH, sweep.LENGTH * factor
        nll = lambda name, length: losses.get(name, 1.3)
        evaluation(tmp_path / f'factor_{factor}', [*read, *tuned], lengths, nll)
        curves += [
            (f'factor {factor}', name, float(step), seed, nats + (999 - step) / 1000)
            for name, nats in {'pi': 1.2, 'ntk_aware': 1.0, 'yarn': 0.7}.items()
            for seed in (0, 1, 2)
            for step in range(10, 1001, 10)
        ]
    report(curves, tmp_path / 'tuning', title='t', x='step', value='nats')
    found = effects(tmp_path, 'rotary_steps')
    assert found.keys() == {'R4', 'R6', 'R7', 'R9'}
    first = {name: values[0] for name, values in found.items()}
    assert first['R4'] == pytest.approx(0.1 - 0.15)
    assert first['R6'] == pytest.approx(0.05 - 0.1)
    # Tuned with factor 4, YaRN leads PI by .05; without tuning it leads by .1 and .2.
    assert first['R9'] == pytest.approx(0.05)
    # YaRN is where PI ends at step 500, and PI itself at step 1000.
    assert first['R7'] == pytest.approx(math.log10(2))
