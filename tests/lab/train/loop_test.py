"""Whole runs as processes of their own: killed, stopped, spoilt, spread over devices and over
processes.
"""

import random
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from evidence.experiments import runs as sweeps
from posenc_jax.lab.evaluate.results import read
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.runs import initial, stored
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.runs.run import validate
from posenc_jax.lab.train import loop
from posenc_jax.lab.train.metrics_file import FILE, read_lines
from posenc_jax.protocol import registry
from tests.lab.train import tiny

NAME = 'run'
STEPS = tiny.FIELDS['train.steps']
MESH = {'mesh__data': 1, 'mesh__fsdp': 2, 'mesh__tensor': 2, 'mesh__sequence': 2}


# A module that makes process 1 wait for its data; what is imported must register something.
SLOW = """
import time
import jax
import posenc_jax as pj
from posenc_jax.lab.train import loop
@pj.register('slow', kind='encoding')
class Slow(pj.Encoding):
    pass
put = loop.device_batch
loop.device_batch = lambda *given: (time.sleep(0.1 * jax.process_index()), put(*given))[1]
"""

# A module that ends a process which asks its task for other rows than its own.
OWN_ROWS = """
import jax
import posenc_jax as pj
from posenc_jax.lab.tasks.language import Language
@pj.register('own_rows', kind='encoding')
class OwnRows(pj.Encoding):
    pass
dataset = Language.dataset
def checked(self, **given):
    assert given['shard'] == (jax.process_index(), jax.process_count()), given
    return dataset(self, **given)
Language.dataset = checked
"""


def of_steps(workdir, name):
    """Step -> a number of the run, where its line has it."""
    lines = read_lines(workdir / NAME / FILE)
    return {line['step']: line[name] for line in lines if name in line}


def losses(workdir):
    return of_steps(workdir, 'loss')


def tail(workdir):
    """The losses after step 20."""
    return [loss for step, loss in sorted(losses(workdir).items()) if step > 20]


def finish(process, status=0):
    out, errors = process.communicate(timeout=400)
    assert process.returncode == status, (out, errors)
    return out, errors


def wait_for(process, text):
    """Reads the output up to the line that starts with `text`."""
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError((text, process.stderr.read()))


def back_to(source, target, step):
    """A copy of a run as it was right after `step`, which is a checkpoint."""
    shutil.copytree(source, target)
    for path in (target / NAME / 'checkpoints').iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.getbasetemp().parent / 'compiled'


@pytest.fixture(scope='module')
def whole(tmp_path_factory, cache):
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp('whole')
    finish(tiny.start(workdir, name=NAME, cache=cache))
    assert list(losses(workdir)) == list(range(1, STEPS + 1))
    return workdir


@pytest.mark.full
def test_killed_runs_have_the_same_losses(whole, cache, tmp_path):
    rng = random.Random(0)
    for after in (3, 14):  # before and after the first checkpoint
        process = tiny.start(tmp_path, name=NAME, cache=cache)
        wait_for(process, f'step {after}/')
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait()
    finish(tiny.start(tmp_path, name=NAME, cache=cache))
    assert losses(tmp_path) == losses(whole)


@pytest.mark.full
def test_stopped_run_saves_and_continues(whole, cache, tmp_path, capsys):
    process = tiny.start(tmp_path, name=NAME, cache=cache, train__save_every=1000)
    wait_for(process, 'step 2/')
    process.send_signal(signal.SIGTERM)
    out, errors = finish(process)
    stopped = max(losses(tmp_path))
    assert f'stopped after step {stopped}, which is saved' in out
    assert stopped < STEPS
    assert restore_model(tmp_path / NAME, trust_imports=True)[2] == stopped
    out, _ = finish(tiny.start(tmp_path, name=NAME, cache=cache, train__save_every=1000))
    assert f'continuing after step {stopped} of {STEPS}' in out
    assert losses(tmp_path) == losses(whole)
    loop.train(tiny.config(tmp_path, name=NAME, train__save_every=1000))
    assert f'trained already, to step {STEPS}' in capsys.readouterr().out


