"""Sweeps of rotary methods: their runs are valid, and their measures read what they write."""

import json
import math

import pytest

from evidence.claims import rotary_text as text_claims
from evidence.claims.claim import Results
from evidence.claims.rotary import MEASUREMENTS
from evidence.experiments import infinite_passkeys, rotary_text, rotary_times
from evidence.experiments.tables import report
from posenc_jax.lab.runs.run import validate


@pytest.mark.parametrize('made', [infinite_passkeys.SWEEP, rotary_text.SWEEP])
def test_the_runs_are_valid(made):
    for run in made.runs(made.parse(['--seeds', '3'])).values():
        assert validate(run.asked()).train.length == 64


@pytest.mark.full
def test_times_are_those_of_both_sides(tmp_path, monkeypatch):
    small = {'LENGTH': 16, 'BEHIND': 32, 'NEW': 2, 'FIRST': 2, 'WINDOW': 8, 'TURNS': 2}
    for name, value in small.items():
        monkeypatch.setattr(rotary_times, name, value)
    encodings = {'rope': 'rope()', 'other': 'lm_infinite(encoding=rope(), n_global=2, n_local=8)'}
    monkeypatch.setitem(rotary_times.GROUPS, 'decoding', (rotary_times.decoding, encodings))
    monkeypatch.setattr('sys.argv', ['rotary_times', '--seeds', '0', '--workdir', str(tmp_path)])
    rotary_times.main()
    found = Results(tmp_path)
    assert MEASUREMENTS['R20'].measure(found)[0] < math.inf
    for group in ('training', 'decoding'):
        assert found.values('rope', panel='speed', folder=group) == {0: 1.0}


def test_the_measure_of_passkeys_is_a_mean_over_depths_and_lengths(tmp_path):
    rows = [
        {'run': 'a/rope_0', 'extend': extend, 'seed': 0, 'length': length, 'depth': depth,
         'value': value if length == 256 else 0.0}
        for extend, value in (('lm_infinite()', 0.2), ('lm_infinite(top_k=5)', 1.0))
        for length in (64, 256, 1024)
        for depth in (0.25, 0.5, 0.75)
    ]  # fmt: skip
    (tmp_path / 'decoded').mkdir()
    (tmp_path / 'decoded' / 'results.json').write_text(json.dumps({'results': rows}))
    assert MEASUREMENTS['R30'].measure(Results(tmp_path))[0] == pytest.approx(0.4)


def test_slow_frequencies_are_compared_with_losses(tmp_path):
    names, seeds = rotary_text.EXTENSIONS, (0, 1, 2)
    report(
        [
            ('share of the slower half', name or 'none', 256, seed, (-1) ** seed * number)
            for seed in seeds
            for number, name in enumerate(names)
        ],
        tmp_path / 'planes', title='t', x='length', value='share',
    )  # fmt: skip
    rows = [
        {'run': f'a/rope_{seed}', 'extend': name, 'seed': seed, 'length': 256, 'nll': -(number**3)}
        for seed in seeds
        for number, name in enumerate(names)
    ]
    (tmp_path / 'comparison').mkdir()
    (tmp_path / 'comparison' / 'results.json').write_text(json.dumps({'results': rows}))
    assert text_claims.agreement(Results(tmp_path)) == pytest.approx({0: 1.0, 1: -1.0, 2: 1.0})
