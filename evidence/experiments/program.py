"""Experiments that are programs of their own: their options, the parts they keep, and the table."""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from evidence.experiments.runs import kept
from evidence.experiments.tables import report
from posenc_jax.lab.files.command import Parser

Row = tuple[str, str, float, int, float]  # panel, variant, place x, seed, value
Found = Iterable[tuple[str, str, float, float]]  # a row without its seed


@dataclasses.dataclass(frozen=True)
class Program:
    """The command line of an experiment. Every one has --seeds and --workdir.

    Attributes:
      module: its dotted name.
      documentation: its docstring; the help shows the first line.
      rows: from the options to the rows of the table, see `each`; None if it writes its own tables.
      table: the words of the table, see `tables.report`.
      options: name of an option -> its default, which says its type, or (default, help). Whole
        numbers are at least 1. A list takes several values, and an empty one FIELD=VALUE. None
        stands for a text.
      group: the names of which the first argument is one, if there is such an argument.
      choose: name of an option -> the names among which it chooses; by default all of them.
      folder: of the table, within --workdir.
      default_seeds: those that are measured if none are given.
    """

    module: str
    documentation: str
    rows: Callable[[argparse.Namespace], Iterable[Row] | None]
    table: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: Iterable[str] = ()
    choose: Mapping[str, Iterable[str]] = dataclasses.field(default_factory=dict)
    default_seeds: Sequence[int] = (0, 1, 2)
    folder: str = ''

    def parser(self) -> Parser:
        """The parser of its command line."""
        name = self.module.rpartition('.')[2]
        parser = Parser(name, description=self.documentation.splitlines()[0])
        parser.add_argument('--seeds', type=int, nargs='+', default=list(self.default_seeds))
        if self.group:
            parser.add_argument('group', choices=list(self.group), metavar='GROUP')
        parser.add_choices(self.choose)
        parser.add_defaults(self.options)
        parser.add_argument('--workdir', type=pathlib.Path, default=pathlib.Path('runs', name))
        return parser

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The options. Wrong ones, and a directory that cannot be made, end the program with one
        line.
        """
        parser = self.parser()
        options = parser.parse_args(arguments)
        if self.group and options.workdir == parser.get_default('workdir'):
            options.workdir /= options.group
        for name, given in vars(options).items():
            if given == parser.get_default(name):
                continue
            least = 0 if name == 'seeds' else 1
            for value in given if isinstance(given, list) else [given]:
                if type(value) is int and value < least:
                    option = name.replace('_', '-') if name not in self.options else name
                    parser.error(f'--{option} must be at least {least}, got {value}')
        try:
            options.workdir.mkdir(parents=True, exist_ok=True)  # before hours of training
        except OSError as error:
            parser.error(f'--workdir must be a directory that can be made: {error}')
        return options

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Measures, prints the table and writes it; `arguments` are by default the program's."""
        options = self.parse(arguments)
        rows = self.rows(options)
        if rows is not None:
            report(rows, options.workdir / self.folder, **self.table)


def each(
    measure: Callable[..., Found], *choose: str
) -> Callable[[argparse.Namespace], Iterator[Row]]:
    """The rows of a program that measures part by part. The numbers of a part are kept in
    WORKDIR, so that a program that was stopped goes on where it was; with other options it ends
    with the differences.

    Args:
      measure: from a name of each of the options `choose`, the seed and all options to what was
        found.
      choose: options of the program.
    """

    def rows(options: argparse.Namespace) -> Iterator[Row]:
        no_part = {'seeds', 'workdir', *choose}
        common = {name: own for name, own in vars(options).items() if name not in no_part}
        for *names, seed in itertools.product(
            *(getattr(options, c) for c in choose), options.seeds
        ):
            part = ', '.join([*names, f'seed {seed}'])
            path = options.workdir / (re.sub(r'[^\w.-]+', '_', part) + '.json')
            make = functools.partial(_listed, measure, *names, seed, options)
            found = kept(path, {**common, 'part': part}, make)
            print(f'{part}:', *(f'{value:.4g}' for *_, value in found), flush=True)
            yield from ((panel, variant, x, seed, value) for panel, variant, x, value in found)

    return rows


def _listed(measure: Callable[..., Found], *of: Any) -> list:
    return list(measure(*of))
