"""Checkpoints of a run: asynchronous, verified when read, and independent of the number of devices."""

import itertools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, UInt32
from ml_collections import ConfigDict

from posenc_jax.core import disk
from posenc_jax.model.sharding import dict_shapes, make_mesh
from posenc_jax.model.transformer import Transformer
from posenc_jax.training import config as configs
from posenc_jax.training import room
from posenc_jax.training.safe import FOLDER
from posenc_jax.training.step import TrainState, abstract_model, take_apart


class CheckpointError(ValueError):
    """There is no checkpoint that can be used; the message says why and what to do."""


class Checkpoints:
    """The checkpoints of one run, as a context that waits for unfinished saves.

    Each holds the model and the optimizer as separate items, and the state of the data iterator with fingerprints of
    the arrays. Saving returns as soon as the arrays are copied; a save that was cut off leaves a folder that is not read.

    Args:
      directory: the run directory; checkpoints lie in its folder `checkpoints`.
      keep: how many are kept; None keeps and creates nothing, for reading.

    Raises:
      DiskFullError: there is no room; from `save`, whichever save it was, or where the context ends. The rest of that save is removed.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int | None = None):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        self.directory = pathlib.Path(directory, FOLDER).absolute()
        if keep is None and not self.directory.is_dir():
            raise CheckpointError(f'{directory} has no checkpoint: there is no folder {self.directory}')
        policy = checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=keep is not None)
        handlers = {
            'model': ocp.StandardCheckpointHandler(),
            'optimizer': ocp.StandardCheckpointHandler(),
            'data': ocp.JsonCheckpointHandler(),
        }
        self._read_only = keep is None
        if not self._read_only:
            room.drop_unfinished(self.directory)  # of a run that was killed
        self._quiet, self._bytes = room.Quiet(), None
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def __enter__(self) -> 'Checkpoints':
        self._quiet.start()
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        failed = error
        try:
            with self._told():
                self._manager.close()
        except Exception as other:
            failed = error or other
            if error is None:  # otherwise the error that ended the run is the one to tell
                raise
        finally:
            self._quiet.stop(disk.is_full(failed))
            if not self._read_only:
                room.drop_unfinished(self.directory)

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Starts to save; `data` is the state of the data iterator, equal in every process."""
        import orbax.checkpoint as ocp

        items = _items(state)
        with self._told():
            self._manager.wait_until_finished()  # and removes what is kept no longer
        self.need_room(items)
        prints = {name: int(fingerprint(tree)) for name, tree in items.items()}
        args = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
            data=ocp.args.JsonSave({'iterator': data, 'fingerprints': prints}),
        )
        with self._told():
            self._manager.save(step, args=args)

    def need_room(self, tree: Any) -> None:
        """Checks that one more checkpoint of these arrays, or shapes, fits; the others are kept until it is complete."""
        self._bytes = room.checkpoint_bytes(self.directory, tree)
        if jax.process_index() == 0:
            disk.need(self.directory, self._bytes)

    def _told(self):
        return disk.told(self.directory, self._bytes)

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any], int]:
        """The newest good checkpoint: its state as `abstract` wants it, the state of the data iterator, and its step.

        A damaged one is set aside under the name 'STEP.damaged', with a line saying so, and the one before is taken.

        Raises:
          CheckpointError: none, none that can be read, or one of another model.
        """
        (items, data), step = self._newest(_items(abstract))
        return TrainState(**items['model'], **items['optimizer']), data, step

    def restore_model(self, abstract: dict[str, Any], step: int | None) -> tuple[dict[str, Any], int]:
        """Parameters and constants alone, of the newest good checkpoint or of this `step`.

        Raises:
          CheckpointError: as `restore`, or there is no such step.
        """
        if step is None:
            (items, _), step = self._newest({'model': abstract})
        elif step not in self.steps():
            raise CheckpointError(f'{self.directory} has no checkpoint of step {step}; there are {self.steps()}')
        else:
            try:
                items, _ = self._read(step, {'model': abstract})
            except CheckpointError:
                raise
            except Exception as error:
                raise CheckpointError(f'checkpoint {step} of {self.directory} is damaged ({_short(error)})') from error
        return items['model'], step

    def _newest(self, abstract):
        steps = self.steps()
        if not steps:
            raise CheckpointError(f'{self.directory} holds no finished checkpoint')
        for step in reversed(steps):
            try:
                found, problem = self._read(step, abstract), None
            except CheckpointError:
                raise
            except Exception as error:  # whatever a damaged file makes the readers raise
                found, problem = None, error
            if _everywhere(problem is None):
                return found, step
            earlier = [s for s in steps if s < step]
            then = f'using {earlier[-1]} instead' if earlier else 'there is none before it'
            reason = _short(problem) if problem else 'another process could not read it'
            if jax.process_index() == 0:
                print(f'checkpoint {step} of {self.directory} is damaged ({reason}); {then}', flush=True)
            self._set_aside(step)
        raise CheckpointError(f'{self.directory}: none of the checkpoints {steps} can be read')

    def _read(self, step, abstract):
        import orbax.checkpoint as ocp

        self._check_model(step, abstract['model'])
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        found = self._manager.restore(step, args=ocp.args.Composite(**items, data=ocp.args.JsonRestore()))
        for name in items:
            if int(fingerprint(found[name])) != found['data']['fingerprints'][name]:
                raise ValueError(f'the arrays of {name!r} differ from those that were saved')
        return found, found['data']['iterator']

    def _check_model(self, step, abstract):
        stored = {_name(path): tuple(a.shape) for path, a in _leaves(self._manager.item_metadata(step)['model'].tree)}
        wanted = {_name(path): tuple(a.shape) for path, a in _leaves(abstract)}
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                there, here = stored.get(name, 'absent'), wanted.get(name, 'absent')
                which = f'checkpoint {step} of {self.directory}'
                raise CheckpointError(f'{which} is of another model: {name} is {there} there and {here} here')

    def _set_aside(self, step):
        if self._read_only:
            return
        if jax.process_index() == 0:
            source = self.directory / str(step)
            names = (source.with_name(f'{step}.damaged{number or ""}') for number in itertools.count())
            source.rename(next(name for name in names if not name.exists()))
        _everywhere(True)  # nobody lists the folder before it is renamed
        self._manager.reload()


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
      CheckpointError: no such checkpoint, or none that can be read.

    Example:
      config, model, step = restore_model('runs/language-pydoc_topics-rope-s0')
      logits = model(tokens)
    """
    path = pathlib.Path(run_dir, configs.FILE)
    config = configs.from_json(path)
    graphdef, params, constants = take_apart(abstract_model(configs.stored_model_config(path)))
    mesh = make_mesh(data=1, devices=jax.local_devices()[:1]) if mesh is None else mesh
    abstract = {'params': dict_shapes(params, mesh), 'constants': dict_shapes(constants, mesh)}
    with Checkpoints(run_dir) as checkpoints:
        found, step = checkpoints.restore_model(abstract, step)
    return config, nnx.merge(graphdef, found['params'], found['constants']), step


@jax.jit
def fingerprint(tree: Any) -> UInt32[Array, '']:
    """A sum of the bits of all arrays modulo 2**32, equal however they are sharded; one changed bit changes it.

    Example:
      >>> int(fingerprint({'a': jnp.array([1, 2], jnp.int32)}))
      3
    """
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{8 * leaf.dtype.itemsize}'))
        total += jnp.uint32(2 * number + 1) * bits.sum(dtype=jnp.uint32)
    return total


def _items(state: TrainState) -> dict[str, Any]:
    """The state as the items of a checkpoint: the model can be read without the optimizer."""
    return {
        'model': {'params': state.params, 'constants': state.constants},
        'optimizer': {'opt_state': state.opt_state, 'step': state.step},
    }


def _everywhere(good: bool) -> bool:
    """Whether it is so in every process; all wait for each other."""
    if jax.process_count() == 1:
        return good
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(good)).all())


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='.')


def _short(error: BaseException) -> str:
    return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:160]}'
