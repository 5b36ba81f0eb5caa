"""Checkpoints: what is read is what was written, and damage is noticed."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest

from posenc_jax.lab.files.checkpoint_files import check_place
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.checkpoint import CheckpointError, Checkpoints, fingerprint, finished_steps
from posenc_jax.lab.runs.entries import sealed, unsealed
from posenc_jax.lab.runs.restore import read_run, restore_model
from posenc_jax.lab.runs.run import validate
from tests.lab.runs.saved_runs import FIELDS, equal, params_of, trainer_of
from tests.lab.train import tiny

# Where a read fails, orbax drops the reads beside it, which Python mentions when they are
# collected: `run` collects them.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def arrays_file(directory: pathlib.Path, step: int, item='model') -> pathlib.Path:
    """The file that holds most of the arrays."""
    files = (directory / 'checkpoints' / str(step) / item).rglob('d/*')
    return max(filter(pathlib.Path.is_file, files), key=lambda path: path.stat().st_size)


@pytest.mark.full
def test_round_trip(run):
    directory, trainer, states = run
    with Checkpoints(directory, keep=2) as checkpoints:
        assert checkpoints.steps() == [3, 7]  # only so many are kept
        state, data, step = checkpoints.restore(trainer.abstract)
    assert (step, data) == (7, {'next_index': 70})
    equal(state, states[7])


def test_restore_model_reads_a_run_from_its_directory(run):
    directory, _, states = run
    for step, expected in ((None, 7), (3, 3)):
        config, model, found = restore_model(directory, step)
        assert found == expected and config.encoding == FIELDS['encoding']
        assert isinstance(model, Transformer)
        equal(params_of(model), states[expected].params)


def test_missing_step(run):
    with pytest.raises(CheckpointError, match=r'no checkpoint of step 5; there are \[3, 7\]'):
        restore_model(run[0], 5)


def test_other_devices(run):
    directory, _, states = run
    config = stored.from_json(directory / stored.FILE)
    mesh = trainer_of(config, data=1, fsdp=2, tensor=2, sequence=2)
    with Checkpoints(directory, keep=2) as checkpoints:
        state, _, _ = checkpoints.restore(mesh.abstract)
    assert len(state.params['embedding'].sharding.device_set) == 8
    assert state.params['embedding'].addressable_shards[0].data.shape == (257, 8)
    assert state.opt_state[1][0].mu['embedding'].sharding == state.params['embedding'].sharding
    equal(jax.device_get(state), states[7])


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {  # item, and what becomes of its largest file; None removes it
    'truncated': ('model', lambda content: content[: len(content) // 2]),
    'flipped': ('model', flipped),
    'emptied': ('model', lambda content: b''),
    'gone': ('model', None),
    'metadata': ('model/_METADATA', None),
    'optimizer': ('optimizer', lambda content: content[: len(content) // 2]),
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_falls_back(run, capsys, damage):
    directory, trainer, states = run
    item, change = DAMAGES[damage]
    whole = directory / 'checkpoints' / '7' / item
    path = arrays_file(directory, 7, item) if whole.is_dir() else whole
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    with Checkpoints(directory, keep=2) as checkpoints:
        state, data, step = checkpoints.restore(trainer.abstract)
        assert checkpoints.steps() == [3]
        # The run goes on, and its step 7 is a checkpoint again.
        checkpoints.save(7, state, data)
    assert (step, data) == (3, {'next_index': 30})
    equal(jax.device_get(state), states[3])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('checkpoint 7 of ') and line.endswith('; using 3 instead')
    assert (directory / 'checkpoints' / '7.damaged').is_dir()
    assert restore_model(directory)[2] == 7


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('config', 3),
        ('iterator', [1]),
        ('iterator', {'next_index': 1.5}),
        ('fingerprints', None),
        ('step', '7'),
        ('metrics', {'lines': 'x', 'digest': ''}),
    ],
)
def test_entries_of_another_kind_are_damage_though_their_digest_fits(run, name, value, capsys):
    directory, trainer, _ = run
    path = directory / 'checkpoints' / '7' / 'data' / 'metadata'
    entries = unsealed(json.loads(path.read_text()))
    path.write_text(json.dumps(sealed({**entries, name: value})))
    assert restore_model(directory)[2] == 3
    assert 'using 3 instead' in capsys.readouterr().out
    with Checkpoints(directory, keep=2, saved=stored.read_saved(directory / stored.FILE)) as found:
        assert found.restore(trainer.abstract)[2] == 3


def test_reading_alone_changes_nothing(run, capsys):
    directory, _, _ = run
    arrays_file(directory, 7).write_bytes(b'')
    assert restore_model(directory)[2] == 3
    assert 'using 3 instead' in capsys.readouterr().out
    assert {p.name for p in (directory / 'checkpoints').iterdir()} >= {'3', '7'}
    with pytest.raises(CheckpointError, match='checkpoint 7 of .* is damaged'):
        restore_model(directory, 7)


def test_the_line_about_damage_has_no_control_characters(run, capsys):
    directory, _, _ = run
    arrays_file(directory, 7).write_bytes(b'')
    assert restore_model(directory.rename(directory.with_name('a\x1b[31m')))[2] == 3
    assert capsys.readouterr().out.strip().isprintable()


def test_all_damaged(run):
    directory, trainer, _ = run
    for step in (3, 7):
        arrays_file(directory, step).write_bytes(b'')
    for _ in range(2):  # they stay, so that the same command is refused again and begins no new run
        with Checkpoints(directory, keep=2) as checkpoints:
            said = r'none of .*\[3, 7\] can be read \(7: .*\); put back a copy'
            with tiny.refused(said, CheckpointError, longest=600):
                checkpoints.restore(trainer.abstract)
        assert finished_steps(directory) == [3, 7]


@pytest.mark.full
def test_what_libraries_print_beside_a_damaged_checkpoint_is_hidden(run):
    """In a process of its own, whose threads print past Python's streams."""
    directory, _, _ = run
    for step in (3, 7):
        arrays_file(directory, step).write_bytes(b'')
    read = (
        f'from posenc_jax.lab.runs.restore import restore_model\nrestore_model({str(directory)!r})'
    )
    found = tiny.start_python('-c', read)
    out, errors = found.communicate()
    assert (found.returncode, out, errors.count('Traceback')) == (1, '', 1)
    assert 'Event loop' not in errors and 'never retrieved' not in errors


