"""One process trains a run at a time, and none loses a checkpoint that it reads. Real processes
where processes matter.
"""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from posenc_jax.lab.files import lock
from posenc_jax.lab.runs.checkpoint import finished_steps
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.train.loop import LOCK, train
from tests.lab.files.regular_test import make
from tests.lab.train import tiny
from tests.lab.train.loop_test import finish, flags_of, free_port, losses, wait_for

NAME = 'run'


def refused(path, message, kind=lock.HeldError, instead='choose another'):
    """Tries to hold a lock, which must be refused."""
    with tiny.refused(message, kind), lock.hold(path, 'the run is trained', instead):
        pass


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.getbasetemp().parent / 'compiled'


def test_a_second_holder_is_told_who_the_first_is(tmp_path):
    path = tmp_path / 'new' / 'a.lock'
    with lock.hold(path, 'the run is trained', 'choose another'):
        since = rf'^the run is trained by process {os.getpid()} on .+ since 20\d\d-.*'
        refused(path, rf'{since}; wait for it, or choose another$')
        path.write_text('')  # taken, but not said by whom yet
        refused(path, 'by another process;')
    with lock.hold(path, '', ''):
        pass
    assert path.read_text() == ''


CONTENTS = {
    'of bytes': b'\xff\x1b[31m',
    'of brackets': b'[' * 4000,
    'of another object': b'{"process": 1, "host": 2, "since": 3}',
}
HOLDS = 'is not a lock file: it holds '
NO_LOCKS = {  # what is there -> what the message says
    **{
        kind: f'is {kind.removesuffix(" to nothing")}, expected a regular file; move it away'
        for kind in ('a symbolic link', 'a symbolic link to nothing', 'a pipe', 'a folder')
    },
    'a hard link': f"{HOLDS}b'of somebody', expected nothing or the ",
    'a huge file': HOLDS,
    'of bytes': HOLDS + r"b'\\xff\\x1b\[31m', expected nothing or the name",
    'of brackets': HOLDS,
    'of another object': HOLDS,
}


@pytest.mark.parametrize('kind', NO_LOCKS)
def test_what_is_not_a_lock_is_left_alone(tmp_path, kind):
    path, own = tmp_path / 'training.lock', tmp_path / 'own.txt'
    own.write_text('of somebody')
    if kind == 'a hard link':
        path.hardlink_to(own)
    elif kind == 'a huge file':
        path.touch()
        os.truncate(path, 2**30)
    elif kind in CONTENTS:
        path.write_bytes(CONTENTS[kind])
    else:
        make(kind, path, tmp_path / 'absent' if kind.endswith('nothing') else own)
    size = path.lstat().st_size
    with pytest.raises(ValueError, match=rf'^{path} {NO_LOCKS[kind]}') as caught:
        lock.hold(path, 'the run is trained', 'choose another').__enter__()
    assert str(caught.value).isprintable() and len(str(caught.value)) < len(str(path)) + 150
    assert own.read_text() == 'of somebody' and not (tmp_path / 'absent').exists()
    assert path.lstat().st_size == size


@pytest.mark.parametrize('left', ['', '\0' * 80, '{"process": 1, "host": "a", "since": "b"}\n'])
def test_what_a_killed_holder_or_a_crash_leaves_is_a_lock(tmp_path, left):
    path = tmp_path / 'a.lock'
    path.write_text(left)
    with lock.hold(path, '', ''):
        assert f'"process": {os.getpid()}' in path.read_text()
    assert path.read_text() == ''


NINES = f'process {"9" * 54}…{"9" * 26}'
HOLDERS = {  # what a lock file holds -> how its holder is named
    '[' * 5000: 'another process',
    '{"a": ' * 600: 'another process',
    '\udcff': 'another process',
    '{"process": [1], "host": "a", "since": "b"}': 'another process',
    r'{"process": 1, "host": "\u001b[31mred\nline", "since": "\u202e2030"}': (
        r'process 1 on \x1b[31mred\nline since \u202e2030'
    ),
    f'{{"process": {10**4000 - 1}, "host": "a", "since": "b"}}': f'{NINES} on a since b',
}


@pytest.mark.parametrize('content', HOLDERS, ids=range(len(HOLDERS)))
def test_a_holder_is_named_on_one_line_whatever_its_file_holds(tmp_path, content):
    path, holder = tmp_path / 'a.lock', re.escape(HOLDERS[content])
    with lock.hold(path, 'the run is trained', 'choose another'):
        path.write_text(content, errors='surrogateescape')
        refused(path, f'^the run is trained by {holder}; wait for it, or choose another$')
        path.write_text('')


@pytest.mark.parametrize('kind', ['a symbolic link to a device', 'a pipe'])
def test_readers_and_removers_refuse_what_is_no_file(tmp_path, kind):
    path = tmp_path / 'reading.lock'
    path.symlink_to('/dev/null') if kind != 'a pipe' else os.mkfifo(path)
    # With both ends open nothing would wait, so the test fails rather than hangs.
    ends = [os.open(path, os.O_RDWR)]
    with pytest.raises(ValueError, match=rf'^{path} is {kind}, expected'), lock.sharing(path):
        pass
    written = kind.removesuffix(' to a device')
    with pytest.raises(ValueError, match=rf'^{path} is {written}, expected'), lock.alone(path):
        pass
    with pytest.raises(ValueError, match=rf'^{path} is {written}, expected'):
        lock.offer(path)
    os.close(ends.pop())


