"""Sweeps: every run is valid to its longest evaluation, and what is there already has the settings
that are asked for.
"""

import ast
import dataclasses
import pathlib
import subprocess
import sys

import jax
import pytest
from flax import nnx

from configs import default, quickstart
from evidence.experiments import fields, flip_flop, globe, graphs, images, points
from evidence.experiments import length_generalisation as sweep
from evidence.experiments import runs as shared
from posenc_jax.lab.runs.run import resolve, validate
from posenc_jax.lab.runs.stored import FILE, save
from tests.lab.train import tiny

RUNS = [(group, name) for group, runs in sweep.GROUPS.items() for name in runs]


@pytest.mark.full_but_one
@pytest.mark.parametrize('group, name', RUNS, ids='-'.join)
def test_every_run_is_valid_and_reaches_its_longest_evaluation(group, name):
    config = quickstart.get_config().unlock()
    settings = {
        field: ast.literal_eval(value)
        for field, value in (setting.split('=', 1) for setting in sweep.SETTINGS)
    }
    longest = max(map(int, sweep.LENGTHS[group].split(',')))
    fields = {
        **settings,
        **sweep.GROUPS[group][name],
        'train.length': sweep.TRAINED[group],
        'eval.lengths': (longest,),
    }
    config.update_from_flattened_dict(fields)
    made = validate(config)
    assert made.task == fields['task'] and longest >= 3 * made.train.length
    randomized = 'random' in made.encoding
    assert randomized == (name.endswith('randomized') or name == 'recipe')
    if name.endswith('_randomized') and not name.startswith('sinusoidal'):
        assert len(set(made.pattern)) == made.model.layers  # a draw for every layer


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
    """The commands that would have been run, none of which is."""
    commands = []
    monkeypatch.setattr(shared, 'call', commands.append)
    return commands


def refused(capsys, call):
    with pytest.raises(SystemExit) as stopped:
        call()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_run_of_the_same_settings_is_used_again(tmp_path, trained):
    there(tmp_path / 'a_0')
    free = asked(
        tmp_path / 'a_0', 'train.log_every=3', 'eval.samples=7'
    )  # what does not change the weights
    assert shared.train_runs({'a': free}) == {'a': str(tmp_path / 'a_0')} and not trained


def test_what_a_run_has_of_its_own_precedes_the_settings_of_all(capsys):
    own = {'deep': {'encoding': 'nope()', 'model.layers': 12}, 'other': 'rope()'}
    sweep = shared.Sweep('Text.', own, settings=('model.layers=2', 'train.steps=50'))
    call = lambda *more: sweep.runs(sweep.parse(['--seeds', '3', *more]))
    made = {name: run.asked() for (name, _), run in call('--set', 'train.steps=40').items()}
    assert [config.model.layers for config in made.values()] == [12, 2]
    assert {(config.train.steps, config.seed) for config in made.values()} == {(40, 3)}
    for field in ('model.layers', 'encoding', 'seed'):
        found = refused(capsys, lambda field=field: call('--set', f'{field}=4'))
        assert f'--set cannot give {field}: the runs of this sweep differ in it' in found


def test_fields_of_the_evaluation_can_be_set(capsys):
    made = shared.Sweep(
        'A sweep.',
        {'rope': 'rope()'},
        settings=('train.steps=5',),
        evaluation={'near': ('eval.lengths=8', 'eval.samples=4'), 'far': ()},
    )
    options = made.parse(['--set', 'eval.samples=2', 'train.lr=0.5', '--seeds', '0'])
    assert made.evaluations(options) == {
        'near': ['eval.lengths=8', 'eval.samples=2'],
        'far': ['eval.samples=2'],
    }
    assert made.runs(options)['rope', 0].more == ['train.steps=5', 'train.lr=0.5']
    plain = made.parse(['--seeds', '0'])
    assert made.evaluations(plain) == {'near': ['eval.lengths=8', 'eval.samples=4'], 'far': []}
    for item, message in (
        ('eval.sample=2', "'eval.samples'"),
        ('eval.samples=many', 'eval.samples'),
        ('eval.samples', 'expected FIELD=VALUE'),
    ):
        with pytest.raises(SystemExit):
            made.evaluations(made.parse(['--set', item]))
        assert message in capsys.readouterr().err, item


