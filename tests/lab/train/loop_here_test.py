"""The training loop in this process: signals, what it says, and what it refuses."""

import os
import re
import signal

import jax
import pytest

from posenc_jax.base.targets import made_for
from posenc_jax.lab.cluster.stop import StopSignal
from posenc_jax.lab.runs.checkpoint import CheckpointError
from posenc_jax.lab.tasks import batch_iterator
from posenc_jax.lab.tasks.copy import Reverse
from posenc_jax.lab.tasks.language import Language
from posenc_jax.lab.train import loop
from posenc_jax.lab.train.metrics_file import FILE, read_lines
from posenc_jax.layer.sharding import make_mesh
from tests.lab.train import tiny
from tests.lab.train.loop_test import NAME


def test_a_signal_at_the_last_step_starts_no_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, '_evaluate', lambda *_: pytest.fail('evaluated'))
    read = []
    dataset = Language.dataset
    noted = lambda self, **given: read.append(given['split']) or dataset(self, **given)
    monkeypatch.setattr(Language, 'dataset', noted)
    fields = dict(name=NAME, train__steps=2, train__warmup=0, eval__at_end=True)
    fields |= dict(eval__stride=8, eval__lengths=(32,))
    monkeypatch.setattr(StopSignal, 'requested', lambda self, step: step == 2)
    directory = loop.train(tiny.config(tmp_path, **fields))
    assert 'stopped after step 2, which is saved' in capsys.readouterr().out
    assert read == ['train']  # no validation, train.eval_every=0
    monkeypatch.setattr(StopSignal, 'requested', lambda self, step: False)
    # While saving.
    asked = lambda *given: setattr(given[-1], 'asked', True) or True
    monkeypatch.setattr(loop, '_run', asked)
    assert loop.train(tiny.config(tmp_path, **fields)) == directory
    monkeypatch.setattr(loop, '_run', lambda *given: True)
    answers = iter([True, False])  # the lock is held; another process was asked
    monkeypatch.setattr(loop, 'everywhere', lambda good: next(answers))
    assert loop.train(tiny.config(tmp_path, **fields)) == directory and not list(answers)


@pytest.mark.full_but_one
@pytest.mark.parametrize('task, exact', [('language()', False), ('copy()', True)])
def test_rows_that_are_answers_have_an_exact_match(task, exact, tmp_path, capsys):
    fields = dict(name=NAME, train__steps=1, train__warmup=0, train__eval_every=1)
    fields |= dict(train__eval_batches=1, train__length=8, encoding='nope()', task=task)
    loop.train(tiny.config(tmp_path, **fields))
    (line,) = [x for x in read_lines(tmp_path / NAME / FILE) if 'validation_loss' in x]
    assert 'validation_accuracy' in line and ('validation_exact' in line) == exact
    said = capsys.readouterr().out
    assert 'validation_accuracy' in said and ('validation_exact' in said) == exact


def test_a_stopped_run_ends_with_the_status_that_the_config_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, '_run', lambda *given: stops.pop())
    config = tiny.config(tmp_path, name=NAME, cluster__stop_status=3)
    stops = [True, False]  # whether `_run` reached the last step; the last is the first
    with tiny.stopped(3):
        loop.train(config)
    assert loop.train(config) == tmp_path / NAME


BLOCKS = {  # implementation -> which attention is taken, and why
    '': r'in blocks \(a kernel of this library is the default on .*\), because alibi opens',
    'fused': r'in blocks \(a kernel of this library needs .*\), because alibi opens',
}


@pytest.mark.parametrize('implementation, words', BLOCKS.items())
def test_an_accelerator_tells_which_attention_is_taken(implementation, words, tmp_path, capsys):
    fields = dict(name=NAME, train__steps=1, train__warmup=0)
    exact = implementation == 'fused'
    fields |= dict(model__implementation=implementation, model__precision='highest' * exact)
    with made_for('cuda'):
        loop.train(tiny.config(tmp_path, **fields))
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith('products of float32')]
    assert exact == (not said) and all('--config.model.precision=highest' in line for line in said)
    (told,) = [line for line in lines if line.startswith('attention: ')]
    assert re.match(f'attention: {words}', told)


def test_a_kernel_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match="implementation='kernel' does not run on cpu; use"):
        loop.train(tiny.config(tmp_path / 'runs', name=NAME, model__implementation='kernel'))
    assert not (tmp_path / 'runs').exists()


def test_a_signal_that_came_while_the_processes_joined_is_passed_on_to_jax(monkeypatch):
    sent = []
    monkeypatch.setattr('os.kill', lambda *given: sent.append(given))
    agreed = 'jax.experimental.multihost_utils.reached_preemption_sync_point'
    monkeypatch.setattr(agreed, lambda step: step == 2)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr('jax.distributed.is_initialized', lambda: True)
        assert [stop.requested(step) for step in (1, 2)] == [False, True]
    assert stop.asked and sent == [(os.getpid(), signal.SIGTERM)]


@pytest.mark.parametrize('place', [{'next_index': -1}, {'next_index': 2**64}, {}])
def test_a_place_in_the_data_that_does_not_exist_is_refused_in_one_line(place):
    batches = batch_iterator(Reverse().dataset(length=(1, 4), batch_size=2, seed=0))
    with pytest.raises(CheckpointError, match=r'checkpoint 3 of run: the data .* at .*; put back'):
        loop._continue_data(batches, place, 'checkpoint 3 of run')


def test_a_mesh_that_does_not_divide_the_devices():
    said = 'tensor x fsdp x sequence = 2 does not divide 1 device; .*mesh.cpu_devices=2'
    with pytest.raises(ValueError, match=said):
        make_mesh(tensor=2, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match='= 4 does not divide 6 devices'):
        make_mesh(fsdp=2, sequence=2, devices=jax.devices()[:6])
