"""Reads a run from its directory alone: its model, or its config as the checkpoints confirm it."""

import os
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from posenc_jax.core import imports, paths
from posenc_jax.model.kinds import Model, abstract_model
from posenc_jax.model.sharding import dict_shapes, make_mesh
from posenc_jax.run import stored
from posenc_jax.run.checkpoint import Checkpoints
from posenc_jax.run.overrides import apply_overrides
from posenc_jax.run.state import take_apart


def restore_model(
    run_dir: str | os.PathLike,
    step: int | None = None,
    *,
    mesh: Mesh | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[ConfigDict, Model, int]:
    """Reads a trained model from the directory of its run alone. The modules that the run imports
    are executed.

    Args:
      run_dir: the directory that training wrote.
      step: the step of the checkpoint; None takes the newest one that can be read.
      mesh: where the parameters are placed; None places them on one device.
      overrides: as for `evaluate`. Those of model.block, model.implementation and model.remat are
        the model's, e.g. {'model.implementation': 'blocked'} for a run whose kernels this platform
        does not have.

    Returns:
      The config of the run with the overrides, the model, and the step of the checkpoint.

    Raises:
      FileNotFoundError: `run_dir` is not the directory of a run.
      CheckpointError: there is no such checkpoint, none can be read, or one has another config than
        the run.
      SpecError: an override of a field that an evaluation cannot change, or of a wrong type.

    Example:
      config, model, step = restore_model('runs/language-pydoc_topics-rope-s0')
      logits = model(tokens)
    """
    saved = stored.read_saved(paths.path(run_dir) / stored.FILE)
    imports.load(saved.config.imports, run_dir)
    config = apply_overrides(saved.config, overrides or {}).lock()
    with Checkpoints(run_dir, saved=saved) as checkpoints:
        checkpoints.confirm(step)  # before a model is built from sizes that may be wrong
        cfg = saved.computed(overrides or {}).model_config
        graphdef, params, constants = take_apart(abstract_model(cfg))
        mesh = make_mesh(data=1, devices=jax.local_devices()[:1]) if mesh is None else mesh
        abstract = {'params': dict_shapes(params, mesh), 'constants': dict_shapes(constants, mesh)}
        found, step = checkpoints.restore_model(abstract, step)
    return config, nnx.merge(graphdef, found['params'], found['constants']), step


def read_run(run_dir: str | os.PathLike) -> stored.Saved:
    """Reads the config of a run and compares it with the newest checkpoint. No arrays are read. The
    modules that the run imports are executed.

    Raises:
      FileNotFoundError: `run_dir` is not the directory of a run.
      CheckpointError: there is no checkpoint, or it has another config.
    """
    saved = stored.read_saved(paths.path(run_dir) / stored.FILE)
    imports.load(saved.config.imports, run_dir)
    with Checkpoints(run_dir, saved=saved) as checkpoints:
        checkpoints.confirm()
    return saved
