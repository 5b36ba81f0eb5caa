"""A checkpoint has the config of its run: what may differ, and what is refused."""

import json
import re

import pytest

from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.checkpoint import CheckpointError, Checkpoints, finished_steps
from posenc_jax.lab.runs.restore import read_run, restore_model
from posenc_jax.lab.runs.run import validate
from tests.lab.runs.saved_runs import FIELDS, equal, params_of, trainer_of
from tests.lab.train import tiny

pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.mark.full
def test_another_model(run):
    directory, _, _ = run
    config = validate(tiny.config(directory, **{**FIELDS, 'model__width': 32}))
    another = r'is of another model: .* \(1, 16, 4, 4\) in the checkpoint and .* in the model'
    config_changed = (
        '7 of .*was trained with another config .*: model.width is 16 in the checkpoint and 32 now'
    )

    def refused(message):
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore(trainer_of(config).abstract)

    with Checkpoints(directory, keep=2) as checkpoints:
        refused(another)
        checkpoints.saved = stored.saved_of(config)
        refused(config_changed)
        checkpoints.accept()  # --resume_changed, which makes no other model of it
        refused(another)
        assert checkpoints.steps() == [3, 7]


def edited(directory, change):
    """Changes config.json of a run by hand."""
    path = directory / stored.FILE
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


EDITED = {  # how a field is edited: section, field, value -> what the message says
    ('model', 'epsilon', 0.1): 'model.epsilon is 1e-06 in the checkpoint and 0.1 now',
    ('model', 'embedding_scale', 3.0): 'model.embedding_scale is 0.0 in the checkpoint and 3.0 now',
    # The default is another.
    ('train', 'lr', None): 'train.lr is 0.01 in the checkpoint and 0.001 now',
    ('', 'pattern', ('nope()',)): r"pattern is \(\) in the checkpoint and \('nope\(\)',\) now",
    ('task_shape', 'width', 10**9): 'task_shape.width is 32 in the checkpoint and 1000000000 now',
    ('', 'task_shape', None): (
        r"task_shape.vocab_size is 257 in the checkpoint and '\(absent\)' now"
    ),
    # Nothing is built of it.
    ('model', 'layers', 10**12): 'model.layers is 1 in the checkpoint and 10+ now',
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('change', EDITED, ids='{0[0]}.{0[1]}'.format)
def test_a_config_that_was_edited_is_refused_with_its_fields(run, change):
    directory, _, _ = run
    section, field, value = change

    def change_field(fields):
        own = fields[section] if section else fields
        own.pop(field) if value is None else own.update({field: value})

    edited(directory, change_field)
    for read in (restore_model, lambda directory: restore_model(directory, 3), read_run):
        message = f'checkpoint . of .*another config than config.json has: .*{EDITED[change]}'
        with tiny.refused(message, CheckpointError):
            read(directory)


def test_what_may_change_in_a_config(run, tmp_path):
    directory, _, states = run
    free = {'name': 'other', 'workdir': '/nowhere', 'extend': 'pi(factor=2.0)'}

    def change(fields):
        fields.update(free)
        fields['eval'].update(batch=1)
        fields['train'].update(keep=7, save_every=3)
        # Fields of later versions, at their defaults.
        del fields['train']['z_loss'], fields['model']['lora_rank']

    edited(directory, change)
    moved = directory.rename(tmp_path / 'moved')
    config, model, step = restore_model(moved)
    assert step == 7 and config.name == 'other'
    equal(params_of(model), states[7].params)


def entries_file(directory, step):
    return directory / 'checkpoints' / str(step) / 'data' / 'metadata'


def test_checkpoints_of_versions_that_wrote_no_config_are_read(run):
    directory, trainer, states = run
    path = entries_file(directory, 7)
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({name: entries[name] for name in ('iterator', 'fingerprints')}))
    edited(directory, lambda fields: fields['model'].update(epsilon=0.1))
    _, model, step = restore_model(directory)
    assert step == 7
    equal(params_of(model), states[7].params)


def test_configs_of_before_a_change_are_those_of_the_run(run, capsys):
    directory, trainer, states = run
    changed = validate(tiny.config(directory, **FIELDS, train__lr=0.5))
    with Checkpoints(directory, keep=3, saved=stored.saved_of(changed)) as checkpoints:
        checkpoints.accept()
        state, data, step = checkpoints.restore(trainer.abstract)
        assert step == 7
        checkpoints.save(9, state, data)
        stored.write(checkpoints.saved, directory / stored.FILE)
    out = capsys.readouterr().out
    assert 'checkpoint 7 of' in out
    assert 'before --resume_changed: train.lr is 0.01 in the checkpoint' in out
    assert restore_model(directory)[2] == 9 and capsys.readouterr().out == ''
    assert restore_model(directory, 7)[2] == 7
    assert 'before --resume_changed' in capsys.readouterr().out
    edited(directory, lambda fields: fields['train'].update(lr=0.3))
    with pytest.raises(CheckpointError, match='train.lr is 0.5 in the checkpoint and 0.3 now'):
        restore_model(directory)
    edited(directory, lambda all: (all['train'].update(lr=0.5), all.pop('resumed_changed')))
    with pytest.raises(CheckpointError, match='train.lr is 0.01 in the checkpoint and 0.5 now'):
        restore_model(directory, 7)


def test_a_folder_that_was_renamed_is_not_taken_for_its_name(run):
    directory, trainer, _ = run
    (directory / 'checkpoints' / '7').rename(directory / 'checkpoints' / '16')
    told = 'checkpoint 16 of .* was saved at step 7: rename its folder back to 7'
    for read in (restore_model, lambda directory: restore_model(directory, 16), read_run):
        with pytest.raises(CheckpointError, match=told):
            read(directory)
    assert restore_model(directory, 3)[2] == 3
    with Checkpoints(directory, keep=2) as checkpoints:
        with pytest.raises(CheckpointError, match='was saved at step 7'):
            checkpoints.restore(trainer.abstract)
    assert {path.name for path in (directory / 'checkpoints').iterdir()} == {'3', '16'}


@pytest.mark.full_but_one
@pytest.mark.parametrize('change', [
    lambda entries: entries['iterator'].update(next_index=71),
    lambda entries: entries.update(step=16),
    lambda entries: entries['config'].update({'model.epsilon': 0.1}),
    lambda entries: entries.pop('digest'),
    lambda entries: entries.update(digest=None),
])  # fmt: skip
def test_entries_are_verified(run, capsys, change):
    directory, trainer, _ = run
    path = entries_file(directory, 7)
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))
    assert restore_model(directory)[2] == 3
    said = 'its entries differ from those that were saved'
    assert re.search(f'checkpoint 7 of .*{said}', capsys.readouterr().out)


def test_a_refused_run_loses_no_checkpoint(run):
    directory, trainer, _ = run
    other = stored.saved_of(validate(tiny.config(directory, **FIELDS, train__lr=0.5)))
    with (
        pytest.raises(CheckpointError, match='train.lr'),
        Checkpoints(directory, keep=1, saved=other) as checkpoints,
    ):
        checkpoints.restore(trainer.abstract)
    assert finished_steps(directory) == [3, 7]
