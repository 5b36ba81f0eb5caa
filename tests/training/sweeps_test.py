"""Runs of a sweep whose configs differ in more than the encoding: all of them are valid, to their longest evaluation."""

import ast

import pytest

from configs import quickstart
from configs.sweeps import length_generalisation as sweep
from posenc_jax.training.config import validate

RUNS = [(group, name) for group, runs in sweep.GROUPS.items() for name in runs]


@pytest.mark.parametrize('group, name', RUNS, ids='-'.join)
def test_every_run_is_valid_and_reaches_its_longest_evaluation(group, name):
    config = quickstart.get_config().unlock()
    settings = {field: ast.literal_eval(value) for field, value in (setting.split('=', 1) for setting in sweep.SETTINGS)}
    longest = max(map(int, sweep.LENGTHS[group].split(',')))
    fields = {**settings, **sweep.GROUPS[group][name], 'train.length': sweep.TRAINED[group], 'eval.lengths': (longest,)}
    config.update_from_flattened_dict(fields)
    made = validate(config)
    assert made.task == fields['task'] and longest >= 3 * made.train.length
    randomized = 'random' in made.encoding
    assert randomized == (name.endswith('randomized') or name == 'recipe')
    if name.endswith('_randomized') and not name.startswith('sinusoidal'):
        assert len(set(made.pattern)) == made.model.layers  # a draw for every layer