def test_a_save_that_was_cut_off_is_not_read(run):
    directory, trainer, _ = run
    folder = directory / 'checkpoints'
    shutil.copytree(folder / '7', folder / '9.orbax-checkpoint-tmp')
    with Checkpoints(directory, keep=2) as checkpoints:
        assert checkpoints.restore(trainer.abstract)[2] == 7


def test_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not the directory of a run'):
        restore_model(tmp_path)
    config = validate(tiny.config(tmp_path, **FIELDS))
    stored.save(config, tmp_path / stored.FILE)
    with pytest.raises(CheckpointError, match='has no checkpoint'):
        restore_model(tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(CheckpointError, match='holds no finished checkpoint'):
        restore_model(tmp_path)


@pytest.mark.parametrize('time', [10**40, 10**25, 'soon'])
def test_a_time_that_is_none_is_named_and_may_be_moved_away(run, time):
    directory, _, _ = run
    path = directory / 'checkpoints' / '7' / '_CHECKPOINT_METADATA'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'commit_timestamp_nsecs': time}))
    with pytest.raises(CheckpointError, match=r'a file \*/_CHECKPOINT_METADATA holds no time'):
        restore_model(directory)
    path.unlink()
    assert restore_model(directory)[2] == 7


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'name',
    [
        'checkpoints/7/_CHECKPOINT_METADATA',
        'checkpoints/7/data/metadata',
        'checkpoints/7/model/_METADATA',
        'checkpoints/7/model/manifest.ocdbt',
        'checkpoints/3/optimizer/array_metadatas/process_0',
        'checkpoints/5',
        'reading.lock',
    ],
)
def test_a_device_in_the_place_of_a_file_is_refused(run, name):
    """It is not skipped as a damaged checkpoint, since reading one may wait or go on for ever. The
    null device stands for all of them, so that the test ends if it is read.
    """
    directory, _, _ = run
    path = directory / name
    path.unlink(missing_ok=True)
    path.symlink_to('/dev/null')
    told = f'^{path} is a symbolic link to a device, expected a regular file; move it away$'
    for read in (restore_model, read_run):
        with pytest.raises(ValueError, match=told):
            read(directory)
    with pytest.raises(ValueError, match=told.replace(' to a device', '( to a device)?')):
        Checkpoints(directory, keep=2)
    assert path.is_symlink() and finished_steps(directory) == [3, 7]


