"""The ledger of claims: its page, its records and its command belong together."""

import dataclasses
import datetime
import json
import math
import os
import pathlib
import signal
import sys
import threading
import time

import numpy as np
import pytest

from evidence import claims
from evidence.claims import __main__ as command
from evidence.claims import choosing, headline, kept, ledger, page, training
from evidence.claims.claim import Claim, Procedure, read
from evidence.claims.page import WITHOUT
from posenc_jax.lab.files import lock
from posenc_jax.language.choosing import all_needs
from posenc_jax.protocol import registry
from tests.evidence.claim_results_test import measurement, results

MEASURED = ledger.read()


@pytest.mark.parametrize(
    'effects, verdict',
    [
        ((0.1, 0.2, 0.3), 'holds'),
        ((0.0, 0.2, 0.3), 'partly'),
        ((0.0, 0.1, 0.1), 'open'),
        ((0.05, -0.2, -0.3), 'partly contrary'),
        ((0.1, -0.2, -0.3), 'mixed'),
        ((-0.1, -0.1, -0.1), 'contrary'),
        ((0.5, 0.5), 'open'),
    ],
)
def test_the_verdict_follows_from_the_effects(effects, verdict):
    assert measurement().verdict(dict(enumerate(effects))) == verdict


@pytest.mark.parametrize(
    'sign, low, high, verdict',
    [
        (1, 0.01, 0.5, 'holds'),
        (1, -0.01, 0.5, 'partly'),
        (-1, -0.5, -0.01, 'contrary'),
        (-1, -0.5, 0.01, 'partly contrary'),
    ],
)
def test_documents_count_as_seeds_do(sign, low, high, verdict):
    effects = {seed: sign * value for seed, value in enumerate((0.1, 0.2, 0.3))}
    assert measurement().verdict(effects, {'low': low, 'high': high}) == verdict


def test_what_a_window_would_reach_is_not_shown_and_a_ceiling_is_not_open():
    beyond, within = {0: 0.1, 1: 0.2, 2: 0.3}, {0: 0.0, 1: 0.0, 2: 0.0}
    assert measurement(null='window').verdict(beyond) == 'tolerated'
    assert measurement(null='window').verdict(within) == 'open'
    assert measurement(limit='ceiling').verdict(within) == 'ceiling'
    assert measurement(limit='ceiling').verdict(beyond) == 'holds'
    assert measurement(unlearned='a reason').verdict(beyond) == 'open'


def test_the_power_of_seeds():
    """Three drawn seeds around that effect are all beyond the margin in four of five tries."""
    rng, spread = np.random.default_rng(0), {0: -1.0, 1: 0.0, 2: 1.0}
    drawn = measurement().power(spread) + rng.standard_normal((20_000, 3))
    assert (drawn >= measurement().margin).all(1).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    'line, message',
    [
        ('effect = "a -"', 'invalid syntax'),
        ('effect = "a"\nread.b = "c"', "the formula 'a' does not read b"),
        ('effect = "a"\nmargins = 1', "unexpected keyword argument 'margins'"),
    ],
)
def test_a_claim_that_cannot_be_read_is_refused(tmp_path, line, message):
    path = tmp_path / 'family.toml'
    own = 'key = "rope"\narxiv = "0"\nstatement = "s"\ntest = "t"\nminutes = 1\n'
    more = 'experiment = "flip_flop --only tra"\nunit = "points"\nmargin = 0.5\n'
    path.write_text(f'family = "Family"\n[X1]\n{own}{more}effect = "a - b"\n')
    (claim,) = read(path)
    assert (claim.how.sweep, claim.how.arguments) == ('flip_flop', ('--only', 'tra'))
    path.write_text(f'family = "Family"\n[X1]\n{own}{more}{line}\n')
    with pytest.raises(ValueError, match=f'claim X1: .*{message}'):
        list(read(path))