@pytest.mark.full
def test_ctrl_c_says_at_once_what_is_saved(cache, tmp_path):
    fields = dict(name=NAME, train__save_every=1000, train__steps=100_000)
    # Caches of their own, so that these two processes compile.
    while_compiling = tiny.start(tmp_path / 'a', cache=tmp_path / 'cache_a', **fields)
    wait_for(while_compiling, str(tmp_path / 'a' / NAME))
    while_compiling.send_signal(signal.SIGINT)
    # The line is there before the first step is, which the output would show.
    said = 'train.py: stopping after the step that is computed, which is saved; Ctrl-C again ends '
    assert while_compiling.stderr.readline() == said + 'at once\n'
    out, errors = finish(while_compiling)
    assert 'stopped after step 1, which is saved' in out and not errors
    assert restore_model(tmp_path / 'a' / NAME)[2] == 1

    twice = tiny.start(tmp_path / 'b', cache=tmp_path / 'cache_b', **fields)
    wait_for(twice, str(tmp_path / 'b' / NAME))  # it compiles, so that no step ends in between
    for _ in range(2):
        twice.send_signal(signal.SIGINT)
        line = twice.stderr.readline()
    assert finish(twice, 130)[1] == '' == line

    ended = dict(train__steps=1, train__warmup=1, eval__at_end=True, eval__lengths='32')
    evaluated = tiny.start(tmp_path / 'c', cache=cache, **fields | ended)
    wait_for(evaluated, 'evaluating')
    evaluated.send_signal(signal.SIGINT)
    run = tmp_path / 'c' / NAME
    said = f'train.py: stopping; {run} is trained and saved, and eval.py --run={run} evaluates it\n'
    assert finish(evaluated, 130)[1] == said and restore_model(run)[2] == 1


# Ctrl-C becomes a SIGTERM to the process itself.
@pytest.mark.parametrize('processes, number', [(1, signal.SIGTERM), (2, signal.SIGINT)])
@pytest.mark.full
def test_stopped_clusters_save_and_continue(cache, tmp_path, monkeypatch, processes, number):
    port, mesh = free_port(), dict(mesh__data=1, mesh__fsdp=processes)
    fields = dict(name=NAME, cache=cache, train__steps=100_000, train__save_every=100_000)
    slow = tmp_path / 'slow.py'
    slow.write_text(SLOW)
    start = lambda i: tiny.start(
        tmp_path, *flags_of(port, processes, i), f'--import={slow}', **fields, **mesh
    )
    group = [start(i) for i in range(processes)]
    wait_for(group[0], 'step 2/')
    group[-1].send_signal(number)
    (out, _), *_ = [finish(process) for process in group]
    assert ('process 1 waits' in out) == (processes > 1)
    stopped = max(losses(tmp_path))
    assert f'stopped after step {stopped}, which is saved' in out
    # Reading the run executes SLOW in this process too, whose other tests are not to meet it.
    registry.entries()  # loads all methods, which a later test would miss otherwise
    monkeypatch.setattr(registry, '_ENTRIES', dict(registry._ENTRIES))
    monkeypatch.setattr(loop, 'device_batch', loop.device_batch)
    assert restore_model(tmp_path / NAME, trust_imports=True)[2] == stopped


@pytest.mark.full
def test_checkpoints_without_a_config_are_refused_unless_told_otherwise(whole, cache, tmp_path):
    back_to(whole, tmp_path / 'runs', 20)
    (tmp_path / 'runs' / NAME / 'config.json').unlink()
    refused = 'has checkpoints, but no config.json.*--resume_changed'
    with pytest.raises(loop.ConfigChangedError, match=refused):
        loop.train(tiny.config(tmp_path / 'runs', name=NAME))
    finish(tiny.start(tmp_path / 'runs', '--resume_changed', name=NAME, cache=cache))
    assert tail(tmp_path / 'runs') == tail(whole)


