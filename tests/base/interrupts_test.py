"""Ctrl-C: a line at once, also where Python cannot run, and one exit status."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from posenc_jax.base import interrupts, starting
from tests.lab.train.tiny import ROOT

needs_main_thread = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason='signals need it'
)
pytestmark = [
    needs_main_thread,
    pytest.mark.skipif(sys.platform == 'win32', reason='signals of threads'),
]


@pytest.fixture
def pressed():
    """Presses Ctrl-C in another thread, so that no call in the main thread is interrupted."""

    def press(before=lambda: None, then=lambda: None):
        def run():
            before()
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            then()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    return press


@pytest.fixture
def handled():
    """The numbers of the signals that Python has handled; Ctrl-C does nothing else."""
    numbers = []
    before = signal.signal(signal.SIGINT, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGINT, before)


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError('it did not come')


def test_the_line_comes_while_the_main_thread_computes(pressed, handled, capfd):
    """The main thread waits within C until the line is there, so that Python cannot handle the
    signal before. It may enter C too late, so there are several tries.
    """
    near, far = os.pipe()
    found = []

    def release():
        said = []
        try:
            wait_until(lambda: said.append(capfd.readouterr().err) or ''.join(said))
            found.append((''.join(said), len(handled)))
        finally:
            os.write(far, b'.')

    while not found or (found[-1][1] and len(found) < 9):
        handled.clear()
        with interrupts.announced(lambda: 'stopping'):
            thread = pressed(lambda: time.sleep(0.1), release)
            ctypes.CDLL(None).read(near, ctypes.create_string_buffer(1), 1)
            thread.join()
    assert found[-1] == ('stopping\n', 0) and handled == [signal.SIGINT]
    os.close(near)
    os.close(far)


def test_the_innermost_line_counts_and_once(pressed, handled, capfd):
    said = []
    with interrupts.announced(lambda: 'outer'):
        with interrupts.announced(lambda: said.append(1) or 'inner'):
            for count in (1, 2):
                pressed().join()
                wait_until(lambda count=count: len(handled) == count)
            wait_until(lambda: said)
    pressed().join()  # outside
    wait_until(lambda: len(handled) == 3)
    assert capfd.readouterr().err == 'inner\n' and signal.set_wakeup_fd(-1) == -1


def test_another_library_that_waits_for_signals_is_left_alone(pressed, handled, capfd):
    near, far = os.pipe()
    os.set_blocking(far, False)
    signal.set_wakeup_fd(far)
    with interrupts.announced(lambda: 'stopping'):
        pressed().join()
        wait_until(lambda: handled)
    assert os.read(near, 9) == bytes([signal.SIGINT]) and not capfd.readouterr().err
    assert signal.set_wakeup_fd(-1) == far


def test_a_program_ends_with_one_line_and_one_status(pressed, monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)
    signal.signal(signal.SIGINT, starting._stop)  # as while it starts

    def main():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        pressed().join()
        wait_until(lambda: False)

    assert interrupts.run('program', main) is None
    assert ended == [130]
    assert capfd.readouterr().err == 'program: stopping; Ctrl-C again ends at once\n'
    assert interrupts.run('program', lambda: 2) == 2 and not interrupts._name


def test_a_scope_that_the_signal_ends_has_said_its_line(pressed, monkeypatch, capfd):
    monkeypatch.setattr(os, '_exit', lambda _: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def main():
        with interrupts.announced(lambda: time.sleep(0.2) or 'inner'):
            signal.raise_signal(signal.SIGINT)

    interrupts.run('program', main)
    assert capfd.readouterr().err == 'program: inner\n'


def test_a_second_time_ends_a_program_at_once(pressed, handled, monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(os, '_exit', ended.append)

    def main():
        pressed().join()
        wait_until(lambda: len(handled) == 1)
        pressed().join()
        wait_until(lambda: ended)

    interrupts.run('program', main)
    assert ended == [130] and capfd.readouterr().err.count('\n') == 1


@pytest.mark.parametrize(
    'command',
    [
        ['train.py'],
        ['-m', 'posenc_jax.lab.cli.generate'],
        pytest.param(['eval.py'], marks=pytest.mark.full),
    ],
)
def test_a_program_that_has_not_begun_ends_with_one_line(command):
    process = subprocess.Popen(
        [sys.executable, '-X', 'importtime', *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.endswith('posenc_jax.base.starting\n'):
            break
    process.send_signal(signal.SIGINT)
    said = [line for line in process.stderr if not line.startswith('import time:')]
    assert process.wait() == 130 and said == ['stopped before the program had begun\n']


@pytest.mark.parametrize(
    'given, program',
    [
        (['python', '-m', 'posenc_jax.lab.cli.generate', '--run=x'], True),
        (['python', '-um', 'posenc_jax.lab.longrope_search'], True),
        (['python', '-m', 'pytest', 'posenc_jax'], False),
        (['python', '-m', 'other.posenc_jax'], False),
        (['python', str(ROOT / 'train.py')], True),
        (['python', '/elsewhere/train.py'], False),
        (['/usr/bin/posenc-train'], True),
        (['python'], False),
    ],
)
def test_only_programs_of_the_package_change_what_ctrl_c_does(given, program, monkeypatch):
    monkeypatch.setattr(sys, 'orig_argv', given)
    own = [word for word in given if not re.fullmatch('python', word)]
    monkeypatch.setattr(sys, 'argv', ['-m'] if own[:1] in (['-m'], ['-um']) else own or [''])
    assert starting._is_program() == program