def test_the_page_says_how_far_documents_move_an_effect():
    record = {'effects': {'0': 0.25}, 'documents': {'low': -0.1, 'high': 0.5, 'count': 29}}
    text = page.effect_text(measurement(), record)
    assert '; -0.1 to 0.5 over 29 documents; at least' in text
    record['without'] = {'sort': 0.125}
    assert '; without sort 0.125; -0.1 to' in page.effect_text(measurement(), record)
    many = dict(zip('abcdef', (0.3, 0.1, 0.2, 0.6, 0.5, 0.4)))
    text = page.effect_text(measurement(), {**record, 'without': many})
    assert '; without b 0.1; without d 0.6; -0.1 to' in text  # the smallest and the largest
    text = page.effect_text(measurement(effect='0.5 + a - b'), record)
    assert '; without sort 0.375; 0 to 0.6 over 29 documents), where 0.5 more is allowed' in text
    less = page.effect_text(measurement(effect='0.1 + a - b'), record)
    assert less.startswith('0.15 points less (') and '-0.2 to 0.4 over 29 documents)' in less
    record['effects']['0'] = -0.25
    text = page.effect_text(measurement(), record)  # not all numbers speak against the claim
    assert text.startswith('-0.25 points (') and text.endswith('where 0.1 better was asked')
    assert '; without sort 0.125; -0.1 to 0.5 over 29 documents), where' in text
    against = {**record, 'documents': {'low': -0.5, 'high': -0.1, 'count': 29}, 'without': {}}
    text = page.effect_text(measurement(), against)
    assert text.startswith('0.25 points worse (') and '0.1 to 0.5 over 29 documents), w' in text
    text = page.effect_text(measurement(effect='min(0.1 + a - b, c)'), record)
    assert '; one difference includes the 0.1 that is allowed), where' in text
    record['effects']['0'] = 0.25
    text = page.effect_text(measurement(effect='min(0.1 + a - b, c)'), record)
    assert text.endswith('counts; one difference includes the 0.1 that is allowed)')


def test_the_digest_is_that_of_all_settings():
    base = ledger.run_command(measurement())
    assert ledger.run_command(measurement(margin=0.5)) == base  # nothing that is trained
    others = (
        measurement(seeds=(0, 1, 3)),
        measurement(arguments=('--only', 'cope')),
        measurement(arguments=('--only', 'tra', '--set', 'train.steps=7')),
        measurement(sweep='text', arguments=('bilevel', '--only', 'rope')),
        measurement(sweep='channel_prediction', arguments=()),
        measurement(sweep='channel_prediction', arguments=('--steps', '9')),
    )
    assert len({base.digest, *(ledger.run_command(other).digest for other in others)}) == 7
    command = ledger.run_command(measurement(sweep='models', arguments=('digits',))).command
    assert command[:4] == ('-m', 'evidence.experiments', 'models', 'digits')


def test_a_record_of_another_measure_or_margin_is_stale(small):
    claim = claims.CLAIMS['X1']
    assert claim.how.fingerprint == measurement().fingerprint
    record = {'test': 'a test', 'digest': ledger.run_command(claim.how).digest}
    assert ledger.is_current(claim, {**record, 'measure': claim.how.fingerprint})
    others = (
        *(measurement(effect='b - a'), measurement(margin=0.2)),
        *(measurement(where={'field': 'nll'}), measurement(read={'a': {'length': 8}})),
    )
    for how in others:
        assert not ledger.is_current(claim, {**record, 'measure': how.fingerprint})