def test_an_evaluation_of_the_same_runs_and_settings_is_made_once(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(shared, 'evaluate_runs', lambda *what: trained.append(what))
    call = lambda *settings: shared.evaluate_once(['runs/a_0'], tmp_path / 'out', settings)
    (tmp_path / 'out').mkdir()
    call('eval.samples=7')
    assert len(trained) == 1
    call('eval.samples=7')  # there are no results, as after an evaluation that was stopped
    (tmp_path / 'out' / 'results.json').touch()
    call('eval.samples=7')
    assert len(trained) == 2
    call('eval.samples=8')
    assert len(trained) == 3


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


@pytest.mark.parametrize(
    'more, message',
    [
        ('train.step=3', "no field 'train.step'; did you mean 'train.steps'"),
        ('train.steps=many', "train.steps='many' is not of type int"),
        ('train.steps', "expected FIELD=VALUE, e.g. train.steps=200, got 'train.steps'"),
        ('init.source=runs/nothing', 'init.source: no such run or checkpoint: runs/nothing'),
    ],
)
def test_wrong_fields_are_one_line(tmp_path, trained, capsys, more, message):
    there(tmp_path / 'a_0')
    found = refused(
        capsys,
        lambda: shared.train_runs(
            {'new': asked(tmp_path / 'new_0'), 'a': asked(tmp_path / 'a_0', more)}
        ),
    )
    assert message in found and found.count('\n') == 1 and not trained


def test_damaged_runs_and_files_that_are_no_config_are_one_line(tmp_path, trained, capsys):
    there(tmp_path / 'a_0')
    (tmp_path / 'a_0' / FILE).unlink()
    assert 'does not exist' in refused(
        capsys, lambda: shared.train_runs({'a': asked(tmp_path / 'a_0')})
    )
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
    made = asked(
        tmp_path / 'a_0',
        'train.lr=1e-4',
        f'pattern={pattern!r}',
        'model.parallel=True',
        eval__lengths=(8, 16),
    ).asked()
    assert (made.train.lr, made.pattern, made.model.parallel, made.eval.lengths) == (
        1e-4,
        pattern,
        True,
        (8, 16),
    )
    assert (made.workdir, made.name, made.eval.at_end, made.train.steps) == (
        str(tmp_path),
        'a_0',
        False,
        24,
    )
    assert default.get_config().train.lr != 1e-4


def test_a_sweep_refuses_as_a_command(tmp_path):
    """The whole command: one list, status 2, the run as it was."""
    made = quickstart.get_config().unlock()
    made.update_from_flattened_dict(
        {f: ast.literal_eval(v) for f, v in (s.split('=') for s in flip_flop.SETTINGS[1:])}
    )
    made.update(
        encoding='tra()', task='flip_flop(ignore=0.8)', workdir=str(tmp_path), name='tra_0', seed=0
    )
    (tmp_path / 'tra_0' / 'checkpoints' / '1000').mkdir(parents=True)
    save(made, tmp_path / 'tra_0' / FILE)
    before = (tmp_path / 'tra_0' / FILE).read_text()
    command = [
        sys.executable,
        '-m',
        'evidence.experiments.flip_flop',
        f'--workdir={tmp_path}',
        '--seeds',
        '1',
        '0',
        '--set',
    ]
    done = subprocess.run(
        [*command, 'train.steps=500'], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ''
    assert (
        done.stderr.splitlines()[0]
        == f'flip_flop: {tmp_path}/tra_0 was trained with other settings (there -> here):'
    )
    assert done.stderr.splitlines()[1:-1] == ['  train.steps: 1000 -> 500']
    assert [path.name for path in tmp_path.iterdir()] == ['tra_0'] and (
        tmp_path / 'tra_0' / FILE
    ).read_text() == before


def test_every_sweep_trains_through_the_one_place():
    for path in pathlib.Path(shared.__file__).parent.glob('*.py'):
        assert path.stem == 'runs' or 'commands.train' not in path.read_text(), path.name


def test_what_a_sweep_keeps_is_bound_to_its_settings(tmp_path, capsys):
    path, made = tmp_path / 'gates.json', []
    gates = lambda: made.append(1) or [[0.5, 1.0]]
    settings = {'steps': 60, 'extend': 'yarn(factor=4.0)', 'sizes': (64, 256)}
    assert (
        shared.kept(path, settings, gates) == shared.kept(path, settings, gates) == [[0.5, 1.0]]
        and len(made) == 1
    )
    found = refused(
        capsys, lambda: shared.kept(path, {**settings, 'steps': 30, 'file': 'x'}, gates)
    )
    assert found.splitlines()[0].endswith(
        'gates.json was made with other settings (there -> here):'
    )
    assert (
        found.splitlines()[1:] == ["  file: None -> 'x'", '  steps: 60 -> 30', 'move it away']
        and len(made) == 1
    )
    for text in ('[[0.5]]', '{"value": 1}', '{"settings": 3, "value": 1}', '{'):
        path.write_text(text)
        assert 'does not say with which settings it was made' in refused(
            capsys, lambda: shared.kept(path, settings, gates)
        )
        assert path.read_text() == text


FIELD_RUNS = [(group, name) for group, runs in fields.GROUPS.items() for name in runs]


@pytest.mark.full_but_one
@pytest.mark.parametrize('group, name', FIELD_RUNS, ids='-'.join)
def test_every_run_of_fields_is_valid_and_those_of_equal_size_are(group, name):
    own = fields.GROUPS[group][name]
    if 'fourier_features' in own.get('features', ''):
        pytest.importorskip('posenc_jax.features.coordinates.fourier_features')
    made = shared.Run(tiny.ROOT / 'runs' / name, str(tiny.ROOT / fields.CONFIG), own).asked()
    plan = resolve(made)
    if group == 'equal':
        size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(plan.model, nnx.Param)))
        assert abs(size - 2000) <= 0.05 * 2000


