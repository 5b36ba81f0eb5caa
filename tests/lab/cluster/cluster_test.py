"""Processes that train together: who is missing, gone, stopped or failed is told in one line by all
the others.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from posenc_jax.lab.cluster import cluster, peers
from posenc_jax.lab.cluster.cluster import Cluster
from posenc_jax.lab.cluster.peers import ClusterError, Peers
from posenc_jax.lab.runs.checkpoint import finished_steps
from tests.lab.train import tiny
from tests.lab.train.loop_test import finish, flags_of, free_port, wait_for

SILENCE = 3
NEXT = 'no step is saved; started again in every process, the same command begins anew'
UNHEARD = f'is gone: nothing was heard of it for {SILENCE} s (cluster.peer_timeout); {NEXT}'
# A process that meets the others, says so, and does what it is asked to; the file of peers.py
# alone, so that it starts at once.
PROCESS = f"""
import pathlib, sys, time
from peers import Peers
port, count, own = map(int, sys.argv[1:4])
directory = pathlib.Path('nothing')
peers = Peers(('127.0.0.1', port), count, own, start=60, silence={SILENCE}, directory=directory)
peers.meet()
print('met', peers.watcher.pid, flush=True)
with peers.telling():
    asked = sys.stdin.readline().strip()
    if asked == 'fail':
        raise ValueError('of its own')
    if asked == 'network':
        raise RuntimeError('Gloo all-reduce failed: connection closed by peer')
    if not asked:  # until it is killed
        time.sleep(60)
    peers.leave(lambda: time.sleep(own / 10))