def test_page_ledger_and_cards_belong_together():
    made = page.markdown(claims.CLAIMS, MEASURED)
    assert command.PAGE.read_text() == made, 'run `python -m evidence.claims`'
    chosen = choosing.markdown(claims.CLAIMS, MEASURED)
    assert command.PAGE.with_name('choosing.md').read_text() == chosen
    carried = choosing.table_of_verdicts(claims.CLAIMS, MEASURED)
    assert command.VERDICTS.read_text() == carried
    found = headline.markdown(claims.CLAIMS, MEASURED)
    assert command.PAGE.with_name('headline.md').read_text() == found
    verdicts = page.measured(claims.CLAIMS, MEASURED)
    for need in all_needs():
        assert not set(need.claims) - claims.CLAIMS.keys()
        stands = choosing.stands(need, verdicts)
        assert stands == bool(need.take), f'the advice has to change: {need.title}'
    assert not MEASURED.keys() - claims.CLAIMS.keys()
    for claim in claims.CLAIMS.values():
        if claim.id in MEASURED:
            assert ledger.is_current(claim, MEASURED[claim.id]), (
                f'the settings of claim {claim.id} have changed since it was measured: run '
                f'`python -m evidence.claims {claim.id}`'
            )
    claimed = {claim.key for claim in claims.CLAIMS.values()}
    methods = {entry.key for entry in registry.entries() if entry.kind != 'task'}
    assert not claimed - {entry.key for entry in registry.entries()}
    assert methods - claimed == WITHOUT.keys() & methods
    assert not WITHOUT.keys() - methods


