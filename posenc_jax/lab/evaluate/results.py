"""The results of an evaluation: files and tables."""

import csv
import dataclasses
import fractions
import functools
import io
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from posenc_jax.base.memory import check_data
from posenc_jax.base.programs import printable
from posenc_jax.lab.evaluate import pictures, run_pictures
from posenc_jax.lab.evaluate.differences import Difference, differences
from posenc_jax.lab.evaluate.measurement import (
    BY_PLANE,
    Measurement,
    is_of_points,
    is_share,
    spread_name,
)
from posenc_jax.lab.evaluate.rows import IN_A_ROW, checked
from posenc_jax.lab.evaluate.series import (
    OWN,
    TABLES,
    Estimate,
    RunResult,
    Series,
    between,
    depths_of,
    group,
    of_tables,
    scored,
    unit,
)
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

    def write(self, directory: pathlib.Path) -> list[pathlib.Path]:
        """Writes results.json, results.csv, for text documents.csv, and the pictures; returns their
        paths.
        """
        return [
            *self.write_numbers(directory),
            *pictures.write(self.series, self.protocols, directory),
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
            for name in TABLES:
                row.setdefault(name)  # results of earlier versions do not have them
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


def tables(results: Results, console: Any = None) -> list[Any]:
    """Tables for the terminal: for each protocol the metric by length (and depth), or perplexity by
    position. Lengths that do not fit into the width of a `rich` console go into further tables.
    """
    made = []
    for protocol in results.protocols:
        if protocol in ('per_position', BY_PLANE):
            made.append(_position_table(results.series, protocol))
        else:
            lengths = {n for s in results.series for n, _ in s.estimates(protocol)}
            own = functools.partial(_length_table, results.series, protocol)
            made += _split(own, sorted(lengths), console)
    if found := of_tables(results.series):
        words = ', '.join(f'of {order}-grams {value:.2f}' for order, value in found.items())
        _caption(made[0], f'tables of the training text (Kneser-Ney) have here: {words}')
    if len({scored(results.runs, protocol) for protocol in results.protocols}) > 1:
        own = unit(results.protocols[-1])
        _caption(made[-1], f'each protocol scores {own} of its own: compare within a table')
    return made + _difference_tables(results.differences, console)


def _difference_tables(found, console):
    """For each protocol the differences from the first series, by length."""
    import rich.table

    made = []
    for protocol in dict.fromkeys(d.protocol for d in found):
        own = [d for d in found if d.protocol == protocol]
        lengths = sorted({d.length for d in own})

        def table_of(lengths, own=own, protocol=protocol):
            table = rich.table.Table(
                title=as_shown(f'nats a token above {shortened(own[0].against, 48)}, {protocol}'),
                title_justify='left',
            )
            table.add_column('encoding', overflow='fold', min_width=24)
            for length in lengths:
                table.add_column(str(length), justify='right')
            for label in dict.fromkeys(d.label for d in own):
                cells = {d.length: d for d in own if d.label == label}
                table.add_row(
                    as_shown(shortened(label, 96)),
                    *(
                        f'{d.value:+.3f}\n{d.low:+.3f} to {d.high:+.3f}' if d else ''
                        for d in map(cells.get, lengths)
                    ),
                )
            return table

        made += _split(table_of, lengths, console)
        spreads = dict.fromkeys(spread_name(d.groups, d.drawn) for d in own)
        _caption(made[-1], as_shown(f'{" or ".join(spreads)}, of both sides at once'))
    return made


def as_shown(text: str) -> str:
    r"""A text as a cell or a title of a table shows it: `printable`, and not as markup.

    Example:
      >>> as_shown('[red]\x1b[31m')
      '\\[red]\\x1b[31m'
    """
    import rich.markup

    return rich.markup.escape(printable(text))


def _caption(table, text):
    table.caption = f'{table.caption}\n{text}' if table.caption else text
    table.caption_justify = 'left'


def _split(table_of, lengths, console):
    """`table_of(lengths)`, or tables of some of the lengths each if that one is too wide."""
    table = table_of(lengths)
    if len(lengths) <= 1 or console is None or _width(table, console) <= console.width:
        return [table]
    half = (len(lengths) + 1) // 2
    return [
        table
        for some in (lengths[:half], lengths[half:])
        for table in _split(table_of, some, console)
    ]


def _width(table, console):
    unbounded = console.options.update(max_width=100_000)
    return console.measure(table, options=unbounded).maximum


def _length_table(series, protocol, lengths):
    import rich.table

    own = is_share(protocol) or is_of_points(protocol)
    title = protocol.replace('_', ' ') if own else f'perplexity, {protocol}'
    several = any(len(s.runs) > 1 for s in series)
    # The points of a picture are no sample, so most of what is measured of them has no interval.
    alone = [s for s in series if len(s.runs) == 1]
    known = dict.fromkeys(m.spread for s in alone for m in _measured(s, protocol) if m.spread)
    around = [*known, *['smallest - largest of several runs'] * several]
    title += f' ({", or ".join(around)})' if around else ''
    table = rich.table.Table(title=as_shown(title), title_justify='left')
    table.add_column(
        'encoding', overflow='fold', min_width=min(24, max(len(s.label) for s in series))
    )
    table.add_column('trained', justify='right')
    table.add_column(unit(protocol), justify='right')
    if depths_of(series):
        table.add_column('depth', justify='right')
    trained = {s.train_length for s in series}
    for length in lengths:
        table.add_column(
            str(length) + (f'\n{_multiple(length, *trained)}' if len(trained) == 1 else ''),
            justify='right',
        )
    for s in series:
        estimates = s.estimates(protocol)
        name = as_shown(shortened(s.label, 96)) + (
            f'\n{len(s.runs)} runs' if len(s.runs) > 1 else ''
        )
        first = [name, str(s.train_length), scored(s.runs, protocol)]
        for depth in depths_of([s]) or (None,):
            shown = ['' if depth is None else f'{depth:g}'] if depths_of(series) else []
            table.add_row(
                *first, *shown, *(_cell(estimates.get((n, depth)), protocol) for n in lengths)
            )
            first = ['', '', '']
    return table


def _multiple(length, trained):
    return (
        f'{fractions.Fraction(length, trained)}x' if length < trained else f'{length / trained:g}x'
    )


def _measured(series, protocol):
    return [m for run in series.runs for m in run.measurements if m.protocol == protocol]


def _position_table(series, protocol):
    import rich.table

    planes = protocol == BY_PLANE
    title = 'bit error rate by plane' if planes else 'perplexity by position'
    table = rich.table.Table(title=title, title_justify='left')
    table.add_column('plane, resolution' if planes else 'positions', justify='right')
    table.add_column(unit(protocol), justify='right')
    buckets: dict[tuple[int, int, int], list[int]] = {}
    for s in series:
        table.add_column(as_shown(shortened(s.label)), justify='right', overflow='fold')
        for m in s.runs[0].measurements:
            if m.protocol == protocol:
                buckets.setdefault((m.position_low, m.position_high, m.length), []).append(m.tokens)
    for (low, high, length), tokens in sorted(buckets.items()):
        found = [s.estimates(protocol).get((length, low)) for s in series]
        cells = [(f'{e.value:.5f}' if planes else f'{e.value:.2f}') if e else '' for e in found]
        place = f'{low}, {length}' if planes else f'{low}-{high - 1}'
        table.add_row(place, between(tokens), *cells)
    return table


def _cell(estimate: Estimate | None, protocol: str) -> str:
    if estimate is None:
        return ''
    largest = max(v for v in (estimate.value, estimate.high) if v is not None)
    digits = 2 if largest < 100 else 1 if largest < 1000 else 0
    if is_share(protocol):
        digits = 5 if protocol.startswith('bit_error') else 3
    spread = (
        '' if estimate.low is None else f'\n{estimate.low:.{digits}f}-{estimate.high:.{digits}f}'
    )
    return f'{estimate.value:.{digits}f}{spread}'
