"""The results of an evaluation, and their files."""

import csv
import dataclasses
import functools
import io
import json
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from posenc_jax.base.memory import check_data
from posenc_jax.base.programs import printable
from posenc_jax.lab.evaluate import difference_pictures, pictures, redraw, run_pictures
from posenc_jax.lab.evaluate.differences import Difference, differences
from posenc_jax.lab.evaluate.measurement import Measurement
from posenc_jax.lab.evaluate.rows import IN_A_ROW, checked
from posenc_jax.lab.evaluate.series import LATER, OWN, RunResult, Series, group
from posenc_jax.lab.evaluate.tables import tables
from posenc_jax.lab.files import disk, paths
from posenc_jax.lab.runs import stored
from posenc_jax.protocol.errors import quoted, shortened

DOCUMENTS = 'documents.csv'
PARSED = 16  # bytes of memory for a byte of results, while they are read


@dataclasses.dataclass(frozen=True)
class Results:
    """Runs that are compared, the date (ISO 8601, UTC) and the versions of the packages."""

    runs: tuple[RunResult, ...]
    date: str
    versions: dict[str, str]

    @property
    def series(self) -> tuple[Series, ...]:
        return group(self.runs)

    @property
    def protocols(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(m.protocol for run in self.runs for m in run.measurements))

    @functools.cached_property
    def differences(self) -> tuple[Difference, ...]:
        """What all series lose on the same tokens more than the first one."""
        return differences(self.series, self.protocols)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict for each measurement, with what is known of its run."""
        versions = {f'{name}_version': version for name, version in self.versions.items()}
        return [
            {
                **{name: getattr(run, name) for name in OWN},
                **{name: getattr(measurement, name) for name in IN_A_ROW},
                'date': self.date,
                **versions,
            }
            for run in self.runs
            for measurement in run.measurements
        ]

    def write(self, directory: pathlib.Path, evaluation: str = '') -> list[pathlib.Path]:
        """Writes results.json, results.csv, for text documents.csv, the pictures, and beside
        them pictures.md, which says of each what draws it again; returns their paths.

        Args:
          directory: the folder.
          evaluation: the command that evaluated; '' for one that names the runs alone.
        """
        if not evaluation:
            names = (f'{run.run} | {run.extend}'.removesuffix(' | ') for run in self.runs)
            runs = (f'--run={name}' for name in names)
            evaluation = f'{redraw.evaluator()} {shlex.join([*runs, f"--out={directory}"])}'
        drawn = self.write_pictures(directory)
        page = [redraw.write(drawn, evaluation)] if drawn else []
        return [*self.write_numbers(directory), *drawn, *page]

    def write_pictures(self, directory: pathlib.Path) -> list[pathlib.Path]:
        """Writes the pictures; returns their paths. There are none of single runs in results that
        were read again.
        """
        return [
            *pictures.write(self.series, self.protocols, directory),
            *difference_pictures.write(self.differences, directory),
            *run_pictures.write(self.runs, directory),
        ]

    def write_numbers(self, directory: pathlib.Path) -> list[pathlib.Path]:
        """Writes results.json, results.csv and, for text, documents.csv; returns their paths."""
        rows = self.rows()
        as_json, as_csv = directory / 'results.json', directory / 'results.csv'
        documents = [
            {'row': number, 'drawn': m.drawn, 'number': group, 'tokens': tokens, 'nll': nll}
            for number, m in enumerate(m for run in self.runs for m in run.measurements)
            for group, tokens, nll in m.groups
        ]
        # JSON has no infinity: a perplexity that overflows is written as null, beside its nll.
        finite = [
            {k: None if v in (float('inf'), float('-inf')) else v for k, v in row.items()}
            for row in rows
        ]
        lengths = sorted({row['length'] for row in rows})
        settings = [run.settings for run in self.runs]
        content = {
            'date': self.date,
            'versions': self.versions,
            'lengths': lengths,
            'settings': settings,
            'results': finite,
            'differences': [dataclasses.asdict(found) for found in self.differences],
            'documents': DOCUMENTS if documents else None,
        }
        if documents:
            _write_csv(directory / DOCUMENTS, documents)
        disk.write(as_json, json.dumps(content, indent=1, allow_nan=False) + '\n')
        _write_csv(as_csv, rows)
        return [as_json, as_csv, *([directory / DOCUMENTS] if documents else [])]


def _write_csv(path, rows):
    table = io.StringIO(newline='')
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    disk.write(path, table.getvalue())


def read(directory: str | pathlib.Path) -> tuple[RunResult, ...]:
    """Reads the runs of an evaluation that `Results.write` wrote.

    Args:
      directory: the folder that holds results.json.

    Raises:
      FileNotFoundError: there is no results.json.
      ValueError: the file was not written by an evaluation, or is too large for
        `base.memory.check_data`.
    """
    path = paths.path(directory) / 'results.json'
    with paths.reached(path):
        found = path.is_file()
    if not found:
        raise FileNotFoundError(
            f'{printable(directory)} holds no results.json of an earlier evaluation'
        )
    for file in (path, path.parent / DOCUMENTS):
        size = paths.size(file) if file.is_file() else 0
        check_data(f'{printable(file)} of {size} bytes', PARSED * size, 'compare fewer results')
    try:
        content = json.loads(path.read_text())
        groups = read_groups(path.parent, content)
        runs: dict[tuple, list[Measurement]] = {}
        for number, row in enumerate(content['results']):
            row = checked(row)
            measurement = Measurement(
                **{name: row[name] for name in IN_A_ROW if name in row},
                groups=tuple(groups.get(number, ())),
            )
            row = {**LATER, **row}
            runs.setdefault(tuple(row[name] for name in OWN), []).append(measurement)
        settings = [
            {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in stored.unfree(fields).items()
            }
            for fields in content.get('settings') or [{} for _ in runs]
        ]
        return tuple(
            RunResult(**dict(zip(OWN, key)), settings=fields, measurements=tuple(found))
            for (key, found), fields in zip(runs.items(), settings, strict=True)
        )
    except _NOT_RESULTS as error:
        raise ValueError(
            f'{printable(path)} was not written by an evaluation: {shortened(repr(error), 200)}'
        ) from None


_NOT_RESULTS = (
    *(KeyError, TypeError, ValueError, AttributeError),
    *(OverflowError, RecursionError, csv.Error),
)


def read_groups(
    directory: pathlib.Path, content: Mapping[str, Any]
) -> dict[int, list[tuple[int, int, float]]]:
    """Number of a row of results.json -> `Measurement.groups`; {} for results without such numbers,
    as those of earlier versions are.

    Args:
      directory: the folder of the results.
      content: what its results.json holds.
    """
    groups: dict[int, list[tuple[int, int, float]]] = {}
    if content.get('documents'):
        if content['documents'] != DOCUMENTS or not (directory / DOCUMENTS).is_file():
            raise ValueError(f'documents is {quoted(content["documents"])}, not a file {DOCUMENTS}')
        for row in csv.DictReader((directory / DOCUMENTS).read_text().splitlines()):
            group = int(row['number']), int(row['tokens']), float(row['nll'])
            groups.setdefault(int(row['row']), []).append(group)
    return groups


def print_tables(results: Results) -> None:
    """Prints the tables to standard output. A file or a pipe has no width; the tables are then 120
    columns wide.
    """
    import rich.console

    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    for table in tables(results, console):
        console.print(table)