"""


def meet(port, count, own, start=1.0):
    nowhere = pathlib.Path('nothing')
    times = dict(start=start, silence=60.0, directory=nowhere)
    return Peers(('127.0.0.1', port), count, own, **times).meet()


def start_peer(port, count, own, **pipes):
    """A process that runs `PROCESS`."""
    environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(peers.__file__).parent)}
    command = [sys.executable, '-c', PROCESS, *map(str, (port, count, own))]
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def others(group, gone):
    return [process for number, process in enumerate(group) if number != gone]


@pytest.fixture
def group():
    """Three processes that have met, though a stranger came first."""
    port, pipes = free_port(), dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
    start = lambda own: start_peer(port, 3, own, **pipes)
    processes = [start(0)]
    while True:
        try:
            socket.create_connection(('127.0.0.1', port)).sendall(b'GET / HTTP/1.1\r\n\r\n')
            break
        except OSError:
            time.sleep(0.05)
    processes += [start(1), start(2)]
    for process in processes:
        met = process.stdout.readline().split()
        assert met, process.stderr.read()
        process.watcher = int(met[1])
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def ask(process, what):
    process.stdin.write(what + '\n')
    process.stdin.flush()


def lines_of(processes, within):
    """What each of them ends with, which must be one line and status 1."""
    end, found = time.monotonic() + within, []
    for process in processes:
        _, errors = process.communicate(timeout=max(end - time.monotonic(), 0.1))
        assert process.returncode == 1 and errors.count('\n') == 1, (process.returncode, errors)
        found.append(errors.removeprefix('-c: ').rstrip())
    return found


@pytest.mark.parametrize(
    'gone, name',
    [(0, 'process 0 of 3, the coordinator,'), (1, 'process 1 of 3'), (2, 'process 2 of 3')],
)
def test_a_killed_process_is_noticed_at_once(group, gone, name):
    # Its library may notice first; this line is the one to tell.
    ask(group[(gone + 1) % 3], 'network')
    group[gone].kill()
    said = f'{name} is gone: its connection closed unexpectedly; {NEXT}'
    assert lines_of(others(group, gone), SILENCE + 2) == [said, said]


@pytest.mark.full
def test_a_silent_process_counts_as_gone(group):
    """As when its machine is, or the network."""
    os.kill(group[1].watcher, signal.SIGSTOP)
    said = f'process 1 of 3 {UNHEARD}'
    assert lines_of([group[0], group[2]], 2 * SILENCE + 10) == [said, said]
    os.kill(group[1].watcher, signal.SIGCONT)
    assert lines_of([group[1]], 10) == [said]  # which was said to it too


@pytest.mark.full
@pytest.mark.skipif(
    not pathlib.Path('/proc/self/stat').exists(), reason='only there a stopped process is told'
)
@pytest.mark.parametrize(
    'gone, name', [(0, 'process 0 of 3, the coordinator,'), (1, 'process 1 of 3')]
)
def test_a_stopped_process_counts_as_gone(group, gone, name):
    """Its watcher goes on, but says so no more."""
    os.kill(group[gone].pid, signal.SIGSTOP)
    said = f'{name} {UNHEARD}'
    assert lines_of(others(group, gone), 2 * SILENCE + 10) == [said, said]
    group[gone].wait(timeout=peers._GRACE + 10)  # its watcher ends it, stopped as it is


@pytest.mark.full_but_one
@pytest.mark.parametrize('failing', [0, 2])
def test_an_error_of_one_ends_all(group, failing):
    ask(group[failing], 'fail')
    said = f'process {failing} of 3 ended with ValueError: of its own; {NEXT}'
    assert lines_of(others(group, failing), peers._GRACE + 10) == [said, said]
    _, errors = group[failing].communicate(timeout=10)
    assert group[failing].returncode == 1 and 'gone' not in errors
    assert errors.endswith('ValueError: of its own\n')


def test_all_leave_together(group):
    for process in group:
        ask(process, 'leave')
    for process in group:
        assert process.communicate(timeout=10) == ('', '') and process.returncode == 0


@pytest.mark.full
def test_who_never_comes():
    port = free_port()
    said = (
        rf'the coordinator, process 0 at 127.0.0.1:{port}, could not be reached within 1 s '
        r'\(cluster.start_timeout\) \(.+\); no step is saved'
    )
    with pytest.raises(ClusterError, match=said):
        meet(port, 2, 1)
    said = r'processes 1, 2 of 3 did not connect to 127.0.0.1:\d+ within 1 s .*; no step is saved'
    with pytest.raises(ClusterError, match=said):
        meet(free_port(), 3, 0)
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        said = 'did not begin within 1 s .*: it ended, or something else listens there'
        with pytest.raises(ClusterError, match=said):
            meet(port, 2, 1)
        said = f'cannot listen at port {port} .* choose a free one in --coordinator'
        with pytest.raises(ValueError, match=said):
            meet(port, 2, 0)


def test_processes_that_count_otherwise_are_refused(group_of_one):
    said = 'process 0 was started with --processes=2, this one as 1 of 3'
    with pytest.raises(ValueError, match=said):
        meet(group_of_one, 3, 1, start=30.0)
    with socket.create_connection(('127.0.0.1', group_of_one)) as first:
        first.sendall(b'posenc_jax watch 1 2\n')
        heard = first.makefile()
        assert [heard.readline(), heard.readline()] == ['welcome\n', 'go\n']
        said = 'process 1 is there already; each process needs its own --process_id'
        with pytest.raises(ValueError, match=said):
            meet(group_of_one, 2, 1)


@pytest.fixture
def group_of_one():
    """The port of a process 0 of two."""
    port = free_port()
    process = start_peer(port, 2, 0, stdin=subprocess.PIPE)
    yield port
    process.kill()
    process.wait()


@pytest.mark.parametrize('coordinator', ['host', ':12', 'host:', 'host:x', 'host:70000'])
def test_addresses(coordinator):
    message = f"coordinator must be HOST:PORT or auto, got '{coordinator}'"
    with pytest.raises(ValueError, match=message):
        with Cluster(coordinator, 2, 0).joined(tiny.config('runs').cluster, pathlib.Path('runs')):
            pass


def test_a_program_does_not_wait_for_a_save_that_failed(monkeypatch):
    """Threads of orbax wait for minutes for those that could not write."""
    ended, left = threading.Event(), []
    monkeypatch.setattr(os, '_exit', left.append)
    assert cluster.leave(2) == 2 and left == []
    writer = type('Writer', (threading.Thread,), {'__module__': 'orbax.fake'})(target=ended.wait)
    writer.start()
    try:
        cluster.leave(2)
    finally:
        ended.set()
        writer.join()
    assert left == [2]


@pytest.mark.full
@pytest.mark.parametrize('gone', [0, 1])
def test_training_ends_with_one_line_and_goes_on(tmp_path, gone):
    """A process that is killed while two train: the checkpoint before is safe, and the same command
    goes on from it.
    """
    port = free_port()
    fields = dict(name='run', cache=tmp_path.parent / 'compiled', mesh__data=1, mesh__fsdp=2)
    fields |= dict(train__steps=100_000, train__save_every=4)
    start = lambda: [tiny.start(tmp_path, *flags_of(port, 2, i), **fields) for i in range(2)]
    both = start()
    wait_for(both[0], 'step 9/')
    both[gone].kill()
    began = time.monotonic()
    _, errors = finish(both[1 - gone], 1)
    assert time.monotonic() - began < 30
    name = ('process 0 of 2, the coordinator,', 'process 1 of 2')[gone]
    gone_line = rf'train.py: {name} is gone: its connection closed unexpectedly; '
    again_line = r'step (\d+) is safe; started again in every process, the same command continues '
    again_line += 'after it\n'
    said = re.fullmatch(gone_line + again_line, errors)
    assert said, errors
    both[gone].communicate()
    assert max(finished_steps(tmp_path / 'run')) == int(said[1])
    if gone == 0:  # whoever was gone, the others leave the same behind
        return
    again = start()
    wait_for(again[0], f'continuing after step {said[1]} of 100000')
    for process in again:
        process.kill()
        process.communicate()
