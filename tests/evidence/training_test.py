"""What the runs of a claim were given, and their learning curves."""

import json

import pytest

from evidence.claims import training
from posenc_jax.lab.config import config_file
from posenc_jax.lab.config.overrides import replaced
from posenc_jax.lab.runs import stored
from tests.evidence.claim_results_test import measurement


def log(directory, losses):
    directory.mkdir(parents=True)
    rows = [{'step': 10 * (n + 1), 'loss': loss} for n, loss in enumerate(losses)]
    lines = [*rows, {'step': 10 * len(losses), 'validation_loss': 0.5}]
    (directory / training.LOGGED).write_text(''.join(json.dumps(line) + '\n' for line in lines))


def test_curves_are_kept_and_their_last_fifth_is_compared_with_the_one_before(tmp_path):
    log(tmp_path / 'a_0', [4.0] * 60 + [2.0] * 20 + [1.5] * 20)
    log(tmp_path / 'a_1', [1.0] * 100)
    found = training.curves(tmp_path)
    assert list(found) == ['a_0', 'a_1'] and len(found['a_0']) == training.PARTS
    assert found['a_0'][0] == (50, 4.0) and found['a_0'][-1] == (1000, 1.5)
    assert training.fell(found['a_0']) == pytest.approx(0.25) and training.fell(found['a_1']) == 0
    assert training.fell([(10, 2.0)]) is None
    path = tmp_path / 'kept' / 'curves.csv'
    training.keep(found, path)
    assert path.read_text().splitlines()[:2] == ['run,step,loss', 'a_0,50,4']
    training.keep({}, tmp_path / 'none.csv')
    assert not (tmp_path / 'none.csv').exists()


def test_what_runs_are_given_is_declared_and_found_in_their_directories(tmp_path):
    sizes = {'model.layers': 1, 'model.width': 8, 'model.heads': 1, 'train.steps': 5}
    base = replaced(config_file.read('configs/default.py'), sizes)
    for name, batch, encoding in (
        ('a_0', 2, 'nope()'),
        ('b_0', 3, 'learned_absolute(max_len=512)'),
    ):
        log(tmp_path / name, [1.0] * 5)
        config = replaced(base, {'train.batch': batch, 'encoding': encoding})
        stored.save(config, tmp_path / name / stored.FILE)
    found = training.measured(tmp_path, training.curves(tmp_path))
    assert found['batches'] == [5, 5] and found['rows'] == [2, 3] and found['fell'] == [0.0, 0.0]
    assert found['parameters'][1] - found['parameters'][0] == 512 * 8
    known = training.declared(measurement(sweep='text', arguments=('bilevel', '--only', 'rope')))
    assert known.keys() == {'batches', 'rows', 'length', 'parameters'}
    assert training.declared(measurement(sweep='channel_prediction', arguments=())) == {}


def test_ranges_in_a_table():
    numbers = {'rows': [512, 512], 'parameters': [83456, 1234567], 'fell': [-0.01, 0.254]}
    texts = [training.range_text(numbers, name) for name in (*numbers, 'length')]
    assert texts == ['512', '83k to 1.2M', '-1% to 25%', '']
