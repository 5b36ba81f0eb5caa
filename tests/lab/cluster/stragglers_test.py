"""The process that makes others wait, by its data or its device, is named."""

import jax
import pytest
from jax.experimental import multihost_utils

from posenc_jax.lab.cluster import stragglers
from posenc_jax.lab.cluster.stragglers import Stragglers, waiting_longest
from posenc_jax.layer.sharding import make_mesh


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
def test_the_process_that_waits_longest_is_named(waits, whole, said):
    assert waiting_longest(waits, whole) == said


def test_one_process_exchanges_nothing(monkeypatch):
    monkeypatch.setattr(multihost_utils, 'process_allgather', lambda *_: pytest.fail('exchanged'))
    assert Stragglers().named() == ''


@pytest.fixture
def two(monkeypatch):
    """The clock of process 0 and what both processes send: a wait for data, and a time of the
    device. Process 0 sends what it measures.
    """
    now, other, sent = [0.0], [4.0, 1.0], []
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    monkeypatch.setattr('jax.process_count', lambda: 2)
    monkeypatch.setattr(stragglers, '_computation', lambda: 'not timed')
    monkeypatch.setattr(stragglers, '_least_time', lambda _: 1.0)

    def gather(own):
        sent.append(own.tolist())
        return [own, other]

    monkeypatch.setattr(multihost_utils, 'process_allgather', gather)
    return now, other, sent


def test_each_comparison_is_of_the_time_since_the_last(two):
    now, _, sent = two
    found = Stragglers()
    for seconds in (1.0, 1.0):
        with found.waiting():
            now[0] += seconds
        now[0] += 3.0
    assert found.named() == 'process 1 waits 2.0x as long for its data'
    now[0] += 50.0
    assert found.named() == '' and sent == [[2.0, 1.0], [0.0, 1.0]]


def test_a_slow_device_is_named_the_second_time(two):
    now, other, _ = two
    found, said = Stragglers(), []
    for wait, seconds in ((0.0, 2.0), (0.0, 2.5), (9.0, 2.0), (0.0, 1.0), (0.0, 2.0)):
        other[:] = wait, seconds
        now[0] += 10.0
        said.append(found.named())
    slow = 'process 1 computes 2.0x as long'
    waits = 'process 1 waits over 100x as long for its data'
    assert said == ['', slow.replace('2.0', '2.5'), f'{waits}; {slow}', '', '']


def test_the_device_is_timed_inside_the_mesh_of_a_training():
    with jax.set_mesh(make_mesh(data=len(jax.devices()))):
        compute = stragglers._computation()
        compute()
    assert 0 < stragglers._least_time(compute) < 10
    assert float(compute()[0, 0]) == pytest.approx(1 / 256)
