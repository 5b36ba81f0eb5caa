"""Whole runs of fields: training, the evaluation with its pictures, restoring, resuming to the bit,
and wrong input before anything is trained.
"""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from posenc_jax.lab.cli import eval as command
from posenc_jax.lab.config.config_file import read as read_config
from posenc_jax.lab.evaluate.results import read
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.model.losses import psnr
from posenc_jax.lab.runs.prepare import UNASKED, prepare
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.tasks.field_task import FieldTask, Points, grid_points
from posenc_jax.lab.tasks.pictures.picture import Picture
from posenc_jax.lab.train.loop import train
from posenc_jax.lab.train.metrics_file import FILE, read_lines
from posenc_jax.protocol import registry
from posenc_jax.protocol.errors import SpecError
from tests.lab.train import tiny
from tests.lab.train.loop_test import NAME, back_to

STEPS = 12
SETTINGS = (
    'model.kind=field', f'name={NAME}', f'train.steps={STEPS}', 'train.batch=64',
    'train.length=8', 'train.lr=1e-3', 'train.warmup=2', 'train.weight_decay=0.0',
    'train.save_every=6', 'train.eval_every=6', 'train.eval_batches=1', 'train.log_every=1',
)  # fmt: skip
RUNS = {
    'value': ('task=picture("synthetic", bits=8, outside=0.25)', 'field=siren(width=16, layers=2)'),
    'bits': (
        'task=bit_planes(picture("synthetic"))', 'field=bit_plane_inr(spder(width=16, layers=2))',
        'train.batch=512', 'eval.lengths=8',
    ),
    'class': ('task=quadrants()', 'field=fcnet(width=8, blocks=1)', 'train.batch=32'),
    'grown': (
        'task=picture("synthetic")', 'field=pins(width=8, levels=2, progressive=True)',
        'train.batch=40', 'eval.lengths=8',
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Quadrants(FieldTask):
    """The quadrant of a point as its class."""

    spec_kind = 'task'
    components, output_size, predicts = 2, 4, 'class'

    def points(self, length):
        axis = (np.arange(length) + 0.5) / length * 2 - 1
        coords = grid_points(axis, axis)
        return Points(coords, (2 * (coords[:, 0] > 0) + (coords[:, 1] > 0)).astype(np.int32))


@pytest.fixture(scope='module', autouse=True)
def quadrants():
    with pytest.MonkeyPatch.context() as patch:
        entry = registry.Entry('quadrants', 'task', Quadrants, None)
        patch.setitem(registry._ENTRIES, ('task', 'quadrants'), entry)
        yield


def config(workdir, *fields):
    given = (*SETTINGS, *fields, f'workdir={workdir}')
    return read_config('configs/default.py', [f'--config.{field}' for field in given])


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """kind -> the working directory of its run, which is trained when it is first asked for."""
    start = lambda workdir, kind: train(config(workdir, *RUNS[kind]))
    return tiny.trained_when_asked(tmp_path_factory.mktemp('fields'), start)


def losses(workdir):
    return tiny.losses(workdir / NAME)


def measured(workdir):
    (run,) = read(workdir / NAME / 'eval')
    return {(m.protocol, m.length, m.position_low): m for m in run.measurements}


def test_values_are_fitted_measured_and_drawn(runs):
    workdir = runs('value')
    found = losses(workdir)
    assert len(found) == STEPS and found[-1] < 0.9 * found[0]
    values = measured(workdir)
    assert {length for _, length, _ in values} == {8, 16, 32}
    _, model, step = restore_model(workdir / NAME)
    task = Picture('synthetic', bits=8, outside=0.25)
    points = task.evaluation_points(16)
    output = np.asarray(model(points.coords))
    assert step == STEPS
    for protocol, part in (('psnr', ''), ('psnr_outside', 'outside')):
        own = points.parts[part]
        error = ((output[own] - points.targets[own]) ** 2).mean()
        assert abs(values[protocol, 16, None].value - psnr(error)) < 1e-3
    whole = np.rint((np.clip(output, -1, 1) + 1) / 2 * 255).astype(int)
    truth = np.rint((points.targets + 1) / 2 * 255).astype(int)
    own = points.parts['']
    pairs = zip(whole[own, 0].tolist(), truth[own, 0].tolist())
    wrong = np.mean([(a ^ b).bit_count() for a, b in pairs])
    assert abs(values['bit_error_rate', 16, None].value - wrong / 8) < 1e-3
    assert values['lossless', 16, None].value == 0 and values['psnr', 8, None].tokens == 64
    written = {path.name for path in (workdir / NAME / 'eval').iterdir()}
    assert written == {
        *('results.json', 'results.csv', 'by_length.png', 'picture.png', 'pictures.md')
    }
    again = (workdir / NAME / 'eval' / 'pictures.md').read_text().split('![picture]')[1]
    assert f'python eval.py --run={workdir / NAME}' in again
    (line,) = [n for n in read_lines(workdir / NAME / FILE) if n['step'] == 6 and 'loss' not in n]
    assert line['validation_psnr'] == pytest.approx(psnr(line['validation_loss']), abs=1e-3)
    assert 0 < line['validation_bit_errors'] < 1


@pytest.mark.full
def test_bits_are_fitted_and_counted_by_plane(runs):
    workdir = runs('bits')
    assert losses(workdir)[-1] < losses(workdir)[0]
    values = measured(workdir)
    rates = [values['bit_errors_by_plane', 8, plane].value for plane in range(8)]
    assert values['bit_error_rate', 8, None].value == pytest.approx(np.mean(rates))
    assert 0 < rates[0] < 1 and values['lossless', 8, None].value == 0
    assert (workdir / NAME / 'eval' / 'picture.png').is_file()


@pytest.mark.full
def test_classes_of_points(runs):
    workdir = runs('class')
    found = measured(workdir)['accuracy', 8, None]
    assert 0.3 < found.value == found.token_accuracy <= 1 and found.low < found.value < found.high
    assert not (workdir / NAME / 'eval' / 'picture.png').exists()


@pytest.mark.full
@pytest.mark.parametrize('kind', ['class', 'grown'])
def test_a_resumed_run_has_the_same_losses_to_the_bit(runs, kind, tmp_path):
    """With dropout, and with levels that become active during training."""
    again = tmp_path / 'again'
    back_to(runs(kind), again, 6)
    train(config(again, *RUNS[kind]))
    assert losses(again) == losses(runs(kind))
    one, two = (restore_model(w / NAME)[1] for w in (again, runs(kind)))
    points = jax.random.uniform(jax.random.key(0), (5, 2))
    np.testing.assert_array_equal(one(points), two(points))


def test_an_evaluation_reads_other_resolutions(runs):
    directory = runs('value') / NAME
    results = evaluate([directory], {'eval.lengths': (4, 5)})
    assert sorted({m.length for m in results.runs[0].measurements}) == [4, 5]
    assert json.loads((directory / 'config.json').read_text())['task_shape'] == dict(
        components=2, width=1, output_size=1, predicts='value', bits=8
    )


EVALUATIONS = {  # a field that is changed -> what the message says
    'extend=yarn(factor=4.0)': 'extend is .* not read',
    'task=copy()': 'the model is a field, which reads points',
    'task=picture("synthetic")': 'trained with bits: 8; .*: 0',
    'eval.lengths=600': 'at length 600',
    'field=mlp()': 'field belongs to the checkpoint',
}


@pytest.mark.parametrize('override', EVALUATIONS)
def test_wrong_evaluations_are_refused(runs, override, capsys):
    assert command.main([f'--run={runs("value") / NAME}', f'--config.{override}']) == 2
    assert re.search(EVALUATIONS[override], capsys.readouterr().err)


def test_commands_that_read_text_refuse_a_field(runs):
    with pytest.raises(SpecError, match='is a field, which reads points; it has no text'):
        prepare(str(runs('value') / NAME), UNASKED)


def test_another_run_cannot_continue_a_field(runs, tmp_path):
    made = config(tmp_path, 'model.kind=decoder', f'init.source={runs("value") / NAME}')
    with pytest.raises(SpecError, match='is a field, whose weights no other run continues'):
        train(made)