IMAGE_RUNS = [(group, name) for group, runs in images.GROUPS.items() for name in runs]


@pytest.mark.full_but_one
@pytest.mark.parametrize('group, name', IMAGE_RUNS, ids='-'.join)
def test_every_run_of_images_is_valid_and_its_table_has_the_size_of_the_grid(group, name):
    config = str(tiny.ROOT / 'configs' / 'vit.py')
    own, settings = images.GROUPS[group][name], images.SETTINGS[group]
    assert not {setting.split('=')[0] for setting in settings} & own.keys()
    plan = resolve(shared.Run(tiny.ROOT / 'runs' / name, config, own, settings).asked())
    if name == 'learned_grid':
        side = plan.config.train.length // plan.cfg.patch
        assert plan.cfg.encoding.startswith(f'learned_grid({side}, {side})')


SPACE_SWEEPS = {'points': points.SWEEP, **graphs.SWEEPS}
SPACE_RUNS = [(group, name) for group, own in SPACE_SWEEPS.items() for name in own.encodings]


@pytest.mark.full_but_one
@pytest.mark.parametrize('group, name', SPACE_RUNS, ids=str)
def test_every_run_of_graphs_and_points_is_valid_and_reaches_its_longest_evaluation(group, name):
    sweep = SPACE_SWEEPS[group]
    (run,) = sweep.runs(sweep.parse(['--seeds', '0', '--only', name])).values()
    more = (*run.more, *sweep.evaluation['comparison'], 'eval.at_end=True')
    plan = resolve(dataclasses.replace(run, config=str(tiny.ROOT / run.config), more=more).asked())
    assert plan.config.eval.at_end
    assert max(plan.config.eval.lengths) >= 2 * plan.config.train.length


@pytest.mark.full
def test_every_run_on_the_globe_is_valid():
    pairs = [('geo_sh', head) for head in globe.HEADS] + [(e, 'linear') for e in globe.ENCODERS]
    for encoder, head in pairs:
        own = globe.fields_of(encoder, head, 20)
        plan = resolve(
            shared.Run(tiny.ROOT / 'runs' / 'globe', str(tiny.ROOT / globe.CONFIG), own).asked()
        )
        assert (plan.cfg.output_size, plan.cfg.features) == (16, globe.ENCODERS[encoder])
