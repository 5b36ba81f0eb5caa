"""Functions of experiments: they train runs that do not exist, keep results, and evaluate runs."""

import contextlib
import dataclasses
import importlib
import inspect
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax
from absl import logging
from ml_collections import ConfigDict

from posenc_jax.base.programs import WRONG_INPUT
from posenc_jax.lab.config import config_file
from posenc_jax.lab.config.overrides import replaced
from posenc_jax.lab.evaluate.results import print_tables
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.files import disk, paths
from posenc_jax.lab.files.checkpoint_files import check_folder
from posenc_jax.lab.files.command import in_line
from posenc_jax.lab.files.saved_steps import finished_steps
from posenc_jax.lab.longrope_search.evolution import Sizes
from posenc_jax.lab.longrope_search.search import search
from posenc_jax.lab.runs import entries, initial, stored
from posenc_jax.lab.runs.run import imported
from posenc_jax.lab.train.loop import NonFiniteError, train

Key = TypeVar('Key')
ERRORS = (ValueError, OSError, ImportError, NonFiniteError)  # of training and evaluation


@contextlib.contextmanager
def full_disk_in_one_line() -> Iterator[None]:
    """Ends the program with one line and status 2 when the disk is full. A context manager, also
    usable as a decorator.
    """
    try:
        yield
    except disk.DiskFullError as error:
        print(
            f'{error}; trained runs are kept, and the same command continues once there is room',
            file=sys.stderr,
        )
        sys.exit(2)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Attributes:
      directory: the run directory.
      config: path of the config file.
      fields: dotted names -> values of fields that differ from the file.
      more: further fields, as 'NAME=VALUE'.
    """

    directory: pathlib.Path
    config: str
    fields: Mapping[str, object]
    more: Sequence[str] = ()

    @property
    def overrides(self) -> dict[str, object]:
        """The fields in which the run differs from its config file.

        Raises:
          ValueError: an item of `more` does not have the form 'NAME=VALUE'.
        """
        if wrong := [item for item in self.more if '=' not in item]:
            raise ValueError(f'expected FIELD=VALUE, e.g. train.steps=200, got {wrong[0]!r}')
        own = {
            'workdir': str(self.directory.parent),
            'name': self.directory.name,
            'eval.at_end': False,
        }
        return {**self.fields, **own, **dict(item.split('=', 1) for item in self.more)}

    def asked(self) -> ConfigDict:
        """The config of the run, before `init.source` fills in its fields.

        Raises:
          ValueError, OSError: a field does not exist or has another type, or a file does not exist.
        """
        return imported(replaced(config_file.read(self.config), self.overrides))

    def complete(self) -> bool:
        """Whether the newest checkpoint is that of the last step."""
        saved = finished_steps(self.directory)
        return (
            bool(saved) and saved[-1] == stored.from_json(self.directory / stored.FILE).train.steps
        )

    def differences(self) -> list[str]:
        """Lines such as 'train.lr: 0.001 -> 0.01', from the existing run to the one that the sweep
        asks for; [] if no run exists.

        Raises:
          ValueError, OSError: as `asked`; the config of the existing run cannot be read, or the run
            continues a source that does not exist.
        """
        config = self.asked()
        if not finished_steps(self.directory):
            return []
        source = initial.open_initial(config.init.source, config.init.extend)
        return stored.differences(
            stored.from_json(self.directory / stored.FILE), initial.resolve(config, source)
        )


def refuse(reason: object) -> NoReturn:
    """Prints why an experiment cannot go on, and ends it with status 2."""
    print(f'{pathlib.Path(sys.argv[0]).stem}: {reason}', file=sys.stderr, flush=True)
    sys.exit(WRONG_INPUT)


def train_runs(runs: Mapping[Key, Run]) -> dict[Key, str]:
    """Trains the runs that are not complete, without evaluating them. Returns the directories of
    all runs.

    If a run with other settings has one of these names, the program ends with the differences
    before anything is trained. The program also ends if a run is stopped before its last step; the
    same command then continues.
    """
    found = []
    for run in runs.values():
        try:
            lines = run.differences()
        except (ValueError, OSError) as error:
            refuse(f'{run.directory}: {error}')
        if lines:
            found += [
                f'{run.directory} was trained with other settings (there -> here):',
                *(f'  {line}' for line in lines),
            ]
    if found:
        refuse('\n'.join([*found, 'give another --workdir, or move these runs away']))
    for run in runs.values():
        if not run.complete():
            logging.set_verbosity(logging.WARNING)
            try:
                train(run.asked())
            except ERRORS as error:
                refuse(in_line(error))
            jax.clear_caches()  # the next run compiles its own programs
            if not run.complete():
                sys.exit(
                    f'{run.directory} was stopped before its last step; the same command continues'
                )
    return {key: str(run.directory) for key, run in runs.items()}


def kept(path: pathlib.Path, settings: Mapping[str, object], make: Callable[[], Any]) -> Any:
    """The value of `make()`, as JSON holds it. It is read from the file if that exists, and
    otherwise computed and written.

    If the file was made with other settings, the program ends with the differences.
    """
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            content = json.loads(path.read_text())
            there, value = content['settings'], content['value']
            names = sorted(there.keys() | settings.keys())
        except (ValueError, LookupError, TypeError, AttributeError):
            refuse(f'{path} does not say with which settings it was made; move it away')
        lines = [
            f'  {n}: {there.get(n)!r} -> {settings.get(n)!r}'
            for n in names
            if there.get(n) != settings.get(n)
        ]
        if lines:
            refuse(
                '\n'.join(
                    [
                        f'{path} was made with other settings (there -> here):',
                        *lines,
                        'move it away',
                    ]
                )
            )
        return value
    value = json.loads(json.dumps(make()))
    with full_disk_in_one_line():
        disk.write(path, json.dumps({'settings': settings, 'value': value}) + '\n')
    return value


def evaluate_runs(
    runs: Sequence[str], out: pathlib.Path, settings: Mapping[str, object] | None = None
) -> None:
    """Evaluates runs together, prints the tables and writes the results.

    Args:
      runs: run directories, or 'DIRECTORY | EXTENSION'.
      out: the folder of the results.
      settings: dotted names -> values of the fields of the evaluation.
    """
    try:
        check_folder(out)
        found = evaluate(runs, settings, after=lambda found: found.write_numbers(out))
        print_tables(found)
        for path in found.write(out):
            print(path)
    except ERRORS as error:
        refuse(in_line(error))
    jax.clear_caches()


def evaluate_once(runs: Sequence[str], out: pathlib.Path, settings: Mapping[str, object]) -> None:
    """Evaluates runs together, unless the folder holds the results of the same evaluation."""
    # Names within the --workdir, so that results stay valid where the folder is moved.
    named = [run.removeprefix(f'{out.parent}/') for run in runs]
    directories = [run.partition(' | ')[0] for run in runs]
    asked = {'runs': named, 'trained': _trained(directories), 'settings': settings}
    _once(out, 'results.json', asked, lambda: evaluate_runs(runs, out, settings))


def measure_once(name: str, trained: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Measures trained runs with a module of `evidence.experiments`, unless the --workdir holds
    what the same module measured of the same runs. To measure again, remove `WORKDIR/name`.
    """
    module = importlib.import_module(f'evidence.experiments.{name}')
    runs = {f'{key}_{seed}': directory for (key, seed), directory in trained.items()}
    code = entries.digest(inspect.getsource(module))
    asked = {'runs': list(runs), 'trained': _trained(runs.values()), 'code': code}
    _once(workdir / name, '', asked, lambda: module.measure(trained, workdir))