def test_checkpoints_may_lie_on_another_disk(run, tmp_path):
    """The folder, one of the checkpoints and a file are links."""
    directory, _, states = run
    array = arrays_file(directory, 7)
    there = tmp_path / 'disk'
    (directory / 'checkpoints').rename(there)
    (directory / 'checkpoints').symlink_to(there)
    (there / '7').rename(tmp_path / 'seven')
    (there / '7').symlink_to(tmp_path / 'seven')
    array.rename(tmp_path / 'array')
    array.symlink_to(tmp_path / 'array')
    _, model, step = restore_model(directory)
    assert step == 7
    equal(params_of(model), states[7].params)


def test_files_and_other_names_among_checkpoints(run):
    directory, trainer, _ = run
    folder = directory / 'checkpoints'
    (folder / '99').write_text('')
    (folder / '016').mkdir()
    (folder / '\u0663').mkdir()  # a digit elsewhere
    with Checkpoints(directory, keep=2) as checkpoints:
        assert checkpoints.restore(trainer.abstract)[2] == 7


@pytest.mark.full_but_one
@pytest.mark.parametrize('keep', [None, 2])
def test_a_file_in_the_place_of_the_folder(run, keep):
    directory, _, _ = run
    shutil.rmtree(directory / 'checkpoints')
    (directory / 'checkpoints').write_text('')
    with pytest.raises(ValueError, match='/checkpoints is a file; expected a folder. Move it away'):
        Checkpoints(directory, keep=keep)
    (directory / 'checkpoints').unlink()
    (directory / 'checkpoints').symlink_to('/nowhere/there')
    nowhere = "/checkpoints is a link to '/nowhere/there', which does not exist; ma"
    for tried in (lambda: Checkpoints(directory, keep=keep), lambda: check_place(directory)):
        with pytest.raises(ValueError, match=nowhere):
            tried()


def test_a_run_has_no_place_below_a_file_or_a_link_to_nowhere(tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    for name, message in (('file', 'file is a file; exp'), ('link', 'link is a link to .*now')):
        for place in (tmp_path / name, tmp_path / name / 'rope'):
            with pytest.raises(ValueError, match=f'^{tmp_path}/{message}'):
                check_place(place)
    check_place(tmp_path / 'new' / 'rope')
    (tmp_path / 'nowhere').mkdir()
    check_place(tmp_path / 'link' / 'rope')


def test_a_place_with_too_long_a_name_is_one_short_line(tmp_path):
    with tiny.refused('File name too long; expected a folder', longest=200):
        check_place(tmp_path / ('(' * 5000) / 'rope')


def test_none_is_removed_while_somebody_reads(run):
    directory, trainer, _ = run
    state = trainer.init({})
    with Checkpoints(directory, keep=1) as checkpoints:
        with Checkpoints(directory) as reader:
            checkpoints.save(8, state, {})
            checkpoints.save(9, state, {})
            assert reader.restore_model(_abstract(trainer), 3)[1] == 3
        checkpoints.save(10, state, {})
        assert checkpoints.steps()[-2:] in ([8, 9], [9, 10], [9])  # 10 may be on its way
    assert finished_steps(directory) == [10]


def _abstract(trainer):
    return {'params': trainer.abstract.params, 'constants': trainer.abstract.constants}


def test_fingerprint():
    a, five = jnp.arange(6, dtype=jnp.float32), jnp.int32(5)
    nearly = a.at[3].set(jnp.nextafter(a[3], 9.0))
    yes, no = jnp.array([True, True]), jnp.array([True, False])
    for one, other in (
        ({'a': a, 'b': five}, {'a': nearly, 'b': five}),
        ({'a': a[:3], 'b': a[3:]}, {'a': a[3:], 'b': a[:3]}),
        ({'a': no}, {'a': yes}),
    ):
        assert int(fingerprint(one)) != int(fingerprint(other))
    assert int(fingerprint({})) == 0
