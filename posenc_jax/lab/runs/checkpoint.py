"""Checkpoints of a run: written asynchronously, verified when read, for any number of devices."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from posenc_jax.base.programs import printable, program
from posenc_jax.lab.files import checkpoint_files, disk, paths, regular
from posenc_jax.lab.files.json_file import free_name
from posenc_jax.lab.files.lock import alone, offer, sharing
from posenc_jax.lab.files.orbax_reports import hush_orbax
from posenc_jax.lab.files.saved_steps import FOLDER, finished_steps
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.entries import digest, fingerprint, other_config, sealed, unsealed
from posenc_jax.lab.runs.state import TrainState, sizes_of
from posenc_jax.protocol.errors import quoted

# The lock file beside the folder. Processes that read checkpoints share it; a process that removes
# checkpoints must hold it alone.
READERS = 'reading.lock'


class CheckpointError(ValueError):
    """No checkpoint can be used; the message says why, and what to do."""


class Checkpoints:
    """The checkpoints of one run; a context manager whose end waits for unfinished saves.

    A checkpoint holds the model and the optimizer as separate items, and `entries`: the state of
    the data iterator, the step, the config, and fingerprints of the arrays. `save` returns as soon
    as the arrays are copied. A save that was cut off leaves a folder that is never read. While
    another process reads, no checkpoint is removed; the next save removes the old ones.

    Args:
      directory: the run directory; its folder `checkpoints` holds the checkpoints.
      keep: how many checkpoints are kept; until the next save, one more may exist. None opens
        them for reading: nothing is created or removed.
      saved: the config of the run, which `save` writes. Only checkpoints of this config, or of one
        that `--resume_changed` has replaced by it, are read. If None, no config is written or
        compared. A checkpoint of a version that wrote no config is accepted.

    Raises:
      CheckpointError: the folder is a file, or does not exist and `keep` is None.
      ValueError: one of the files is a pipe, a device or the like.
      DiskFullError, UnreachableError: the disk is full; the bucket cannot be written. It may come
        from a later `save` than the one that failed, or from the end of the context. What the
        failed save wrote is removed, or not read.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int | None = None,
        saved: stored.Saved | None = None,
    ):
        import orbax.checkpoint as ocp

        hush_orbax()
        directory = paths.path(directory)
        checkpoint_files.check_place(directory)
        regular.check_below(paths.absolute(directory) / FOLDER)
        self.directory = paths.absolute(directory) / FOLDER
        self.saved, self._keep, self._bytes = saved, keep, None
        if keep is None and not self.directory.is_dir():
            raise CheckpointError(
                f'{directory} has no checkpoint: there is no folder {self.directory}'
            )
        # Orbax must not remove checkpoints: it does not know of `READERS`.
        options = ocp.CheckpointManagerOptions(create=keep is not None)
        handlers = {
            'model': ocp.StandardCheckpointHandler(),
            'optimizer': ocp.StandardCheckpointHandler(),
            'data': ocp.JsonCheckpointHandler(),
        }
        with contextlib.ExitStack() as stack:
            if keep is None:
                stack.enter_context(sharing(self._readers))
            elif jax.process_index() == 0:
                disk.make_folder(self.directory)
                offer(self._readers)
                checkpoint_files.drop_unfinished(self.directory)  # left by a run that was killed
            with paths.reached(self.directory):
                try:
                    self._manager = ocp.CheckpointManager(
                        self.directory, options=options, item_handlers=handlers
                    )
                except (OverflowError, TypeError, ValueError) as error:  # it reads all times
                    raise CheckpointError(
                        f'{self.directory}: a file */_CHECKPOINT_METADATA holds no time of a '
                        f'checkpoint ({_short(error)}); move it away'
                    ) from error
            self._until_closed = stack.pop_all()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        failed = error
        with self._until_closed:
            try:
                with self._told():
                    self._manager.close()
                if error is None:  # after an error every checkpoint is kept
                    self._remove_old()
            except Exception as other:
                failed = error or other
                if error is None:  # otherwise the error that ended the run is raised
                    raise
            finally:
                if disk.is_full(failed):
                    checkpoint_files.wait_for_writers()
                if self._keep is not None:
                    checkpoint_files.drop_unfinished(self.directory)

    @property
    def _readers(self) -> pathlib.Path:
        return self.directory.with_name(READERS)

    def accept(self) -> None:
        """Accepts the checkpoints that exist as those of this run, whatever their configs, as
        `--resume_changed` asks.
        """
        if self.saved is None:  # no config is compared
            return
        earlier = set()
        for step in self.steps():
            with contextlib.suppress(Exception):  # a damaged checkpoint is skipped
                earlier |= {
                    digest(entries['config'])
                    for entries in [self.entries(step)]
                    if 'config' in entries
                }
        self.saved = dataclasses.replace(
            self.saved, earlier=tuple(sorted(earlier - {digest(self.saved.bound)}))
        )

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        with paths.reached(self.directory):
            return finished_steps(self.directory.parent)

    def save(
        self,
        step: int,
        state: TrainState,
        data: dict[str, Any],
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts an asynchronous save.

        Args:
          step: how many updates `state` has had.
          state: the arrays to save.
          data: the state of the data iterator, equal in every process.
          metrics: `MetricsLog.written`, the record of the metrics lines so far; only process 0
            has it.
        """
        import orbax.checkpoint as ocp

        items = _items(state)
        with self._told():
            self._manager.wait_until_finished()
        self._remove_old()
        self.need_room(items)
        prints = {name: int(fingerprint(tree)) for name, tree in items.items()}
        entries = {'iterator': data, 'fingerprints': prints, 'step': step, 'metrics': metrics}
        if self.saved is not None:
            entries['config'] = self.saved.bound
        args = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
            data=ocp.args.JsonSave(sealed(entries)),
        )
        with self._told():
            self._manager.save(step, args=args)

    def need_room(self, tree: Any) -> None:
        """Raises DiskFullError unless the disk has room for one more checkpoint of `tree`, given as
        arrays or shapes. Older checkpoints stay until the new one is complete.
        """
        self._bytes = checkpoint_files.checkpoint_bytes(self.directory, tree)
        if jax.process_index() == 0:
            disk.need(self.directory, self._bytes)

    @contextlib.contextmanager
    def _told(self):
        with disk.told(self.directory, self._bytes), paths.reached(self.directory):
            yield

    def _remove_old(self) -> None:
        if self._keep is None or jax.process_index():
            return
        if old := self.steps()[: -self._keep]:
            with alone(self._readers) as unread, self._told():
                for step in old if unread else ():
                    checkpoint_files.remove(self.directory / str(step))

    def entries(self, step: int) -> dict[str, Any]:
        """The entries of a checkpoint beside its arrays: `iterator`, `fingerprints`, and (unless an
        older version wrote it) `step`, `metrics` and `config`.

        Raises:
          Exception: the checkpoint is damaged; the type depends on the damage.
        """
        import orbax.checkpoint as ocp

        args = ocp.args.Composite(data=ocp.args.JsonRestore())
        return unsealed(self._manager.restore(step, args=args)['data'])

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any], int]:
        """The newest checkpoint that is not damaged: its state with the shapes and shardings of
        `abstract`, the state of the data iterator, and its step.

        A line is printed for every newer, damaged checkpoint, which is also renamed to
        'STEP.damaged' unless `keep` is None.

        Raises:
          CheckpointError: there is no checkpoint, none can be read, or one is of another model or
            config.
        """
        (items, data), step = self._newest(_items(abstract))
        return TrainState(**items['model'], **items['optimizer']), data, step

    def restore_model(
        self, abstract: dict[str, Any], step: int | None
    ) -> tuple[dict[str, Any], int]:
        """Parameters and constants of the checkpoint of `step`, and its step; None takes the newest
        checkpoint that is not damaged.

        Raises:
          CheckpointError: as `restore`; no checkpoint of this step, or a damaged one.
        """
        if step is None:
            (items, _), step = self._newest({'model': abstract})
        else:
            items, _ = self._of_step(step, lambda: self._read(step, {'model': abstract}))
        return items['model'], step

    def confirm(self, step: int | None = None) -> None:
        """Compares the config with that of the checkpoint of `step`, without reading its arrays.
        None takes the newest checkpoint whose entries can be read.

        Raises:
          CheckpointError: there is no checkpoint of `step`, it is damaged, or a checkpoint has
            another config. Where the entries of all checkpoints are damaged, reading them says so.
        """
        if step is not None:
            self._check_entries(step, self._of_step(step, lambda: self.entries(step)))
            return
        for step in reversed(self._some_steps()):
            try:
                entries = self.entries(step)
            except Exception:  # damaged; reading its arrays will report it
                continue
            self._check_entries(step, entries)
            return

    def _some_steps(self):
        if not (steps := self.steps()):
            raise CheckpointError(f'{self.directory} holds no finished checkpoint')
        return steps

    def _of_step(self, step, read):
        """`read()`, with an error of one line where the checkpoint is missing or damaged."""
        if step not in (steps := self.steps()):
            raise CheckpointError(
                f'{self.directory} has no checkpoint of step {step}; there are {quoted(steps)}'
            )
        try:
            return read()
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f'checkpoint {step} of {self.directory} is damaged ({_short(error)})'
            ) from error

    def _newest(self, abstract) -> tuple[Any, int]:
        steps, damaged = self._some_steps(), {}
        for step in reversed(steps):
            try:
                found, problem = self._read(step, abstract), ''
            except CheckpointError:
                raise
            except Exception as error:  # damaged files make the readers raise anything
                found, problem = None, _short(error)
            if everywhere(not problem):
                for other, reason in damaged.items():
                    _say(
                        f'checkpoint {other} of {self.directory} is damaged ({reason}); using '
                        f'{step} instead'
                    )
                    self._set_aside(other)
                return found, step
            damaged[step] = problem or 'another process could not read it'
        # The damaged ones stay: without any checkpoint the same command would begin a new run.
        raise CheckpointError(
            f'{self.directory}: none of the checkpoints {quoted(steps)} can be read '
            f'({steps[-1]}: {damaged[steps[-1]]}); '
            'put back a copy of one, or train again under another name (--config.name=...)'
        )

    def _read(self, step, abstract):
        import orbax.checkpoint as ocp

        entries = self.entries(step)
        note = self._check_entries(step, entries)
        self._check_model(
            step,
            abstract['model'],
            known='config' in entries and self.saved is not None and not note,
        )
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        for name in items:
            if int(fingerprint(found[name])) != entries['fingerprints'][name]:
                raise ValueError(f'the arrays of {name!r} differ from those that were saved')
        if note:
            _say(note)
        return found, entries['iterator']

    def _check_entries(self, step, entries) -> str:
        """Raises CheckpointError for entries of another step or config. Returns a line to print
        where `--resume_changed` has replaced their config, otherwise ''.
        """
        which = f'checkpoint {step} of {self.directory}'
        if (own := entries.get('step', step)) != step:
            raise CheckpointError(
                f'{which} was saved at step {own}: rename its folder back to {own}, or move it away'
            )
        if self.saved is None or not (changed := other_config(entries, self.saved)):
            return ''
        if digest(entries['config']) in self.saved.earlier:
            return f'{which} was saved before --resume_changed: {changed}'
        raise CheckpointError(
            f'{which} was trained with another config than {stored.FILE} has: {changed}; write '
            f'the values of the checkpoint into {stored.FILE}, or continue with the new ones: '
            f'{program("train.py")} --resume_changed'
        )

    def _check_model(self, step, abstract, known):
        """Compares the shapes of the stored variables with those of `abstract`. A difference means
        damage if the config is `known` to be the same, and another model otherwise.
        """
        held = sizes_of(self._manager.item_metadata(step)['model'].tree)
        wanted = sizes_of(abstract)
        for name in sorted(held.keys() | wanted.keys()):
            if held.get(name) != wanted.get(name):
                there, here = held.get(name, 'absent'), wanted.get(name, 'absent')
                what = f'{name} is {there} in the checkpoint and {here} in the model'
                if known:
                    raise ValueError(what)
                raise CheckpointError(
                    f'checkpoint {step} of {self.directory} is of another model: {what}'
                )

    def _set_aside(self, step):
        if self._keep is None:
            return
        if jax.process_index() == 0:
            source = self.directory / str(step)
            source.rename(free_name(source))
        everywhere(True)  # no process lists the folder before it is renamed
        self._manager.reload()


def _items(state: TrainState) -> dict[str, Any]:
    """The state as the items of a checkpoint: the model can be read without the optimizer."""
    return {
        'model': {'params': state.params, 'constants': state.constants},
        'optimizer': {'opt_state': state.opt_state, 'step': state.step},
    }


def everywhere(good: bool) -> bool:
    """Whether `good` is true in every process; each process waits for all others."""
    if jax.process_count() == 1:
        return good
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(good)).all())


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(printable(line), flush=True)


def _short(error: BaseException) -> str:
    return printable(f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:160]}')
