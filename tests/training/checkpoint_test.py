"""Checkpoints: what is read is what was written, and damage is noticed."""

import gc
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.model.sharding import make_mesh
from posenc_jax.model.transformer import Transformer
from posenc_jax.training import config as configs
from posenc_jax.training.checkpoint import CheckpointError, Checkpoints, fingerprint, restore_model
from posenc_jax.training.step import make_trainer
from tests.training import tiny

# Where a read fails, orbax drops the reads beside it, which Python mentions when they are collected: `run` collects them.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')

FIELDS = {'encoding': 'learned_absolute(max_len=32) | alibi()', 'model__layers': 1}


def trainer_of(config, **mesh):
    cfg = configs.model_config(config, configs.make_task(config))
    return make_trainer(cfg, config.train, config.seed, make_mesh(**(mesh or dict(data=1, devices=jax.devices()[:1]))))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A run directory with checkpoints at steps 3 and 7, and the state of each."""
    directory = tmp_path_factory.mktemp('run')
    config = configs.validate(tiny.config(directory, **FIELDS))
    trainer = trainer_of(config)
    configs.save(config, directory / configs.FILE)
    states = {}
    with Checkpoints(directory, keep=2) as checkpoints:
        for step in (1, 3, 7):
            # Noise everywhere, so that no array is small on disk because it is all zeros.
            noise = lambda a, step=step: jax.random.normal(jax.random.key(step), a.shape) if a.ndim else a + step
            state = jax.tree.map(noise, trainer.init({}))
            checkpoints.save(step, state, {'next_index': 10 * step})
            states[step] = jax.device_get(state)
    return directory, trainer, states


@pytest.fixture
def run(saved, tmp_path):
    directory, trainer, states = saved
    copy = tmp_path / 'run'
    shutil.copytree(directory, copy)
    yield copy, trainer, states
    gc.collect()


def equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def arrays_file(directory: pathlib.Path, step: int, item='model') -> pathlib.Path:
    """The file that holds most of the arrays."""
    files = [path for path in (directory / 'checkpoints' / str(step) / item).rglob('d/*') if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_round_trip(run):
    directory, trainer, states = run
    with Checkpoints(directory, keep=2) as checkpoints:
        assert checkpoints.steps() == [3, 7]  # only so many are kept
        state, data, step = checkpoints.restore(trainer.abstract)
    assert (step, data) == (7, {'next_index': 70})
    equal(state, states[7])


def test_restore_model_reads_a_run_from_its_directory(run):
    directory, _, states = run
    for step, expected in ((None, 7), (3, 3)):
        config, model, found = restore_model(directory, step)
        assert found == expected and config.encoding == FIELDS['encoding']
        assert isinstance(model, Transformer)
        equal(nnx.to_pure_dict(nnx.state(model, nnx.Param)), states[expected].params)


def test_missing_step(run):
    with pytest.raises(CheckpointError, match=r'no checkpoint of step 5; there are \[3, 7\]'):
        restore_model(run[0], 5)


def test_other_devices(run):
    directory, _, states = run
    config = configs.from_json(directory / configs.FILE)
    mesh = trainer_of(config, data=1, fsdp=2, tensor=2, sequence=2)
    with Checkpoints(directory, keep=2) as checkpoints:
        state, _, _ = checkpoints.restore(mesh.abstract)
    assert len(state.params['embedding'].sharding.device_set) == 8
    assert state.params['embedding'].addressable_shards[0].data.shape == (257, 8)
    assert state.opt_state[1][0].mu['embedding'].sharding == state.params['embedding'].sharding
    equal(jax.device_get(state), states[7])


@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'emptied', 'gone', 'metadata', 'optimizer'])
def test_damage_falls_back(run, capsys, damage):
    directory, trainer, states = run
    path = arrays_file(directory, 7, 'optimizer' if damage == 'optimizer' else 'model')
    content = path.read_bytes()
    if damage in ('truncated', 'optimizer'):
        path.write_bytes(content[: len(content) // 2])
    elif damage == 'flipped':
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == 'emptied':
        path.write_bytes(b'')
    elif damage == 'gone':
        path.unlink()
    else:
        (directory / 'checkpoints' / '7' / 'model' / '_METADATA').unlink()
    with Checkpoints(directory, keep=2) as checkpoints:
        state, data, step = checkpoints.restore(trainer.abstract)
        assert checkpoints.steps() == [3]
        # The run goes on, and its step 7 is a checkpoint again.
        checkpoints.save(7, state, data)
    assert (step, data) == (3, {'next_index': 30})
    equal(jax.device_get(state), states[3])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith('checkpoint 7 of ') and lines[0].endswith('; using 3 instead')
    assert (directory / 'checkpoints' / '7.damaged').is_dir()
    assert restore_model(directory)[2] == 7


def test_reading_alone_changes_nothing(run, capsys):
    directory, _, _ = run
    arrays_file(directory, 7).write_bytes(b'')
    assert restore_model(directory)[2] == 3
    assert 'using 3 instead' in capsys.readouterr().out
    assert {p.name for p in (directory / 'checkpoints').iterdir()} >= {'3', '7'}
    with pytest.raises(CheckpointError, match='checkpoint 7 of .* is damaged'):
        restore_model(directory, 7)


def test_all_damaged(run):
    directory, trainer, _ = run
    for step in (3, 7):
        arrays_file(directory, step).write_bytes(b'')
    with Checkpoints(directory, keep=2) as checkpoints, pytest.raises(CheckpointError, match=r'none of .*\[3, 7\]'):
        checkpoints.restore(trainer.abstract)


def test_a_save_that_was_cut_off_is_not_read(run):
    directory, trainer, _ = run
    folder = directory / 'checkpoints'
    shutil.copytree(folder / '7', folder / '9.orbax-checkpoint-tmp')
    with Checkpoints(directory, keep=2) as checkpoints:
        assert checkpoints.restore(trainer.abstract)[2] == 7


def test_none(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not the directory of a run'):
        restore_model(tmp_path)
    config = configs.validate(tiny.config(tmp_path, **FIELDS))
    configs.save(config, tmp_path / configs.FILE)
    with pytest.raises(CheckpointError, match='has no checkpoint'):
        restore_model(tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(CheckpointError, match='holds no finished checkpoint'):
        restore_model(tmp_path)


def test_another_model(run):
    directory, _, _ = run
    config = configs.validate(tiny.config(directory, **{**FIELDS, 'model__width': 32}))
    with Checkpoints(directory, keep=2) as checkpoints:
        with pytest.raises(CheckpointError, match=r'is of another model: .* \(1, 16, 4, 4\) there and .* here'):
            checkpoints.restore(trainer_of(config).abstract)
        assert checkpoints.steps() == [3, 7]


def test_fingerprint():
    a = jnp.arange(6, dtype=jnp.float32)
    tree = {'a': a, 'b': jnp.int32(5)}
    assert int(fingerprint(tree)) != int(fingerprint({'a': a.at[3].set(jnp.nextafter(a[3], 9.0)), 'b': jnp.int32(5)}))
    assert int(fingerprint({'a': a[:3], 'b': a[3:]})) != int(fingerprint({'a': a[3:], 'b': a[:3]}))
    assert int(fingerprint({'a': jnp.array([True, False])})) != int(fingerprint({'a': jnp.array([True, True])}))
    assert int(fingerprint({})) == 0
