"""Functions for sweeps: they train runs that do not exist, keep results, and evaluate all runs."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from ml_collections import ConfigDict

from posenc_jax.base.programs import WRONG_INPUT
from posenc_jax.lab.config import config_file
from posenc_jax.lab.config.overrides import replaced
from posenc_jax.lab.files import disk
from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.files.safe import finished_steps
from posenc_jax.lab.runs import entries, initial, stored
from posenc_jax.lab.runs.run import imported

Key = TypeVar('Key')
TRAIN, EVALUATE = ('-m', 'posenc_jax.lab.cli.train'), ('-m', 'posenc_jax.lab.cli.eval')
EVALUATED = 'eval.'  # fields of the evaluation, which training does not read


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


def call(*command: str) -> None:
    """Runs a Python program of this repository. If it fails, it has printed why, and this program
    ends with its status.
    """
    status = subprocess.run([sys.executable, *command]).returncode
    name = command[1] if command[0] == '-m' else command[0]
    if status:
        sys.exit(
            status
            if status > 0
            else f'{name} was ended by signal {-status}; the same command continues'
        )


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
    """Prints why a sweep cannot go on, and ends it with status 2."""
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
            settings = [f'--config.{name}={value}' for name, value in run.overrides.items()]
            call(*TRAIN, f'--config={run.config}', *settings)
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


def evaluate_runs(runs: Iterable[str], out: pathlib.Path, settings: Iterable[str] = ()) -> None:
    """Evaluates runs together, by `eval.py`.

    Args:
      runs: run directories, or 'DIRECTORY | EXTENSION'.
      out: the folder of the results.
      settings: fields of the evaluation, as 'NAME=VALUE'.
    """
    call(
        *EVALUATE,
        *(f'--run={run}' for run in runs),
        *(f'--config.{s}' for s in settings),
        f'--out={out}',
    )


def evaluate_once(runs: Sequence[str], out: pathlib.Path, settings: Sequence[str]) -> None:
    """Evaluates runs together, unless the folder holds the results of the same evaluation."""
    # Names within the --workdir, so that results stay valid where the folder is moved.
    named = [run.removeprefix(f'{out.parent}/') for run in runs]
    configs = [pathlib.Path(run.partition(' | ')[0], stored.FILE) for run in runs]
    trained = [entries.digest(path.read_text()) if path.is_file() else '' for path in configs]
    asked = {'runs': named, 'trained': trained, 'settings': list(settings)}
    path = out / 'asked.json'
    with contextlib.suppress(FileNotFoundError, ValueError):
        if json.loads(path.read_text()) == asked and (out / 'results.json').is_file():
            print(f'{out} holds the results of this evaluation already', flush=True)
            return
    path.unlink(missing_ok=True)
    evaluate_runs(runs, out, settings)
    with full_disk_in_one_line():
        disk.write(path, json.dumps(asked) + '\n')


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A comparison of runs that train.py trains and eval.py evaluates together.

    Attributes:
      documentation: docstring of its module; the help shows the first line.
      encodings: name of a run -> encoding string, or dotted names -> values of all fields in which
        the run differs from others.
      extended: (name of a run, extension), evaluated in addition.
      workdir: default of --workdir.
      config: default of --config.
      settings: fields of the config for training, as 'NAME=VALUE'.
      evaluation: folder within --workdir -> fields of an evaluation, as 'NAME=VALUE'.
    """

    documentation: str
    encodings: Mapping[str, str | Mapping[str, object]]
    extended: Sequence[tuple[str, str]] = ()
    workdir: str = 'runs'
    config: str = 'configs/quickstart.py'
    settings: Sequence[str] = ()
    evaluation: Mapping[str, Sequence[str]] = dataclasses.field(
        default_factory=lambda: {'comparison': ()}
    )

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The values of the options; `arguments` are by default those of the program."""
        parser = Parser(description=self.documentation.splitlines()[0])
        parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
        parser.add_argument('--workdir', type=pathlib.Path, default=self.workdir)
        parser.add_argument('--config', default=self.config)
        parser.add_argument(
            '--only',
            nargs='+',
            choices=sorted(self.encodings),
            metavar='NAME',
            help='train and evaluate these alone',
        )
        parser.add_argument(
            '--set',
            nargs='*',
            action='extend',
            default=[],
            metavar='FIELD=VALUE',
            help='more config fields, e.g. train.steps=200; those of eval are for the evaluation',
        )
        return parser.parse_args(arguments)

    def runs(self, options: argparse.Namespace) -> dict[tuple[str, int], Run]:
        """The runs by name and seed. What a run has of its own precedes the settings of all.

        Raises:
          SystemExit: --set names a field in which the runs differ.
        """
        own = {
            name: {'encoding': fields} if isinstance(fields, str) else dict(fields)
            for name, fields in self.encodings.items()
        }
        differ = {'seed', *(field for fields in own.values() for field in fields)}
        if wrong := sorted(differ & {_field(item) for item in options.set}):
            refuse(f'--set cannot give {", ".join(wrong)}: the runs of this sweep differ in it')
        trained = [item for item in options.set if not item.startswith(EVALUATED)]
        made = {}
        for seed in options.seeds:
            for name in options.only or own:
                more = [item for item in self.settings if _field(item) not in own[name]]
                directory = pathlib.Path(options.workdir, f'{name}_{seed}')
                fields = {**own[name], 'seed': seed}
                made[name, seed] = Run(directory, options.config, fields, [*more, *trained])
        return made

    def evaluations(self, options: argparse.Namespace) -> dict[str, list[str]]:
        """Folder within --workdir -> fields of its evaluation, where --set precedes the sweep.

        Raises:
          SystemExit: --set gives a field of eval that does not exist, or a value of another type.
        """
        asked = [item for item in options.set if item.startswith(EVALUATED)]
        own = {_field(item) for item in asked}
        if asked:
            try:
                Run(pathlib.Path(options.workdir), options.config, {}, asked).asked()
            except (ValueError, OSError) as error:
                refuse(error)
        return {
            folder: [*(item for item in fields if _field(item) not in own), *asked]
            for folder, fields in self.evaluation.items()
        }

    def main(self, arguments: Sequence[str] | None = None) -> dict[tuple[str, int], str]:
        """The command line: trains every encoding with every seed, and evaluates all runs. Returns
        their directories by name and seed.
        """
        options = self.parse(arguments)
        evaluations = self.evaluations(options)  # before anything is trained
        evaluated, trained = [], train_runs(self.runs(options))
        for (name, _), run in trained.items():
            evaluated += [run, *(f'{run} | {ext}' for which, ext in self.extended if which == name)]
        for folder, fields in evaluations.items():
            evaluate_once(list(map(str, evaluated)), pathlib.Path(options.workdir, folder), fields)
        return trained


def _field(setting: str) -> str:
    return setting.split('=', 1)[0]


def main(sweeps: Mapping[str, Sweep]) -> None:
    """The command line of a module with several sweeps, whose first argument names one."""
    if len(sys.argv) < 2 or sys.argv[1] not in sweeps:
        Parser(pathlib.Path(sys.argv[0]).stem).error(f'name a group first: {", ".join(sweeps)}')
    sweeps[sys.argv.pop(1)].main()
