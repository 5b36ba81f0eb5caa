"""Reads a run from its directory alone: its model, or its config as the checkpoints confirm it."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from posenc_jax.lab.config.overrides import apply_overrides
from posenc_jax.lab.files import paths
from posenc_jax.lab.model.kinds import Model, abstract_model
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.checkpoint import Checkpoints
from posenc_jax.lab.runs.state import take_apart
from posenc_jax.lab.runs.trust import import_of_run
from posenc_jax.layer.sharding import dict_shapes, make_mesh

if TYPE_CHECKING:
    from posenc_jax.lab.runs.run import Run


def restore_model(
    run_dir: str | os.PathLike,
    step: int | None = None,
    *,
    mesh: Mesh | None = None,
    overrides: Mapping[str, Any] | None = None,
    trust_imports: bool = False,
) -> tuple[ConfigDict, Model, int]:
    """Reads a trained model from the directory of its run alone.

    Args:
      run_dir: the directory that training wrote.
      step: the step of the checkpoint; None takes the newest one that can be read.
      mesh: where the parameters are placed; None places them on one device.
      overrides: as for `evaluate`. Those of model.block, .implementation, .precision and .remat are
        the model's, e.g. {'model.implementation': 'blocked'} for a run whose kernels this platform
        does not have.
      trust_imports: whether the code in the folder `imports/` of the run may be executed, see
        `run.trust`.

    Returns:
      The config of the run with the overrides, the model, and the step of the checkpoint.

    Raises:
      FileNotFoundError: `run_dir` is not the directory of a run.
      CheckpointError: there is no such checkpoint, none can be read, or one has another config than
        the run.
      UntrustedError: the run brings code, and `trust_imports` is False.
      SpecError: an override of a field that an evaluation cannot change, or of a wrong type.

    Example:
      config, model, step = restore_model('runs/language-pydoc_topics-rope-s0')
      logits = model(tokens)
    """
    saved = stored.read_saved(paths.path(run_dir) / stored.FILE)
    config = apply_overrides(saved.config, overrides or {}).lock()
    with Checkpoints(run_dir, saved=saved) as checkpoints:
        checkpoints.confirm(step)  # before a model is built from sizes that may be wrong
        import_of_run(run_dir, saved.config.imports, trust_imports)
        cfg = saved.computed(overrides or {}).model_config
        return config, *_read(checkpoints, abstract_model(cfg), step, mesh)


def weights(run: 'Run', mesh: Mesh | None = None) -> tuple[Model, int]:
    """The model of a run with the weights of its newest checkpoint, and the step of that. The
    arguments are those of `Run.weights`.

    Raises:
      CheckpointError: there is no checkpoint, none can be read, or one has another config than the
        run.
    """
    saved = stored.read_saved(run.directory / stored.FILE)
    with Checkpoints(run.directory, saved=saved) as checkpoints:
        return _read(checkpoints, run.model, None, mesh)


def _read(
    checkpoints: Checkpoints, model: Model, step: int | None, mesh: Mesh | None
) -> tuple[Model, int]:
    """`model`, which is given as shapes, with the weights of a checkpoint, and its step."""
    graphdef, params, constants = take_apart(model)
    mesh = make_mesh(data=1, devices=jax.local_devices()[:1]) if mesh is None else mesh
    abstract = {'params': dict_shapes(params, mesh), 'constants': dict_shapes(constants, mesh)}
    found, step = checkpoints.restore_model(abstract, step)
    return nnx.merge(graphdef, found['params'], found['constants']), step


def read_run(run_dir: str | os.PathLike, *, trust_imports: bool = False) -> stored.Saved:
    """Reads the config of a run and compares it with the newest checkpoint. No arrays are read.
    Then the modules that the run imports are imported, see `run.trust`.

    Args:
      run_dir: the directory that training wrote.
      trust_imports: whether the code in its folder `imports/` may be executed.

    Raises:
      FileNotFoundError: `run_dir` is not the directory of a run.
      CheckpointError: there is no checkpoint, or it has another config.
      UntrustedError: the run brings code, and `trust_imports` is False.
    """
    saved = stored.read_saved(paths.path(run_dir) / stored.FILE)
    with Checkpoints(run_dir, saved=saved) as checkpoints:
        checkpoints.confirm()
    import_of_run(run_dir, saved.config.imports, trust_imports)
    return saved
