"""What is reported survives being cut off."""

import json
import os
import re
import struct

import pytest

from posenc_jax.lab.train.metrics import MetricsLog, Progress
from posenc_jax.lab.train.metrics_file import FILE, read_lines
from tests.lab.train import tiny


def test_resuming_drops_what_came_after(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        for step in range(1, 6):
            log.write(step, {'loss': 1 / step})
    with (tmp_path / FILE).open('a') as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with MetricsLog(tmp_path, 3) as log:
        log.write(4, {'loss': 9.0})
    found = [(line['step'], line['loss']) for line in read_lines(tmp_path / FILE)]
    assert found == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 9.0)]


def test_a_new_run_starts_empty(tmp_path):
    (tmp_path / FILE).write_text('not json\n')
    with MetricsLog(tmp_path, 0):
        pass
    assert read_lines(tmp_path / FILE) == []


def test_a_file_of_terabytes_is_not_read(tmp_path):
    (tmp_path / FILE).touch()
    os.truncate(tmp_path / FILE, 2**42)
    expected = rf'{FILE} has {2**42} bytes, expected at most {2**28}; move it away'
    with pytest.raises(ValueError, match=expected):
        read_lines(tmp_path / FILE)
    with pytest.raises(ValueError, match=expected):
        MetricsLog(tmp_path, 3)


def test_lines_are_on_disk_at_once(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {'loss': 0.1})
        assert json.loads((tmp_path / FILE).read_text()) == {'step': 1, 'loss': 0.1}


DAMAGED = {  # a line -> what the message says of it
    'nonsense': "is not JSON: 'nonsense'",
    '\0' * 90: r"is not JSON: '\\x00",
    '{"step": 1, "lo': 'is not JSON',
    '[' * 10_000: 'is not JSON',
    'null': 'is None, expected an object of numbers',
    '3': 'is 3, expected an object',
    '[1]': r'is \[1\], expected an object',
    '{"loss": 2.0}': "has no step: {'loss': 2.0}",
    '{"step": true}': 'has the step True, expected a whole number of at least 1',
    '{"step": 2, "loss": "low"}': "has loss 'low', expected a number",
    r'{"step": 2, "\u001b[31m": "low"}': r"has \\x1b\[31m 'low', expected a number",
}


@pytest.mark.parametrize('line', DAMAGED)
def test_a_damaged_line_is_an_error_that_says_where(tmp_path, line):
    (tmp_path / FILE).write_text(f'{{"step": 1}}\n{line}\n')
    with tiny.refused(f'{FILE}, line 2 {DAMAGED[line]}'):
        read_lines(tmp_path / FILE)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / FILE).write_bytes(b'{"step": 1}\n{"step": 2, "l\xffss": 1.0}\n')
    with pytest.raises(ValueError, match='line 2 is not JSON'):
        read_lines(tmp_path / FILE)


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(ValueError, match='is not a file; expected the lines of metrics'):
        MetricsLog(tmp_path, 3)


def test_a_last_line_that_is_being_written_is_left_out(tmp_path):
    (tmp_path / FILE).write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_lines(tmp_path / FILE) == [{'step': 1}]


def test_the_line_about_dropped_lines_has_no_control_characters(tmp_path, capsys):
    (tmp_path / 'a\x1b[31m').mkdir()
    (tmp_path / 'a\x1b[31m' / FILE).write_text('nonsense\n')
    with MetricsLog(tmp_path / 'a\x1b[31m', 3):
        pass
    assert 'is dropped' in (said := capsys.readouterr().out.strip()) and said.isprintable()


@pytest.fixture
def forty(tmp_path):
    """A run with a line every ten steps and at the first, and what its checkpoint of step 40 says
    of them.
    """
    with MetricsLog(tmp_path, 0, every=10) as log:
        for step in (1, 10, 20, 30, 40):
            log.write(step, {'loss': 1 / step})
        written = log.written
        log.write(50, {'loss': 0.02})
    return tmp_path / FILE, written


def resumed(path, written):
    with MetricsLog(path.parent, 40, written, 10) as log:
        log.write(50, {'loss': 0.02})
    return [line['step'] for line in read_lines(path)]


@pytest.mark.parametrize('since', [True, False], ids=['', 'of a version that kept no digest'])
@pytest.mark.parametrize('more', ['', '{"step": 60, "lo', '{"step": 60, "loss": 0.1}\n'])
def test_a_killed_run_is_not_damaged(forty, capsys, more, since):
    path, written = forty
    whole = path.read_bytes()
    path.write_bytes(whole + more.encode())
    assert resumed(path, written if since else None) == [1, 10, 20, 30, 40, 50]
    assert path.read_bytes() == whole and capsys.readouterr().out == ''
    assert {p.name for p in path.parent.iterdir()} == {FILE, 'tensorboard'}


def cut(lines):
    return lines[:4] + [lines[4][:20]]