def test_effects_and_verdicts_follow_from_the_numbers_that_are_kept():
    """What is missing is marked, and no file lies there without its record."""
    kept.check_kept(claims.CLAIMS, MEASURED)
    for name, record in MEASURED.items():
        if record['results'] is not None:
            assert record['results'] == f'{ledger.run_command(claims.CLAIMS[name].how).name}.csv'
    named = {record['results'] for record in MEASURED.values()} - {None}
    curves = {training.KEPT.format(name.removesuffix('.csv')) for name in named}
    assert named <= {path.name for path in ledger.RESULTS.glob('*')} <= named | curves
    text = command.PAGE.read_text()
    for name, verdict in page.measured(claims.CLAIMS, MEASURED).items():
        row = next(line for line in text.splitlines() if f'<a id="{name}"></a>{name} | ' in line)
        values = MEASURED[name]['effects'].values()
        how = claims.CLAIMS[name].how
        margin, mean = how.margin, sum(values) / len(values)
        both = max(values) >= margin and min(values) <= -margin
        assert {
            'holds': min(values) >= margin,
            'partly': mean >= margin,
            'tolerated': mean >= margin,
            'mixed': both,
            'partly contrary': mean <= -margin,
            'contrary': max(values) <= -margin,
        }.get(verdict, abs(mean) < margin or how.unlearned) and len(values) >= 3
        assert both == (verdict == 'mixed')
        assert f'**{verdict}**' in row or f'**[{verdict}](' in row


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two claims, a ledger of their own, and a sweep that writes results without training."""
    how = [measurement(), measurement(arguments=('--only', 'cope'))]
    claim = lambda name, *how: Claim(name, 'family', 'rope', '0', 'a sentence', 'a test', 5.0, *how)
    made = {name: claim(name, *own) for name, *own in zip(('X1', 'X2'), how)}
    made['X3'] = claim('X3')
    monkeypatch.setattr(claims, 'CLAIMS', made)
    monkeypatch.setattr(command, 'PAGE', tmp_path / 'claims.md')
    monkeypatch.setattr(command, 'VERDICTS', tmp_path / 'verdicts.csv')
    monkeypatch.setattr(ledger, 'MEASURED', tmp_path / 'measured.json')
    monkeypatch.setattr(ledger, '_commit', lambda: 'c0ffee')
    monkeypatch.setattr(ledger, 'RESULTS', tmp_path / 'results')
    statuses = []

    def sweep(arguments, keep):
        del keep
        status = statuses.pop(0) if statuses else 0
        if not status:
            values = {'a': 0.5, 'b': 0.2}.items()
            rows = [(f'{n}_{seed}', seed, 8, v, 0.0) for n, v in values for seed in (0, 1, 2)]
            results(pathlib.Path(arguments[-1]), *rows)
        return status

    monkeypatch.setattr(ledger, 'run', sweep)
    return statuses


@pytest.fixture
def call(small, tmp_path, monkeypatch, capsys):
    """A function from arguments of the command to its status and its text on one line."""

    def called(*arguments, workdir=tmp_path / 'runs'):
        monkeypatch.setattr('sys.argv', ['claims', '--workdir', str(workdir), *arguments])
        try:
            command.main()
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        found = capsys.readouterr()
        said = status if isinstance(status, str) else ''
        return status, ' '.join((found.out + found.err + said).split())

    return called


def measured():
    """The records of the ledger that the command has written."""
    return ledger.read(ledger.MEASURED)


def test_a_budget_measures_the_cheapest_and_says_what_is_left(call):
    status, text = call()
    assert status == 0 and '2 claims have a sweep' in text and 'about 10 minutes' in text
    status, text = call('--budget', '3')
    assert 'nothing was measured: the next claim, X1, takes about 5 minutes' in text and status
    assert not measured()
    status, text = call('--budget', '9')  # the stub takes no time
    said = 'X1: holds (0.3 points (0.3 to 0.3 over 3 seeds; at least 0.1 counts))'
    assert status == 0 and said in text
    there = measured()
    assert list(there) == ['X1', 'X2']
    assert kept.recomputed(claims.CLAIMS['X1'], there['X1']) == ledger.effects(there['X1'])
    assert 'X2' not in text.split('not measured with its present')[1]
    assert command.PAGE.read_text().count('**holds**') == 3  # one is in the explanation
    assert (command.PAGE.parent / page.PICTURE.format('family')).stat().st_size > 5000


def test_a_sample_is_compared_with_the_record_and_changes_nothing(call, monkeypatch, tmp_path):
    assert call('--budget', '9', '--no-pages')[0] == 0 and not command.PAGE.exists()
    before = measured()
    monkeypatch.setitem(before['X2'], 'effects', {'0': -0.3, '1': -0.3, '2': -0.3})
    ledger.MEASURED.write_text(json.dumps(before))
    status, text = call('--budget', '12', '--sample', '3', workdir=tmp_path / 'again')
    assert status == 0 and 'contrary -> holds' in text and 'the same' in text
    assert measured() == before and not command.PAGE.exists()
    assert [claim.id for claim in command.drawn(3)] == [claim.id for claim in command.drawn(3)]
    status, text = call('--budget', '2', '--sample', '3', workdir=tmp_path / 'fresh')
    assert status and 'no measured claim takes at most 2 minutes' in text
    status, text = call('--sample', '3')
    assert status == 2 and '--sample SEED draws what --budget MINUTES measures again' in text


def test_claims_of_one_sweep_pay_for_it_once_and_an_empty_budget_ends_the_command(
    call, monkeypatch
):
    made = claims.CLAIMS
    made['X0'] = dataclasses.replace(made['X1'], id='X0')  # the same sweep as X1
    minutes = iter([0.0, 0.0, *[60 * 4.0] * 6])
    monkeypatch.setattr(ledger, 'monotonic', lambda: next(minutes))
    status, text = call('--budget', '6')
    assert status == 0 and list(measured()) == ['X0', 'X1']
    assert 'the next claim, X2, takes about 5 minutes, and the budget has 2 left' in text
    assert '1 claims have a sweep' in text


def test_a_sweep_costs_what_it_took_if_that_is_more_than_was_expected(call):
    assert call('X1')[0] == 0
    there = measured()
    there['X1']['minutes'] = 61.4
    name = ledger.run_command(claims.CLAIMS['X1'].how).name
    assert ledger.minutes(claims.CLAIMS.values(), there)[name] == 61.4
    there['X1']['digest'] = 'of other settings'
    assert ledger.minutes(claims.CLAIMS.values(), there)[name] == 5.0


def test_code_that_changes_while_a_claim_is_measured_is_no_record(call, monkeypatch):
    commits = iter(['c0ffee', 'c0ffee', 'decade'])
    monkeypatch.setattr(ledger, '_commit', lambda: next(commits))
    status, text = call('X1')
    assert status == 2 and 'commit c0ffee when claim X1 was begun and is at decade now' in text
    assert not measured()


def test_a_claim_that_is_measured_again_keeps_the_first_verdict(call, monkeypatch):
    times = iter(['2026-01-01T10:00', '2026-01-01T10:00', '2026-01-01T12:00'])
    monkeypatch.setattr(ledger, '_begun', lambda directory: next(times))
    assert call('X1')[0] == 0 and call('X1')[0] == 0  # the same runs, read twice
    assert 'earlier' not in measured()['X1']
    monkeypatch.setattr(Procedure, 'verdict', lambda *given: 'partly')
    assert call('X1')[0] == 0
    record = measured()['X1']
    assert [found['effects'] for found in record['earlier']] == [record['effects']]
    assert ledger.verdicts(claims.CLAIMS['X1'], record) == ['partly', 'partly']
    text = ' '.join(command.PAGE.read_text().split())
    assert '1 claims were measured again in a new' in text
    assert '1 of them have the same verdict' in text and '**partly** (before: partly, ' in text


def test_a_test_that_was_changed_keeps_its_history(call):
    assert call('X1', '--no-pages')[0] == 0
    claim = claims.CLAIMS['X1']
    claims.CLAIMS['X1'] = dataclasses.replace(
        claim, test='another test', how=dataclasses.replace(claim.how, effect='b - a')
    )
    assert call('X1')[0] == 0 and call('X1')[0] == 0
    record = measured()['X1']
    (before,) = record['replaced']
    assert before['test'] == 'a test' and before['effects']['0'] == pytest.approx(0.3)
    assert record['effects']['0'] == pytest.approx(-0.3) and 'earlier' not in record
    said = f'(another test or other settings on {before["date"]}: 0.3 to 0.3)'
    assert said in command.PAGE.read_text()


def test_the_time_of_runs_is_that_of_their_first_start(tmp_path):
    assert datetime.datetime.fromisoformat(ledger._begun(tmp_path / 'new'))
    (tmp_path / 'new' / 'begun').write_text('2026-01-01\n')
    assert ledger._begun(tmp_path / 'new') == '2026-01-01'
    (tmp_path / 'old').mkdir()
    os.utime(tmp_path / 'old', (0, 86400))
    assert ledger._begun(tmp_path / 'old').startswith('1970')


@pytest.mark.parametrize('content', ['{"X1": 3}', '{"X1": {"digest": "a"}}', '[]', 'text'])
def test_a_damaged_ledger_is_one_line(call, content):
    ledger.MEASURED.write_text(content)
    status, text = call()
    assert status == 2 and 'is not a ledger of claims' in text


def test_a_sweep_that_fails_does_not_keep_the_others_from_being_measured(small, call):
    small[:] = [1, 0]
    status, text = call('--budget', '20')
    assert 'X1 is not measured' in text and '1 claims have no sweep yet: X3' in text
    assert status.endswith('not measured, for the reasons above: X1')
    assert list(measured()) == ['X2']


def test_an_effect_that_is_not_finite_is_no_effect(call, monkeypatch):
    monkeypatch.setattr(Procedure, 'effects', lambda how, found: {0: 0.2, 1: math.nan, 2: 0.2})
    how = measurement()
    monkeypatch.setitem(claims.CLAIMS, 'X1', dataclasses.replace(claims.CLAIMS['X1'], how=how))
    status, text = call('X1')
    assert 'X1 has effects that are not finite: {1: nan}' in text and status
    assert not measured()


def test_a_sweep_that_stops_counts_for_nothing(small, call):
    small[:] = [0, 2]
    status, text = call('--budget', '20')
    assert 'X2 is not measured: its sweep ended with status 2' in text
    assert status.endswith('not measured, for the reasons above: X2')
    assert list(measured()) == ['X1']
    status, text = call('X2')  # goes on
    assert status == 0 and list(measured()) == ['X1', 'X2']
    record = measured()['X2']
    ledger.MEASURED.write_text(json.dumps({'X2': {**record, 'digest': 'of other settings'}}))
    assert '2 claims have a sweep and are not measured with its present' in call()[1]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('X4',), "there is no claim 'X4'; did you mean 'X3' or 'X2' or 'X1'?"),
        (('X3',), 'nothing measures claim X3 yet; the test would be: a test'),
        (('X1', '--budget', '3'), 'give claims or a budget, not both'),
        (('--budget', 'much'), "expected a finite number, got 'much'"),
        (('--budget', '-1'), '--budget is a number of minutes above 0, got -1'),
    ],
)
def test_wrong_input_is_one_line(call, arguments, message):
    status, text = call(*arguments)
    assert status == 2 and message in text
    assert not ledger.MEASURED.exists()


def test_a_table_that_does_not_fit_its_record_is_one_line(call):
    assert call('X1', '--no-pages')[0] == 0
    (path,) = ledger.RESULTS.glob('flip_flop-*.csv')
    path.write_text(path.read_text().replace('0.5', '0.75'))
    status, text = call()
    assert status == 2 and f'claim X1: {path.name} gives the effects [0.55, 0.55, 0.55]' in text
    assert 'measured.json has [0.3, 0.3, 0.3]; run `python -m evidence.claims X1`' in text
    path.unlink()
    status, text = call()
    assert status == 2 and f'claim X1: {path.name} does not fit: ' in text


def test_uncommitted_code_is_not_recorded(call, monkeypatch):
    monkeypatch.setattr(ledger, '_commit', lambda: 'c0ffee+')
    status, text = call('X1', '--no-pages')
    assert status == 2 and 'files differ from commit c0ffee, and a record names' in text
    assert not measured()
    assert 'no measured claim' in call('--budget', '9', '--sample', '3')[1]  # it records nothing


def test_one_command_at_a_time_measures_in_a_folder(call, tmp_path):
    with lock.hold(tmp_path / 'claims.lock', 'claims are being measured', 'wait'):
        status, text = call('X1', workdir=tmp_path)
    assert status == 2 and 'claims are being measured by' in text and 'give another --work' in text


def test_every_contrary_claim_has_an_entry_on_its_page():
    text = (ledger.ROOT / 'docs' / 'results' / 'contrary.md').read_text()
    headings = [line.split(':')[0] for line in text.splitlines() if line.startswith('## ')]
    named = {name for line in headings for name in line.removeprefix('## ').split(', ')}
    verdicts = page.measured(claims.CLAIMS, MEASURED)
    of = lambda *words: {name for name, verdict in verdicts.items() if verdict in words}
    assert of(*page.REFUTED) <= named <= of(*page.REFUTED, 'mixed')


def test_a_record_of_other_settings_is_named(call):
    assert call('X1')[0] == 0
    there = measured()
    there['X1']['digest'] = '0' * 12
    ledger.MEASURED.write_text(json.dumps(there))
    text = call()[1]
    assert f'(measured {there["X1"]["date"]} with other settings)' in text
    assert 'sweeps of the whole ledger take about' in text


def test_a_stop_ends_the_sweep_and_what_it_has_started(tmp_path):
    started = tmp_path / 'started'
    code = (
        'import pathlib, subprocess, sys\n'
        'own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\n'
        'pathlib.Path(sys.argv[1]).write_text(str(own.pid))\n'
        'own.wait()'
    )

    def stop():
        while not (started.is_file() and started.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        threading.Thread(target=stop).start()
        with pytest.raises(KeyboardInterrupt):
            ledger.run([sys.executable, '-c', code, str(started)], None)
    finally:
        signal.signal(signal.SIGUSR1, before)
    for _ in range(500):
        if not _runs(int(started.read_text())):
            return
        time.sleep(0.01)
    raise AssertionError('the program that the sweep started still runs')


def _runs(process):
    try:
        state = pathlib.Path(f'/proc/{process}/stat').read_text().split(') ')[1][0]
    except FileNotFoundError:
        return False
    return state != 'Z'
