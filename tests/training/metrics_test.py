"""What is reported survives being cut off."""

import json
import struct

import pytest

from posenc_jax.training.metrics import FILE, MetricsLog, Progress, _duration, read_lines


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


def test_lines_are_on_disk_at_once(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {'loss': 0.1})
        assert json.loads((tmp_path / FILE).read_text()) == {'step': 1, 'loss': 0.1}


def test_a_broken_line_inside_is_an_error(tmp_path):
    (tmp_path / FILE).write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match='line 2 is not JSON'):
        read_lines(tmp_path / FILE)


def scalars(path):
    """(step, tag, value) of an event file: records of length, its checksum, an Event, its checksum."""
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
    expected = [(step, name, pytest.approx(value)) for step, values in written for name, value in values.items()]
    assert scalars(events) == expected
    assert read_lines(tmp_path / FILE) == [{'step': step, **values} for step, values in written]


def test_progress(capsys):
    with Progress(0, 100, 10) as progress:
        assert progress.report(1, 2.0) == 0  # contains compilation
        assert progress.report(11, 1.5) > 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'step 1/100  loss 2.0000  0 tokens/s  ? left'
    assert lines[1].startswith('step 11/100  loss 1.5000  ') and lines[1].endswith(' left')


@pytest.mark.parametrize('seconds, text', [(0, '0:00'), (61.4, '1:01'), (3600, '1:00:00')])
def test_duration(seconds, text):
    assert _duration(seconds) == text
