"""A run that meets a full disk ends with one line, keeps what it has, and goes on."""

import errno
import os
import pathlib
import re
import subprocess

import orbax.checkpoint as ocp
import pytest

from posenc_jax.lab.files import checkpoint_files, disk
from posenc_jax.lab.files.saved_steps import FOLDER
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.train import loop
from posenc_jax.lab.train.metrics import MetricsLog
from posenc_jax.lab.train.metrics_file import FILE, read_lines
from tests.lab.train import tiny

FIELDS = dict(name='run', model__layers=1, train__steps=6, train__warmup=0, train__save_every=2)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return tiny.losses(loop.train(tiny.config(tmp_path_factory.mktemp('whole'), **FIELDS)))


def train_until_full(workdir):
    """What the error says, in one line, of a run that nothing of a failed save is left of."""
    with pytest.raises(disk.DiskFullError) as caught:
        loop.train(tiny.config(workdir, **FIELDS))
    assert not list(workdir.rglob(checkpoint_files._UNFINISHED)) and not list(
        workdir.rglob('*.partial*')
    )
    text = str(caught.value)
    assert '\n' not in text and text.startswith('the disk is full: ')
    return text


def goes_on(workdir, whole):
    assert tiny.losses(loop.train(tiny.config(workdir, **FIELDS))) == whole


@pytest.mark.full
def test_room_for_a_checkpoint_is_looked_for_before_the_first_step(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(disk, 'free', lambda path: 1234)
    text = train_until_full(tmp_path)
    said = r'checkpoints needs [\d.]+ KiB, 1.21 KiB are free; no step is saved; once there is '
    assert re.search(said + r'room, .* begins anew$', text)
    monkeypatch.undo()
    goes_on(tmp_path, whole)


@pytest.mark.full
def test_a_save_that_fails_while_it_is_written(tmp_path, monkeypatch, whole):
    """The error comes in a thread of orbax's, beside others that still write."""
    handler = ocp.JsonCheckpointHandler
    real = handler.async_save

    async def fails(self, directory, *given, **named):
        if directory.parent.name.startswith('4.'):
            said = f'RESOURCE_EXHAUSTED: Failed to write 40992 bytes to file 8: {FULL.strerror} '
            raise ValueError(f'{said}[os_error_code=28]')
        return await real(self, directory, *given, **named)

    monkeypatch.setattr(handler, 'async_save', fails)
    text = train_until_full(tmp_path)
    assert text.endswith('step 2 is safe; once there is room, the same command continues after it')
    assert restore_model(tmp_path / 'run')[2] == 2
    monkeypatch.undo()
    goes_on(tmp_path, whole)


@pytest.mark.full
@pytest.mark.parametrize(
    'what, pieces', [('config.json', 0), ('metrics.jsonl', 5), ('events.out', 30)]
)
def test_other_files_of_a_run(tmp_path, monkeypatch, whole, what, pieces):
    """There is room for some pieces of the file, or for none."""
    write, append, done = disk.write, disk.Appended.write, []

    def to(path, size, real, *given):
        with disk.told(path, size):
            done.extend([path] * path.name.startswith(what))
            if len(done) > pieces:
                raise FULL
            real(*given)

    whole_file = lambda path, content: to(path, len(content), write, path, content)
    monkeypatch.setattr(disk, 'write', whole_file)
    piece_of = lambda self, piece: to(self._path, len(piece), append, self, piece)
    monkeypatch.setattr(disk.Appended, 'write', piece_of)
    text = train_until_full(tmp_path)
    monkeypatch.undo()
    assert re.search(rf'{what}\S* needs [\d.]+ (bytes|KiB)', text)
    safe = f'step {restore_model(tmp_path / "run")[2]} is safe' if pieces else 'no step is saved'
    assert safe in text
    goes_on(tmp_path, whole)


def test_what_a_killed_save_has_left_is_removed(tmp_path, whole):
    left = tmp_path / 'run' / FOLDER / '4.orbax-checkpoint-tmp' / 'model'
    left.mkdir(parents=True)
    goes_on(tmp_path, whole)
    assert not list(tmp_path.rglob(checkpoint_files._UNFINISHED))


def test_metrics_are_whole_lines(tmp_path, monkeypatch):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {'loss': 1.0})
        log._file._file.close()
        log._file._file = open('/dev/full', 'wb', buffering=0)
        with pytest.raises(disk.DiskFullError, match='metrics.jsonl needs'):
            log.write(2, {'loss': 0.5})
    assert read_lines(tmp_path / FILE) == [{'step': 1, 'loss': 1.0}]


@pytest.fixture
def small(tmp_path):
    """A file system of 400 kB, where one may mount it."""
    command = ['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', tmp_path]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip('may not mount a tmpfs')
    yield pathlib.Path(tmp_path)
    subprocess.run(['umount', tmp_path], check=True)


@pytest.mark.full
def test_a_disk_that_is_really_full(small, monkeypatch, capfd, whole):
    monkeypatch.setattr(disk, 'need', lambda *_: None)  # so that orbax meets it
    text = train_until_full(small)
    said = r'checkpoints needs [\d.]+ KiB, .* are free.*; (no step is saved|step \d is safe)'
    assert re.search(said, text)
    assert capfd.readouterr().err == ''
    subprocess.run(['mount', '-o', 'remount,size=16m', 'tmpfs', small], check=True)
    monkeypatch.undo()
    goes_on(small, whole)