def _trained(directories: Iterable[str]) -> list[str]:
    """A digest of the config of each run; '' for what is no run."""
    configs = [pathlib.Path(directory, stored.FILE) for directory in directories]
    return [entries.digest(path.read_text()) if path.is_file() else '' for path in configs]


def _once(out: pathlib.Path, result: str, asked: Mapping[str, Any], work: Callable[[], None]):
    """Does some work, unless `out` has its result and a file that says that the same was asked."""
    asked, path = json.loads(json.dumps(asked)), out / 'asked.json'
    with contextlib.suppress(FileNotFoundError, ValueError):
        if json.loads(path.read_text()) == asked and (out / result).exists():
            print(f'{out} holds the results of this evaluation already', flush=True)
            return
    path.unlink(missing_ok=True)
    work()
    with full_disk_in_one_line():
        disk.write(path, json.dumps(asked) + '\n')


def searched(run: str, length: int, sizes: Sizes, **more: Any) -> dict[str, Any]:
    """What a search of the factors of LongRoPE for a run finds, as in its file; the field `spec` is
    the extension. A search that was made is read, and one that was stopped continues.

    Args:
      run: a run directory, or 'DIRECTORY | EXTENSION'.
      length: the length for which factors are searched.
      sizes: of the search.
      more: further arguments of `posenc_jax.lab.longrope_search.search.search`.
    """
    if 'out' in more:
        more['out'] = paths.path(str(more['out']))
    try:
        found = search(run, length, sizes=sizes, **more)
    except ERRORS as error:
        refuse(in_line(error))
    jax.clear_caches()
    return json.loads(found.read_text())
