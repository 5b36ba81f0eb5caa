"""Runs with checkpoints that were saved without training: what the tests of checkpoints share."""

import gc
import shutil

import chex
import jax
import pytest
from flax import nnx

from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.checkpoint import Checkpoints
from posenc_jax.lab.runs.run import Run, validate
from posenc_jax.lab.train.step import make_trainer
from posenc_jax.layer.sharding import make_mesh
from tests.lab.train import tiny

FIELDS = {'encoding': 'learned_absolute(max_len=32) | alibi()', 'model__layers': 1}


def trainer_of(config, **mesh):
    mesh = mesh or dict(data=1, devices=jax.devices()[:1])
    return make_trainer(Run.of(config), make_mesh(**mesh))


def noisy(state, step):
    """Noise everywhere, so that no array is small on disk because it is all zeros."""
    noise = lambda a: jax.random.normal(jax.random.key(step), a.shape) if a.ndim else a + step
    return jax.tree.map(noise, state)


@pytest.fixture(scope='session')
def saved(tmp_path_factory):
    """A run directory with checkpoints at steps 3 and 7, and the state of each."""
    directory = tmp_path_factory.mktemp('run')
    config = validate(tiny.config(directory, **FIELDS))
    trainer = trainer_of(config)
    stored.save(config, directory / stored.FILE)
    states = {}
    with Checkpoints(directory, keep=2, saved=stored.saved_of(config)) as checkpoints:
        for step in (1, 3, 7):
            state = noisy(trainer.init({}), step)
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
    chex.assert_trees_all_equal(one, two)


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
