"""The process that makes others wait for its data is named."""

import pytest
from jax.experimental import multihost_utils

from posenc_jax.training.stragglers import DataClock, straggler


@pytest.mark.parametrize(
    'waits, whole, said',
    [
        ([1.0, 0.5], 1.5, 'process 0 waits 2.0x as long for its data'),
        ([1.0, 1.0, 3.0, 1.2], 9.0, 'process 2 waits 3.0x as long for its data'),
        ([0.0, 2.0], 9.0, 'process 1 waits over 100x as long for its data'),
        ([1.0, 1.4], 2.0, ''),  # by less than half
        ([0.01, 0.03], 2.0, ''),  # by little of the steps' time
        ([0.0, 0.0], 1.0, ''),
    ],
)
def test_the_slowest_process_is_named(waits, whole, said):
    assert straggler(waits, whole) == said


def test_one_process_exchanges_nothing(monkeypatch):
    monkeypatch.setattr(multihost_utils, 'process_allgather', lambda *_: pytest.fail('exchanged'))
    assert DataClock().slowest() == ''


def test_each_comparison_is_of_the_time_since_the_last(monkeypatch):
    now, sent = [0.0], []
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    monkeypatch.setattr('jax.process_count', lambda: 2)

    def gather(seconds):
        sent.append(float(seconds))
        return [[seconds], [4.0]]

    monkeypatch.setattr(multihost_utils, 'process_allgather', gather)
    clock = DataClock()
    for seconds in (1.0, 1.0):
        with clock.running():
            now[0] += seconds
        now[0] += 3.0
    assert clock.slowest() == 'process 1 waits 2.0x as long for its data'
    now[0] += 50.0
    assert clock.slowest() == '' and sent == [2.0, 0.0]
