"""A finished run read from its directory alone: its model, or its config as the checkpoints confirm
it.
"""

import os
import pathlib

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from posenc_jax.model.sharding import dict_shapes, make_mesh
from posenc_jax.model.transformer import Transformer, abstract_model
from posenc_jax.run import config as configs
from posenc_jax.run.checkpoint import Checkpoints
from posenc_jax.run.state import take_apart


def restore_model(
    run_dir: str | os.PathLike, step: int | None = None, *, mesh: Mesh | None = None
) -> tuple[ConfigDict, Transformer, int]:
    """A trained model from the directory of its run alone.

    Args:
      run_dir: the directory that training wrote.
      step: which checkpoint; None is the newest one that can be read.
      mesh: where its parameters go; None is one device.

    Returns:
      Its config, the model, and the step.

    Raises:
      FileNotFoundError: not the directory of a run.
      CheckpointError: no such checkpoint, none that can be read, or one of another config than that
        of the run.

    Example:
      config, model, step = restore_model('runs/language-pydoc_topics-rope-s0')
      logits = model(tokens)
    """
    saved = configs.read_saved(pathlib.Path(run_dir, configs.FILE))
    with Checkpoints(run_dir, saved=saved) as checkpoints:
        checkpoints.confirm(step)  # before a model is made of numbers that may be wrong
        graphdef, params, constants = take_apart(abstract_model(saved.model_config))
        mesh = make_mesh(data=1, devices=jax.local_devices()[:1]) if mesh is None else mesh
        abstract = {'params': dict_shapes(params, mesh), 'constants': dict_shapes(constants, mesh)}
        found, step = checkpoints.restore_model(abstract, step)
    return saved.config, nnx.merge(graphdef, found['params'], found['constants']), step


def read_run(run_dir: str | os.PathLike) -> configs.Saved:
    """The config of a run with finished checkpoints, as the newest of them confirms it; no array is
    read.

    Raises:
      FileNotFoundError: not the directory of a run.
      CheckpointError: there is no checkpoint, or the config has been changed since.
    """
    saved = configs.read_saved(pathlib.Path(run_dir, configs.FILE))
    with Checkpoints(run_dir, saved=saved) as checkpoints:
        checkpoints.confirm()
    return saved