NO_LINE = 'there is no line of step'
ALL = [1, 10, 20, 30, 40]
DAMAGES = {  # name -> change of the lines, steps that are kept, what is said
    'half a last line': (cut, ALL[:4], f'line 5 is dropped: it is not JSON: .*; {NO_LINE} 40'),
    'emptied': (lambda lines: [], [], f'{NO_LINE}s 1 to 40'),
    'deleted': (lambda lines: None, [], f'{NO_LINE}s 1 to 40'),
    'zeroed': (
        *(lambda lines: [b'\0' * 300], []),
        f'line 1 is dropped: it is not JSON: .*; {NO_LINE}s 1 to 40',
    ),
    'a number, null, no step': (
        *(lambda lines: [lines[0], b'7\n', b'null\n', b'{"loss": 1}\n', lines[4]], [1, 40]),
        'lines 2 to 4 are dropped: the first is 7, expected an object of numbers; '
        f'{NO_LINE}s 10 to 30',
    ),
    'a gap': (lambda lines: [lines[0], *lines[3:]], [1, 30, 40], f'{NO_LINE}s 10 to 20'),
    'a list': (
        *(lambda lines: [*lines[:5], b'[]\n', b'[]\n', *lines[5:]], ALL),
        r'lines 6 to 7 are dropped: the first is \[\], expected an object of numbers',
    ),
    'a number at the end': (
        *(lambda lines: [*lines, b'3\n'], ALL),
        'line 7 is dropped: it is 3, expected an object of numbers',
    ),
    'one digit': (
        *(lambda lines: [lines[0].replace(b'1.0', b'1.5'), *lines[1:]], ALL),
        'its 5 lines differ from the 5 that were written',
    ),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_damage_before_the_checkpoint_is_said_and_what_is_good_is_kept(forty, capsys, name):
    path, written = forty
    damage, kept, said = DAMAGES[name]
    found = damage(path.read_bytes().splitlines(keepends=True))
    if found is None:
        path.unlink()
    else:
        path.write_bytes(b''.join(found))
        found = path.read_bytes()
    assert resumed(path, written) == [*kept, 50]
    out = capsys.readouterr().out
    aside = path.with_name(f'{FILE}.damaged')
    then = f'; the file as it was is {aside}' if found else ''
    assert re.fullmatch(f'{path}: {said}; the run goes on after step 40{then}\n', out), out
    assert (aside.read_bytes() == found) if found else not aside.exists()
    # What is there now is what the next checkpoint knows.
    with MetricsLog(path.parent, 40, None, 10) as log:
        again = log.written
    capsys.readouterr()
    assert resumed(path, again) == [*kept, 50] and capsys.readouterr().out == ''


@pytest.mark.parametrize(
    'name, said',
    [('emptied', True), ('zeroed', True), ('half a last line', True), ('one digit', False)],
)
def test_checkpoints_that_kept_no_digest_show_what_can_be_seen(forty, capsys, name, said):
    path, _ = forty
    found = DAMAGES[name][0](path.read_bytes().splitlines(keepends=True))
    path.write_bytes(b''.join(found))
    resumed(path, None)
    assert bool(capsys.readouterr().out) == said


def test_every_damaged_file_is_kept(forty):
    path, written = forty
    for number in range(3):
        path.write_bytes(b'%d\n' % number)
        resumed(path, written)
    names = [f'{FILE}.damaged', f'{FILE}.damaged1', f'{FILE}.damaged2']
    assert [(path.with_name(name)).read_bytes() for name in names] == [b'0\n', b'1\n', b'2\n']


def scalars(path):
    """(step, tag, value) of an event file: records of length, its checksum, an Event, its
    checksum.
    """
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack('<Q', data[:8])
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]
    return found


def test_tensorboard_has_the_same_numbers(tmp_path):
    written = [(1, {'loss': 0.5, 'grad_norm': 2.0}), (2, {'loss': 0.25, 'grad_norm': 1e-3})]
    with MetricsLog(tmp_path, 0) as log:
        for step, values in written:
            log.write(step, values)
    (events,) = (tmp_path / 'tensorboard').iterdir()
    expected = [
        (step, name, pytest.approx(value))
        for step, values in written
        for name, value in values.items()
    ]
    assert scalars(events) == expected
    assert read_lines(tmp_path / FILE) == [{'step': step, **values} for step, values in written]


def test_progress(capsys):
    with Progress(0, 100, 10) as progress:
        assert progress.report(1, 2.0) == 0  # contains compilation
        assert progress.report(11, 1.5) > 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'step 1/100  loss 2.0000  compiled  --:-- left'
    assert lines[1].startswith('step 11/100  loss 1.5000  ') and lines[1].endswith(' left')


def test_progress_counts_neither_validations_nor_checkpoints(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    with Progress(0, 100, 10) as progress:
        progress.report(1, 2.0)
        now[0] = 10.0
        assert progress.report(11, 2.0) == 10.0  # tokens per second
        now[0] = 15.0
        with progress.paused():  # a validation between two reports
            now[0] = 505.0
        now[0] = 510.0
        assert progress.report(21, 2.0) == 10.0
        now[0] = 525.0
        assert progress.report(31, 2.0) == pytest.approx(20 / 3)
    left = [line.split('  ')[-1] for line in capsys.readouterr().out.splitlines()]
    # 69 steps of 35 / 30 seconds are 80.5 seconds, rounded up
    assert left == ['--:-- left', '01:29 left', '01:19 left', '01:21 left']


def test_a_run_that_goes_on_measures_from_its_first_report(capsys):
    with Progress(50, 100, 10) as progress:
        with progress.paused():  # a validation before any report, whose time includes compilation
            pass
        assert progress.report(60, 2.0) == 0
    assert capsys.readouterr().out.endswith('--:-- left\n')


def test_progress_in_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True, raising=False)
    with Progress(0, 100, 10) as progress:
        progress.report(1, 2.0)
        progress.say('above')
        assert progress.report(3, 1.5) > 0
    out = capsys.readouterr().out
    assert 'above' in out and 'loss 1.5000' in out and 'step 1/100  loss' not in out
