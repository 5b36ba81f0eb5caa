"""The program eval.py: its options, its files, comparisons, and what it refuses."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from posenc_jax.lab.cli import eval as command
from posenc_jax.lab.evaluate import run as evaluation
from posenc_jax.lab.evaluate.results import read
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.runs.prepare import home_of, results_folder
from tests.lab.evaluate.run_test import Runs

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp('runs'))


@pytest.mark.full
def test_every_protocol_and_file_by_the_command_line(runs, tmp_path, capsys):
    out = tmp_path / 'out'
    both = f'--run={runs["alibi"]},{runs["rope"]}'
    assert command.main([both, '--config.eval.lengths=16,64', f'--out={out}']) == 0
    shown = capsys.readouterr().out
    assert 'alibi()' in shown and 'same_tokens' in shown and str(out / 'by_length.png') in shown
    rows = json.loads((out / 'results.json').read_text())['results']
    assert {row['length'] for row in rows} == {16, 64}
    names = {'nonoverlapping', 'sliding', 'same_tokens', 'per_position'}
    assert {row['protocol'] for row in rows} == names
    for name in ('results.csv', 'by_length.png', 'by_position.png'):
        assert (out / name).stat().st_size > 1000


def test_tasks_are_scored_by_exact_match(runs, capsys):
    assert command.main([f'--run={runs["copy"]}']) == 0
    content = json.loads((pathlib.Path(runs['copy']) / 'eval' / 'results.json').read_text())
    found = [(r['metric'], r['length'], r['samples'], r['dataset']) for r in content['results']]
    assert found == [('exact_match', 4, 20, ''), ('exact_match', 8, 20, '')]
    assert all(0 <= r['low'] <= r['value'] <= r['high'] <= 1 for r in content['results'])


@pytest.mark.full
def test_depths_of_runs_by_the_command_line(runs, tmp_path, capsys):
    common = ['--config.eval.depths=0,0.5,1', f'--out={tmp_path}']
    assert command.main([f'--run={runs["passkey"]}', *common]) == 0
    rows = json.loads((tmp_path / 'results.json').read_text())['results']
    assert [(r['length'], r['depth']) for r in rows] == [
        (n, d) for n in (16, 24) for d in (0, 0.5, 1)
    ]
    assert command.main([f'--run={runs["passkey"]}', '--config.eval.decode=True', *common]) == 0
    decoded = json.loads((tmp_path / 'results.json').read_text())['results']
    assert [r['value'] for r in decoded] == [r['value'] for r in rows]
    text = '--config.task=passkey_text(digits=2)'  # a run on bytes
    assert command.main([f'--run={runs["alibi"]}', text, '--config.eval.lengths=300', *common]) == 0
    assert str(tmp_path / 'by_depth.png') in capsys.readouterr().out
    assert command.main([f'--run={runs["copy"]}', *common]) == 2
    told = 'copy() has no depth; tasks with one: kv_retrieval, passkey, passkey_text'
    assert told in capsys.readouterr().err


def test_command_line_errors_are_one_message_with_exit_code_2(tmp_path, capsys, monkeypatch):
    def said(run):
        assert command.main([f'--run={run}']) == 2
        return capsys.readouterr().err

    missing = lambda name: f'eval.py: no such run directory: {tmp_path / name}; '
    assert said(tmp_path / 'nowhere') == missing('nowhere') + f'{tmp_path} holds no run\n'
    assert said(tmp_path / 'a' / 'b') == missing('a/b') + f'{tmp_path / "a"} does not exist\n'
    for name in ('rope', 'alibi', 'no\x1b[31m'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').touch()
    assert said(tmp_path / 'rop') == missing('rop') + f'did you mean {tmp_path / "rope"}?\n'
    there = f"the runs in {tmp_path}: 'alibi', 'no\\x1b[31m', 'rope'\n"
    assert said(tmp_path / 'nothing') == missing('nothing') + there
    assert 'x' * 200 not in (long := said(tmp_path / ('x' * 5000))) and there in long
    (tmp_path / 'runs').symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / 'rope')
    (tmp_path / 'rope' / 'runs').symlink_to(tmp_path)
    assert said('alib') == 'eval.py: no such run directory: alib; did you mean runs/alibi?\n'
    (tmp_path / 'text.txt').touch()
    is_file = 'is a file; expected a run directory, a Hugging Face directory or a .gguf file'
    assert said(tmp_path / 'text.txt') == f'eval.py: {tmp_path / "text.txt"} {is_file}\n'
    config = tmp_path / 'rope' / 'config.json'
    assert said(config) == f'eval.py: {config} {is_file}; did you mean {tmp_path / "rope"}?\n'
    assert command.main([f'--run={tmp_path}']) == 2
    assert 'config.json' in capsys.readouterr().err


def test_command_line_forms():
    options = ['--run=a,b | yarn(factor=4, beta_fast=32)', '--run', 'c', '--out=x']
    found = command.arguments([*options, '--config.extend=pi(factor=2)'])
    runs, out, _, changes, processes, trusted = found
    assert runs == ['a', 'b | yarn(factor=4, beta_fast=32)', 'c']
    assert out == pathlib.Path('x') and changes == {'extend': 'pi(factor=2)'}
    assert processes == ('', None, None) and not trusted
    lists = 'a | longrope(long=(1.0, 2.0), factor=4.0, short=(1.0, 1.5), start=2)'
    assert command.arguments([f'--run={lists},b', f'--run={lists}'])[0] == [lists, 'b', lists]


@pytest.mark.full
def test_command_in_a_process_of_its_own(runs, tmp_path):
    def call(*arguments):
        asked = [sys.executable, 'eval.py', *arguments]
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)

    failed = call(f'--run={runs["alibi"]}', '--config.eval.lenghts=64')
    assert failed.returncode == 2
    expected = "eval.py: config has no field 'eval.lenghts'; did you mean 'eval.lengths'"
    assert failed.stderr.splitlines()[-1].startswith(expected)
    assert 'Traceback' not in failed.stderr
    unread = call(f'--run={runs["alibi"]}', '--lengths=64')
    assert unread.returncode == 2 and 'did you mean --config.eval.lengths' in unread.stderr


def test_a_comparison_leaves_the_results_of_its_first_run(runs, capsys):
    first, second = pathlib.Path(runs['copy']), f'{runs["copy"]} | nope_temperature(1.5)'
    settings = ['--config.eval.lengths=4', '--config.eval.samples=4']
    assert command.main([f'--run={first}', *settings]) == 0
    before = {path: path.read_bytes() for path in (first / 'eval').iterdir()}
    shutil.rmtree(first / 'comparisons', ignore_errors=True)
    assert command.main([f'--run={first}', f'--run={second}', *settings]) == 0
    assert {path: path.read_bytes() for path in (first / 'eval').iterdir()} == before
    (folder,) = (first / 'comparisons').iterdir()
    assert re.fullmatch(r'copy-nope_temperature-1.5-[0-9a-f]{6}', folder.name)
    assert [run.extend for run in read(folder)] == ['', 'nope_temperature(1.5)']
    assert f'{folder}/results.json' in capsys.readouterr().out


def test_every_comparison_has_a_folder_of_its_own(tmp_path):
    a, b, c = 'runs/a', 'runs/b', 'other/b'
    asked = [([a, b], ()), ([a, c], ()), ([a, b, c], ()), ([a, f'{a} | pi(factor=2.0)'], ())]
    asked += [([a], [pathlib.Path(b, 'eval')]), ([b, a], ()), ([f'{a} | pi(factor=2.0)', b], ())]
    folders = [results_folder(*one) for one in asked]
    assert len(set(folders)) == len(folders)
    for folder, (runs, _) in zip(folders, asked):
        assert folder.parent == home_of(runs[0]) / 'comparisons'
    assert [folder.name[:-7] for folder in folders[:5]] == ['b', 'b', 'b-b', 'a-pi-factor-2.0', 'b']
    assert results_folder([f'{a} | pi(factor=2.0)']) == pathlib.Path(a, 'eval')
    long = results_folder([a, *('runs/' + 'x' * 200 for _ in range(9))]).name
    assert len(long) < 100


def test_an_output_that_cannot_be_made_is_refused_before_the_evaluation(runs, tmp_path, capsys):
    (tmp_path / 'file').touch()
    with_out = lambda out: command.main([f'--run={runs["copy"]}', f'--out={out}'])
    assert with_out(tmp_path / 'file' / 'new') == 2
    said = f'eval.py: {tmp_path / "file"} is a file; expected a folder. Move it away\n'
    assert capsys.readouterr() == ('', said)
    assert with_out(tmp_path / ('x' * 5000)) == 2
    out, error = capsys.readouterr()
    assert not out and error.count('\n') == 1 and 'x' * 200 not in error


@pytest.mark.full
def test_an_earlier_evaluation_stands_beside_a_new_one(runs, tmp_path, capsys):
    settings = ['--config.eval.protocols=nonoverlapping', '--config.eval.tokens=64']
    first, both = tmp_path / 'first', tmp_path / 'both'
    seeds, rope = f'--run={runs["alibi"]},{runs["alibi 1"]}', f'--run={runs["rope"]}'
    assert command.main([seeds, f'--out={first}', *settings]) == 0
    assert command.main([rope, f'--also={first}', f'--out={both}', *settings]) == 0
    asked = {'eval.protocols': 'nonoverlapping', 'eval.tokens': 64}
    together = evaluate([runs[name] for name in ('alibi', 'alibi 1', 'rope')], asked)
    assert read(both) == together.runs
    capsys.readouterr()
    (tmp_path / 'results.json').write_text('{}')
    for also, told in (
        (tmp_path / 'none', 'holds no results.json of an earlier evaluation'),
        (tmp_path, 'was not written by an evaluation'),
    ):
        assert command.main([rope, f'--also={also}', *settings]) == 2
        assert told in capsys.readouterr().err


def test_what_was_measured_is_kept_where_a_later_run_fails(runs, tmp_path, monkeypatch):
    measure, calls = evaluation.measure, []

    def second_fails(job, model):
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(job, model)

    monkeypatch.setattr(evaluation, 'measure', second_fails)
    both = f'--run={runs["alibi"]},{runs["rope"]}'
    with pytest.raises(KeyboardInterrupt):
        command.main([both, f'--out={tmp_path}', '--config.eval.protocols=nonoverlapping'])
    assert [run.encoding for run in read(tmp_path)] == ['alibi()']
