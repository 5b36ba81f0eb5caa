"""Sweeps of rotary methods: their runs are valid, and their measures read what they write."""

import math

import pytest

from evidence.claims import CLAIMS
from evidence.claims.results import ResultRows
from evidence.experiments import planes, rotary_times
from evidence.experiments.tables import report
from tests.evidence.written import evaluation


@pytest.mark.full
def test_times_are_those_of_both_sides(tmp_path, monkeypatch):
    small = {'LENGTH': 16, 'BEHIND': 32, 'FIRST': 2, 'WINDOW': 8, 'TURNS': 2}
    for name, value in small.items():
        monkeypatch.setattr(rotary_times, name, value)
    encodings = {'rope': 'rope()', 'other': 'lm_infinite(encoding=rope(), n_global=2, n_local=8)'}
    monkeypatch.setitem(rotary_times.GROUPS, 'decoding', (rotary_times.decoding, encodings))
    rotary_times.PROGRAM.main(['--seeds', '0', '--workdir', str(tmp_path)])
    found = ResultRows(tmp_path)
    assert CLAIMS['R20'].how.effects(found)[0] < math.inf
    for group in ('training', 'decoding'):
        assert found.values('rope', panel='speed', folder=group) == {0: 1.0}


def test_slow_frequencies_are_compared_with_losses(tmp_path):
    names, seeds = planes.EXTENSIONS, (0, 1, 2)
    report(
        [
            ('share of the slower half', name or 'none', 256, seed, (-1) ** seed * number)
            for seed in seeds
            for number, name in enumerate(names)
        ],
        tmp_path / 'planes', title='t', x='length', value='share',
    )  # fmt: skip
    runs = {f'rope | {name}' if name else 'rope': number for number, name in enumerate(names)}
    evaluation(tmp_path / 'comparison', runs, (256,), lambda name, _: -(runs[name] ** 3))
    found = CLAIMS['R32'].how.effects(ResultRows(tmp_path))
    assert found == pytest.approx({0: 1.0, 1: -1.0, 2: 1.0})
