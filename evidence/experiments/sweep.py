"""Sweeps: comparisons of runs that are trained, and evaluated together, as TOML files declare them.

A file has the `help` of its command and either one sweep, or a table for each group, whose name is
the first argument of the command. What stands beside the groups holds for all of them. A sweep has

  config      a file of `configs/`; by default 'quickstart'
  fields      fields of the config that all runs have
  runs        name -> encoding, or the fields in which the run differs from the others; its `config`
              is that of the run alone
  extended    'NAME | EXTENSION', evaluated in addition
  evaluation  folder within --workdir -> fields of an evaluation. Its `runs` are 'NAME' or
              'NAME | EXTENSION' and by default all runs and what is extended.
  then        a module of `evidence.experiments` that measures the trained runs in another way: its
              function `measure` gets (name, seed) -> directory, and the --workdir
"""

import argparse
import dataclasses
import pathlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evidence.experiments.runs import Run, evaluate_once, measure_once, refuse, train_runs
from posenc_jax.lab.files.command import Parser

Fields = Mapping[str, object]  # dotted names -> values
EVALUATED = 'eval.'  # fields of the evaluation, which training does not read


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One sweep; the module explains the attributes.

    Attributes:
      name: of the file, and of the group if there is one.
      help: what the command says of itself.
    """

    name: tuple[str, ...]
    help: str
    runs: Mapping[str, Fields]
    fields: Fields = dataclasses.field(default_factory=dict)
    config: str = 'quickstart'
    extended: Sequence[str] = ()
    evaluation: Mapping[str, Fields] = dataclasses.field(default_factory=dict)
    then: str = ''

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The values of the options; `arguments` are by default those of the program."""
        parser = Parser(' '.join(self.name), description=self.help)
        parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
        workdir = pathlib.Path('runs', *self.name)
        parser.add_argument('--workdir', type=pathlib.Path, default=workdir)
        parser.add_argument('--config', default=f'configs/{self.config}.py')
        parser.add_argument(
            '--only',
            nargs='+',
            choices=sorted(self.runs),
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

    def trained(self, options: argparse.Namespace) -> dict[tuple[str, int], Run]:
        """The runs by name and seed. What a run has of its own precedes the fields of all.

        Raises:
          SystemExit: --set names a field in which the runs differ.
        """
        differ = {'seed', *(field for own in self.runs.values() for field in own)}
        if wrong := sorted(differ & {_field(item) for item in options.set}):
            refuse(f'--set cannot give {", ".join(wrong)}: the runs of this sweep differ in it')
        more = [item for item in options.set if not item.startswith(EVALUATED)]
        return {
            (name, seed): Run(
                pathlib.Path(options.workdir, f'{name}_{seed}'),
                options.config,
                {**self.fields, **self.runs[name], 'seed': seed},
                more,
            )
            for seed in options.seeds
            for name in options.only or self.runs
        }

    def evaluations(self, options: argparse.Namespace) -> dict[str, dict[str, object]]:
        """Folder within --workdir -> fields of its evaluation, where --set precedes the sweep.

        Raises:
          SystemExit: --set gives a field of eval that does not exist, or a value of another type.
        """
        asked = [item for item in options.set if item.startswith(EVALUATED)]
        if asked:
            try:
                Run(pathlib.Path(options.workdir), options.config, {}, asked).asked()
            except (ValueError, OSError) as error:
                refuse(error)
        own = dict(item.split('=', 1) for item in asked)
        return {folder: {**fields, **own} for folder, fields in self.evaluation.items()}

    def evaluated(self, fields: dict[str, Any], runs: Mapping[tuple[str, int], str]) -> list[str]:
        """What an evaluation reads; its `runs` are removed from the fields."""
        names = fields.pop('runs', None) or (*self.runs, *self.extended)
        of = lambda key: [item for item in names if item.split(' | ')[0] == key]
        return [
            item.replace(name, directory, 1)
            for (name, _), directory in runs.items()
            for item in of(name)
        ]

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """The command line: trains every run with every seed, and evaluates all of them."""
        options = self.parse(arguments)
        evaluations = self.evaluations(options)  # before anything is trained
        trained = train_runs(self.trained(options))
        for folder, fields in evaluations.items():
            runs = self.evaluated(fields, trained)
            evaluate_once(runs, options.workdir / folder, fields)
        if self.then:
            measure_once(self.then, trained, options.workdir)


def _field(setting: str) -> str:
    return setting.split('=', 1)[0]


def flat(table: Mapping[str, Any], before: str = '') -> Iterator[tuple[str, object]]:
    """Dotted names and values of the fields of a table; lists become tuples.

    Example:
      >>> dict(flat({'train': {'steps': 3}, 'pattern': ['rope()']}))
      {'train.steps': 3, 'pattern': ('rope()',)}
    """
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f'{before}{name}.')
        else:
            yield before + name, tuple(value) if isinstance(value, list) else value


def _fields(own: Any) -> dict[str, object]:
    return {'encoding': own} if isinstance(own, str) else dict(flat(own))


def _made(name: tuple[str, ...], table: dict[str, Any]) -> Sweep:
    """A sweep from its table."""
    try:
        table = {**table, 'fields': _fields(table.get('fields', {}))}
        for several in ('runs', 'evaluation'):
            named = table.get(several, {}).items()
            table[several] = {own: _fields(fields) for own, fields in named}
        return Sweep(name, **table)
    except TypeError as error:
        raise ValueError(f'{" ".join(name)} is no sweep: {error}') from None


def read(name: str) -> dict[str, Sweep]:
    """Group -> sweep of a file of `evidence/experiments/`; the only sweep of a file is that of ''.
    There are none for a name without a file.

    Raises:
      ValueError: the file is no TOML, or a sweep has other names.
    """
    path = pathlib.Path(__file__).with_name(f'{name}.toml')
    if not path.is_file():
        return {}
    content = tomllib.loads(path.read_text(encoding='utf-8'))
    if 'runs' in content:
        return {'': _made((name,), content)}
    common = {
        field: content.pop(field) for field in ('help', 'config', 'fields') if field in content
    }
    shared = common.pop('fields', {})
    return {
        group: _made((name, group), {**common, **own, 'fields': merged(shared, own)})
        for group, own in content.items()
    }


def merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of all groups with those of one."""
    return {**dict(flat(shared)), **dict(flat(own.get('fields', {})))}