def test_the_sweep_tells_complete_runs_by_their_last_step(whole, tmp_path):
    complete = lambda directory: sweeps.Run(directory, 'configs/default.py', tiny.FIELDS).complete()
    assert not complete(tmp_path / 'nothing')
    assert complete(whole / NAME)
    back_to(whole, tmp_path / 'runs', 20)  # as after SIGTERM, which exits with 0
    assert not complete(tmp_path / 'runs' / NAME)
    shutil.rmtree(tmp_path / 'runs' / NAME / 'checkpoints')
    assert not complete(tmp_path / 'runs' / NAME)


def test_a_run_that_continues_another_is_compared_as_it_was_resolved(whole, tmp_path):
    """`init.extend` is written into the encoding of the saved config; the sweep asks for it by its
    own name.
    """
    init = {'init.source': str(whole / NAME), 'init.extend': 'alibi_pi(factor=2.0)'}
    fields = tiny.FIELDS | init
    config = tiny.config(tmp_path, **{name.replace('.', '__'): own for name, own in init.items()})
    source = initial.open_initial(config.init.source, config.init.extend)
    (tmp_path / 'tuned' / 'checkpoints' / str(STEPS)).mkdir(parents=True)
    stored.save(validate(initial.resolve(config, source)), tmp_path / 'tuned' / stored.FILE)
    tuned = tmp_path / 'tuned'
    asked = lambda *more: sweeps.Run(tuned, 'configs/default.py', fields, more).differences()
    assert asked() == []
    (changed,) = asked('init.extend=alibi_pi(factor=4.0)')
    assert changed.startswith('encoding: ') and 'factor=2.0' in changed and 'factor=4.0' in changed


@pytest.mark.full
def test_changed_config_is_refused_unless_told_otherwise(whole, cache, tmp_path):
    back_to(whole, tmp_path / 'runs', 20)
    _, errors = finish(tiny.start(tmp_path / 'runs', name=NAME, cache=cache, train__lr=0.02), 2)
    assert 'train.lr: 0.01 -> 0.02' in errors and '--resume_changed' in errors
    assert 'Traceback' not in errors
    assert losses(tmp_path / 'runs') == losses(whole)
    changed = dict(name=NAME, cache=cache, train__lr=0.02)
    finish(tiny.start(tmp_path / 'runs', '--resume_changed', **changed))
    new, old = losses(tmp_path / 'runs'), losses(whole)
    # The loss of 21 is before its update.
    assert [new[s] for s in range(1, 22)] == [old[s] for s in range(1, 22)]
    assert new[22] != old[22]


@pytest.mark.full
def test_non_finite_numbers_stop_the_run(whole, cache, tmp_path):
    back_to(whole, tmp_path / 'runs', 8)
    changes = dict(train__lr=1e38, train__save_every=1)
    process = tiny.start(tmp_path / 'runs', '--resume_changed', name=NAME, cache=cache, **changes)
    _, errors = finish(process, 1)
    assert 'Traceback' not in errors
    stopped = int(errors.split('step ')[1].split(':')[0])
    kept = restore_model(tmp_path / 'runs' / NAME)
    assert 8 <= kept[2] < stopped
    assert f'the checkpoint of step {kept[2]} is kept' in errors
    assert all(np.isfinite(loss) for loss in losses(tmp_path / 'runs').values())