def test_a_reader_may_come_through_a_link(tmp_path):
    path, link = tmp_path / 'a.lock', tmp_path / 'b.lock'
    lock.offer(path)
    link.symlink_to(path)
    with lock.sharing(link), lock.alone(path) as unread:
        assert not unread


def test_a_lock_ends_with_its_process_and_not_with_its_children(tmp_path):
    """A killed process holds nothing, though a child that it forked lives on."""
    code = """
import os, pathlib, sys, time
from posenc_jax.lab.files import lock
with lock.hold(pathlib.Path(sys.argv[1]), '', ''):
    if not os.fork():
        print(os.getpid(), flush=True)  # the child, which has closed the lock
    time.sleep(60)
"""
    path = tmp_path / 'a.lock'
    process = tiny.start_python('-c', code, str(path))
    child = int(process.stdout.readline())
    try:
        refused(path, f'by process {process.pid} on')
        process.kill()
        process.wait()
        os.kill(child, 0)  # it is there
        with lock.hold(path, 'held', 'go'):
            pass
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_readers_share_and_who_removes_is_alone(tmp_path):
    path = tmp_path / 'reading.lock'
    with lock.sharing(path):  # there is no file yet
        assert not path.exists()
    with lock.alone(path) as unread:
        assert unread
    with lock.sharing(path), lock.sharing(path):
        with lock.alone(path) as unread:
            assert not unread
    with lock.alone(path) as unread:
        assert unread


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr(fcntl, 'flock', refuse)
    with lock.hold(tmp_path / 'a.lock', '', ''):
        pass
    (line,) = capsys.readouterr().out.splitlines()
    name = tmp_path / 'a.lock'
    assert line.startswith(f'the file system of {name} has no locks (Function not implemented): ')


def test_training_takes_the_lock_before_it_writes(tmp_path):
    """The next test does the same with real processes."""
    run = tmp_path / NAME
    with (
        lock.hold(run / LOCK, f'{run} is being trained', 'wait'),
        pytest.raises(lock.HeldError, match=f'^{run} is being trained by process {os.getpid()} on'),
    ):
        train(tiny.config(tmp_path, name=NAME))
    assert [path.name for path in run.iterdir()] == [LOCK]


@pytest.mark.full
def test_a_run_that_is_trained_is_not_trained_again(cache, tmp_path):
    fields = dict(name=NAME, cache=cache, train__save_every=4, train__steps=100_000)
    first = tiny.start(tmp_path, **fields)
    wait_for(first, 'step 5/')
    config = (tmp_path / NAME / 'config.json').read_bytes()
    refused = (
        rf'^train.py: {tmp_path / NAME} is being trained by process {first.pid} on .+; '
        r'wait for it, or give this run another '
    )
    port = free_port()
    again = tiny.start(tmp_path, **fields, train__lr=0.5)
    cluster = [
        tiny.start(tmp_path, *flags_of(port, 2, i), **fields, mesh__data=1, mesh__fsdp=2)
        for i in range(2)
    ]
    for process in (again, cluster[0]):
        _, errors = finish(process, 2)
        assert re.match(refused, errors.splitlines()[-1]), errors
    _, errors = finish(cluster[1], 2)  # process 0 alone took the lock, and all end
    said = f'{tmp_path / NAME}: process 0 did not get training.lock; its own message says why'
    assert errors.splitlines()[-1] == f'train.py: {said}'
    assert (tmp_path / NAME / 'config.json').read_bytes() == config and first.poll() is None
    first.kill()
    first.wait()
    # Whoever was killed holds nothing.
    process = tiny.start(tmp_path, **fields)
    wait_for(process, 'continuing after step')
    wait_for(process, 'step ')
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert restore_model(tmp_path / NAME)[2] == max(losses(tmp_path))


@pytest.mark.full
def test_an_evaluation_loses_no_checkpoint_while_the_only_one_is_replaced(cache, tmp_path):
    process = tiny.start(
        tmp_path, name=NAME, cache=cache, train__save_every=1, train__keep=1, train__steps=100_000
    )
    wait_for(process, 'step 3/')
    found, until = [], time.monotonic() + 60
    while len(set(found)) < 5 and time.monotonic() < until:
        found.append(restore_model(tmp_path / NAME)[2])
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process)
    assert found == sorted(found) and len(set(found)) > 3
    assert 'damaged' not in out and not list((tmp_path / NAME / 'checkpoints').glob('*.damaged'))
    assert finished_steps(tmp_path / NAME) == [max(losses(tmp_path))]


def test_a_program_that_inherits_a_lock_keeps_it(tmp_path):
    path = tmp_path / 'run.lock'
    with lock.hold(path, 'the run is trained', 'choose another') as held:
        program = [sys.executable, '-c', 'import time; time.sleep(600)']
        child = subprocess.Popen(program, pass_fds=(held,))
    try:
        refused(path, 'the run is trained by')
    finally:
        child.kill()
        child.wait()
    with lock.hold(path, 'the run is trained', ''):
        pass
