"""A run in a bucket: trained, stopped and continued, evaluated, searched, and the source of another
one. A fake stands for `gs://`.
"""

import json
import shutil

import pytest

from posenc_jax.lab.cli import eval as eval_command
from posenc_jax.lab.cluster.stop import StopSignal
from posenc_jax.lab.evaluate import results
from posenc_jax.lab.files import paths
from posenc_jax.lab.files.checkpoint_files import run_told
from posenc_jax.lab.files.saved_steps import finished_steps
from posenc_jax.lab.longrope_search.__main__ import main as search
from posenc_jax.lab.runs.checkpoint import CheckpointError
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.train import loop
from posenc_jax.lab.train.metrics_file import FILE
from tests import fake_bucket
from tests.lab.train import tiny

FIELDS = dict(name='run', encoding='rope()', model__layers=1, train__steps=6, train__warmup=0)
FIELDS |= dict(train__save_every=2, train__keep=2)
RUN = 'gs://there/runs/run'
EVALUATION = [
    f'--config.eval.{field}'
    for field in ('lengths=32', 'tokens=256', 'stride=8', 'protocols=nonoverlapping')
]


def stop_after(step, monkeypatch):
    monkeypatch.setattr(StopSignal, 'requested', lambda self, now: now == step)


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
    """A bucket with a run that was stopped after step 3 and continued, in an empty folder."""
    here = tmp_path_factory.mktemp('here')
    with (
        fake_bucket.fake(tmp_path_factory.mktemp('bucket')) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(here)
        with pytest.MonkeyPatch.context() as stopping:
            stop_after(3, stopping)
            loop.train(tiny.config('gs://there/runs', **FIELDS))
        assert finished_steps(paths.path(RUN)) == [2, 3]
        assert str(loop.train(tiny.config('gs://there/runs', **FIELDS))) == RUN
        yield made
        assert not list(here.iterdir())


@pytest.mark.full
def test_it_ends_as_a_local_run_does(bucket, tmp_path):
    local = loop.train(tiny.config(tmp_path, **FIELDS))
    run = paths.path(RUN)
    assert tiny.losses(run) == tiny.losses(local) and len(tiny.losses(run)) == 6
    assert finished_steps(run) == [4, 6] and restore_model(RUN)[2] == 6
    # One file of events for each start, and no lock that is held.
    names = {path.name for path in run.iterdir()}
    assert names == {'config.json', FILE, 'tensorboard', 'checkpoints'}
    assert len(list((run / 'tensorboard').iterdir())) == 2


@pytest.mark.full
def test_a_killed_save_is_not_read_and_is_written_again(bucket, monkeypatch, capsys):
    folder = bucket.local('gs://there/runs')
    shutil.copytree(folder / 'run', folder / 'killed')
    (folder / 'killed' / 'checkpoints' / '6' / 'commit_success.txt').unlink()
    killed = paths.path('gs://there/runs/killed')
    assert restore_model(killed)[2] == 4
    with pytest.raises(CheckpointError, match=r'no checkpoint of step 6; there are \[4\]'):
        restore_model(killed, 6)
    loop.train(tiny.config('gs://there/runs', **{**FIELDS, 'name': 'killed'}))
    assert finished_steps(killed) == [4, 6] and tiny.losses(killed) == tiny.losses(paths.path(RUN))
    assert 'continuing after step 4' in capsys.readouterr().out
    assert 'damaged' not in ' '.join(path.name for path in killed.iterdir())


class DriverError(Exception):
    """The drivers of buckets have classes of their own."""


def broken(monkeypatch, bucket, call, where, error):
    """One call of the bucket raises an error for every object whose name has `where` in it."""
    real = getattr(bucket, call)

    def failing(path, *arguments, **options):
        if where in str(path) and (call != 'open' or 'w' in arguments[0]):
            raise error
        return real(path, *arguments, **options)

    monkeypatch.setattr(bucket, call, failing)


@pytest.mark.full
@pytest.mark.parametrize(
    'call, where, error, keep, safe',
    [
        ('open', 'checkpoints/4', DriverError('busy\nand a second line'), 2, 2),
        ('open', 'checkpoints/4/commit', OSError('\nbusy\n'), 2, 2),
        ('exists', 'checkpoints/4', DriverError('busy'), 2, 2),
        ('rmtree', 'checkpoints/2', DriverError('busy'), 1, 4),  # an old checkpoint is removed
    ],
)
def test_a_save_that_fails_is_one_line_with_the_step_that_is_safe(
    tmp_path, monkeypatch, call, where, error, keep, safe
):
    """The error is the same object each time, as one that orbax keeps and raises again."""
    fields = {**FIELDS, 'train__keep': keep}
    with fake_bucket.fake(tmp_path / 'bucket') as bucket:
        with monkeypatch.context() as patch, pytest.raises(paths.UnreachableError) as caught:
            broken(patch, bucket, call, where, error)
            loop.train(tiny.config('gs://there/runs', **fields))
        assert str(caught.value) == (
            f'{RUN}/checkpoints cannot be reached ({type(error).__name__}: busy); check the name '
            'of the bucket, and that this account may read and write there; '
            f'step {safe} is safe; once it can be reached, the same command continues after it'
        )
        assert finished_steps(paths.path(RUN))[-1] == safe
        run = loop.train(tiny.config('gs://there/runs', **fields))
        assert len(tiny.losses(run)) == 6 and finished_steps(run)[-1] == 6


def test_the_step_that_is_safe_where_nothing_can_be_read_any_more(tmp_path, monkeypatch):
    error = paths.UnreachableError('gs://there cannot be reached')

    def told():
        with pytest.raises(paths.UnreachableError) as caught, run_told(paths.path(RUN)):
            raise error
        return str(caught.value).removeprefix(f'{error}; ')

    once = 'once it can be reached, the same command'
    with fake_bucket.fake(tmp_path) as bucket:
        assert told() == f'no step is saved; {once} begins anew'
        with monkeypatch.context() as patch:
            broken(patch, bucket, 'isdir', 'checkpoints', DriverError('503'))
            assert told() == f'saved steps are safe; {once} continues'
        paths.path(f'{RUN}/checkpoints/2/commit_success.txt').write_text('')
        assert told() == f'step 2 is safe; {once} continues after it'
        broken(monkeypatch, bucket, 'isdir', 'checkpoints', DriverError('503'))
        assert told() == f'step 2 is safe, later ones may be; {once} continues'


@pytest.mark.full
def test_it_is_evaluated_and_compared(bucket, capsys):
    assert eval_command.main([f'--run={RUN}', *EVALUATION]) == 0
    assert f'{RUN}/eval/results.json' in capsys.readouterr().out
    again = [f'--run={RUN} | pi(factor=2.0)', f'--also={RUN}/eval', '--out=gs://there/compared']
    assert eval_command.main([*again, *EVALUATION]) == 0
    found = results.read('gs://there/compared')
    assert [run.extend for run in found] == ['', 'pi(factor=2.0)']
    assert (paths.path('gs://there/compared') / 'by_length.png').exists()


@pytest.mark.full
def test_it_is_searched(bucket):
    sizes = dict(population=3, iterations=1, parents=2, mutations=1, crossovers=1, documents=1)
    assert search([f'--run={RUN}', '--length=64', *(f'--{k}={v}' for k, v in sizes.items())]) == 0
    run = paths.path(RUN)
    assert 'longrope' in json.loads((run / 'longrope_64.json').read_text())['spec']
    assert not (run / 'longrope_64.json.scores').exists()


@pytest.mark.full
def test_another_run_continues_it(bucket):
    fields = {**FIELDS, 'name': 'longer', 'train__length': 64, 'train__steps': 1}
    longer = loop.train(
        tiny.config('gs://there/runs', **fields, init__source=RUN, init__extend='pi(factor=2.0)')
    )
    assert finished_steps(longer) == [1]


@pytest.mark.full
def test_what_is_not_there_is_one_line(bucket, capsys):
    with pytest.raises(OSError, match=r'^gs://nowhere/runs/run/training.lock cannot be reached'):
        loop.train(tiny.config('gs://nowhere/runs', **FIELDS))
    for run in ('gs://there/runs/none', 'gs://nowhere/runs/run', 'gcs://there/runs/run'):
        capsys.readouterr()
        assert eval_command.main([f'--run={run}']) == 2
        said = capsys.readouterr().err
        assert said.startswith('eval.py: ') and run in said and said.count('\n') == 1