@pytest.mark.full
def test_mesh_and_processes_have_the_losses_of_one_device(whole, cache, tmp_path):
    expected = [loss for _, loss in sorted(losses(whole).items())]
    validated = dict(train__eval_every=6, train__eval_batches=2)
    fields = dict(name=NAME, cache=cache, train__save_every=20, **validated)
    # Eight emulated devices, from the start, in this process.
    mesh = tmp_path / 'mesh'
    loop.train(tiny.config(mesh, name=NAME, train__save_every=20, **validated, **MESH))
    found = [loss for _, loss in sorted(losses(mesh).items())]
    np.testing.assert_allclose(found[:6], expected[:6], rtol=0, atol=1e-5)
    # Two real processes with parameters cut between them, from the start ...
    apart = tmp_path / 'apart'
    evaluated = dict(eval__at_end=True, eval__stride=8, eval__lengths='32', eval__tokens=256)
    several_processes(2, apart, **fields, **evaluated)
    together, alone = read(apart / NAME / 'eval')[0], evaluate([apart / NAME]).runs[0]
    for own, other in zip(together.measurements, alone.measurements, strict=True):
        assert own.nll == pytest.approx(other.nll, abs=1e-5)
    found = [loss for _, loss in sorted(losses(apart).items())]
    np.testing.assert_allclose(found[:6], expected[:6], rtol=0, atol=1e-5)
    own, other = (of_steps(workdir, 'validation_loss') for workdir in (apart, mesh))
    assert own.keys() == other.keys() and own[6] == pytest.approx(other[6], abs=1e-5)
    # ... and from the checkpoint of the eight devices.
    back_to(mesh, tmp_path / 'from_mesh', 20)
    several_processes(2, tmp_path / 'from_mesh', **fields)
    np.testing.assert_allclose(tail(tmp_path / 'from_mesh'), tail(mesh), rtol=0, atol=1e-5)
    # One device goes on from the checkpoint of two processes.
    back_to(apart, tmp_path / 'from_apart', 20)
    finish(tiny.start(tmp_path / 'from_apart', **fields))
    np.testing.assert_allclose(tail(tmp_path / 'from_apart'), tail(apart), rtol=0, atol=1e-5)


@pytest.mark.parametrize('processes', [2, 4])
@pytest.mark.full
def test_every_process_makes_its_own_rows_alone(whole, cache, tmp_path, processes):
    own_rows = tmp_path / 'own_rows.py'
    own_rows.write_text(OWN_ROWS)
    flags, fields = (f'--import={own_rows}',), dict(name=NAME, cache=cache, train__save_every=20)
    runs, half = tmp_path / 'runs', tmp_path / 'half'
    several_processes(processes, runs, *flags, **fields)
    found, expected = losses(runs), losses(whole)
    for step in range(1, 7):  # later ones differ by more than rounding of one step
        assert found[step] == pytest.approx(expected[step], abs=1e-5)
    if processes == 4:  # half of them go on from the checkpoint of all
        back_to(runs, half, 20)
        several_processes(2, half, *flags, **fields)
        # A run that began again would write the line of step 20 again.
        assert of_steps(half, 'time')[20] == of_steps(runs, 'time')[20]
        np.testing.assert_allclose(tail(half), tail(runs), rtol=0, atol=1e-5)


@pytest.mark.full
def test_a_cluster_of_one_evaluates_at_the_end(cache, tmp_path):
    fields = dict(cache=cache, name=NAME, train__steps=2, train__warmup=1, eval__at_end=True)
    fields |= dict(eval__stride=8, eval__lengths='32', eval__tokens=64)
    finish(tiny.start(tmp_path, *flags_of(free_port(), 1, 0), **fields))
    assert read(tmp_path / NAME / 'eval')[0].measurements


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def flags_of(port, processes, number):
    return f'--coordinator=127.0.0.1:{port}', f'--processes={processes}', f'--process_id={number}'


def several_processes(count, workdir, *flags, **fields):
    """Trains with so many processes, which share the rows and the parameters."""
    port, mesh = free_port(), dict(mesh__data=count // 2, mesh__fsdp=2)
    start = lambda i: tiny.start(workdir, *flags_of(port, count, i), *flags, **fields, **mesh)
    started = [start(i) for i in range(count)]
    (out, _), *others = [finish(process) for process in started]
    assert f'step {STEPS}/{STEPS}' in out
    for silent, _ in others:  # the transport greets on all of them
        assert all(line.startswith('[Gloo]') for line in silent.splitlines())


def test_importing_the_package_does_not_import_training():
    # Flax itself brings optax and rich.
    heavy = 'orbax', 'grain', 'tensorboardX', 'matplotlib', 'tensorflow_datasets'
    code = f'import posenc_jax, sys; print([m for m in {heavy} if m in sys.modules])'
    assert finish(tiny.start_python('-c', code))[0].strip() == '[]'
