"""What an experiment wrote below its --workdir, as rows of numbers that a claim reads."""

import copy
import csv
import io
import itertools
import json
import math
import pathlib
import re
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from posenc_jax.lab.evaluate.measurement import FEWEST
from posenc_jax.lab.evaluate.results import read_groups
from posenc_jax.lab.files import disk

Document = tuple[str, str, int]  # data set, split, number
Numbers = dict[int, Any]  # seed -> a number, or a list of numbers


# Columns of the tables that the repository keeps: names, and numbers.
NAMES = ('folder', 'panel', 'name', 'task', 'protocol', 'metric')
NUMBERS = ('seed', 'length', 'depth', 'x', 'value', 'nll', 'token_accuracy')


class MissingResultError(Exception):
    """The results of a sweep lack what a measure reads."""


class ResultRows:
    """The numbers that a sweep wrote below its --workdir.

    Attributes:
      rows: one dictionary for each number, with its `seed`, its `value` and the `name` of its run
        without the seed. Numbers of `eval.py` also have the names of `results.json` and the
        `folder` of the evaluation, and `documents` where their losses are known: data set, split
        and number -> (tokens, sum of the loss). Numbers of a sweep that evaluates by itself have
        the `panel` of its table and the place `x` in it.
      read: the rows whose numbers `values` has returned.
    """

    def __init__(self, directory: pathlib.Path):
        self.rows: list[dict[str, Any]] = []
        self.read: list[dict[str, Any]] = []
        for path in sorted(directory.glob('*/results.json')):
            content = json.loads(path.read_text())
            groups = read_groups(path.parent, content)
            for place, row in enumerate(content['results']):
                name = pathlib.PurePath(row['run']).name.rsplit('_', 1)[0]
                if row.get('extend'):
                    name += ' | ' + row['extend']
                text = row.get('dataset'), row.get('split')
                known = groups.get(place, []) if row.get('drawn') == 'documents' else []
                losses = {(*text, n): (tokens, loss) for n, tokens, loss in known}
                own = {'folder': path.parent.name, 'name': name, 'documents': losses}
                self.rows.append({**row, **own})
        for path in sorted([*directory.glob('results.csv'), *directory.glob('*/results.csv')]):
            if not path.with_suffix('.json').exists():
                with path.open(newline='') as file:
                    for panel, name, x, seed, value in list(csv.reader(file))[1:]:
                        own = {'folder': path.parent.name, 'panel': panel, 'name': name}
                        self.rows.append(
                            {**own, 'x': float(x), 'seed': int(seed), 'value': float(value)}
                        )

    def values(
        self,
        run: Any = '',
        field: str = 'value',
        *,
        matches: str = '',
        every: bool = False,
        chosen: str = '',
        **where: Any,
    ) -> Numbers:
        """Seed -> number of a run, e.g. `values('rope', length=128)`.

        Args:
          run: its name without the seed; with ' | EXTENSION' if it was extended for the evaluation.
          field: which number of the row, e.g. 'nll'.
          matches: a regular expression of the whole name, in the place of `run`.
          every: there are several rows, and all pairs (x, number) are returned, by x.
          chosen: 'largest' or 'least': there are several runs or places x, and the one is taken
            whose mean over the seeds is the largest or the least.
          where: further fields that the row must have. If a field or `run` is a list, a list of
            numbers is returned, one for each combination.

        Raises:
          MissingResultError: there is no such row, or there are several for one seed.
        """
        asked = {'run': run, **where}
        if lists := [name for name, value in asked.items() if isinstance(value, list)]:
            more = {'field': field, 'matches': matches, 'every': every, 'chosen': chosen}
            parts = [
                self.values(**{**asked, **dict(zip(lists, own)), **more})
                for own in itertools.product(*(asked[name] for name in lists))
            ]
            return together(parts)
        rows = self._rows(run, matches, where)
        if missing := [row for row in rows if row.get(field) is None]:
            raise MissingResultError(f'the results of {missing[0]["name"]!r} have no {field}')
        self.read += rows
        found: dict[int, list[tuple[float, float]]] = {}
        for row in sorted(rows, key=lambda row: row.get('x', 0.0)) if every else rows:
            found.setdefault(row['seed'], []).append((row.get('x', 0.0), row[field]))
        if every:
            return found
        if chosen:
            groups: dict[Any, Numbers] = {}
            for row in rows:
                groups.setdefault((row['name'], row.get('x')), {})[row['seed']] = row[field]
            best = max if chosen == 'largest' else min
            return best(groups.values(), key=lambda own: statistics.fmean(own.values()))
        if any(len(pairs) > 1 for pairs in found.values()):
            raise MissingResultError(f'several results of {run or matches!r} with {where}')
        return {seed: value for seed, ((_, value),) in found.items()}

    def _rows(self, run: str, matches: str, where: Mapping[str, Any]) -> list[dict[str, Any]]:
        named = re.compile(matches or re.escape(run)).fullmatch
        rows = [
            row
            for row in self.rows
            if named(row['name']) and all(row.get(key) == own for key, own in where.items())
        ]
        if not rows:
            names = sorted({row['name'] for row in self.rows})
            raise MissingResultError(
                f'no result of {run or matches!r} with {where}; there are {names}'
            )
        return rows

    def keep(self, path: pathlib.Path) -> None:
        """Writes a table of all rows, without what is known of documents."""
        columns = [
            name
            for name in (*NAMES, *NUMBERS)
            if any(row.get(name) is not None for row in self.rows)
        ]
        text = io.StringIO()
        table = csv.DictWriter(text, columns, extrasaction='ignore', lineterminator='\n')
        table.writeheader()
        table.writerows(self.rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write(path, text.getvalue())

    @classmethod
    def kept(cls, path: pathlib.Path) -> 'ResultRows':
        """The numbers of a table that `keep` wrote."""
        number = lambda name, cell: int(cell) if name == 'seed' else float(cell)
        made = cls(path)
        with path.open(newline='') as file:
            made.rows = [
                {
                    name: cell if name in NAMES else number(name, cell)
                    for name, cell in row.items()
                    if cell or name == 'folder'
                }
                for row in csv.DictReader(file)
            ]
        return made

    def drawn(self, counts: Mapping[Document, int]) -> 'ResultRows':
        """These results on a text in which each document occurs so many times."""
        other = copy.copy(self)
        other.rows = [{**row, **_with_counts(row, counts)} for row in self.rows]
        other.read = []
        return other


def together(parts: list[Numbers]) -> Numbers:
    """Seed -> the list of several numbers, over the seeds that all of them have."""
    seeds = sorted(set.intersection(*map(set, parts)))
    return {seed: [part[seed] for part in parts] for seed in seeds}


def _with_counts(row: Mapping[str, Any], counts: Mapping[Document, int]) -> dict[str, float]:
    documents = row.get('documents') or {}
    tokens = sum(counts.get(name, 0) * tokens for name, (tokens, _) in documents.items())
    loss = sum(counts.get(name, 0) * loss for name, (_, loss) in documents.items())
    return {'nll': loss / tokens, 'value': math.exp(min(loss / tokens, 700.0))} if tokens else {}


def over_documents(
    measure: Callable[[ResultRows], Mapping[int, float]], results: ResultRows, draws: int = 1000
) -> tuple[float, float, int] | None:
    """How far the mean effect depends on the documents of the text, and how many there are.

    The 95 % interval of the mean effect if the documents are drawn again, the same ones for all
    runs; for fewer than `FEWEST` documents the range of the effects in each of them alone. None if
    the effect does not depend on documents, or if those of a number that it reads are not known.
    """
    results.read.clear()
    measure(results)
    read = list(results.read)
    names = sorted({name for row in read for name in row.get('documents') or ()})
    if len(names) < 2 or not all(row.get('documents') for row in read):
        return None
    if few := len(names) < FEWEST:
        ways = [{name: 1} for name in names]
    else:
        rng, chances = np.random.default_rng(0), np.full(len(names), 1 / len(names))
        counts = rng.multinomial(len(names), chances, draws).tolist()
        ways = [dict(zip(names, drawn)) for drawn in counts]
    effects = [
        statistics.fmean(measure(results.drawn(way)).values())
        for way in ways
        if all(any(way.get(name) for name in row['documents']) for row in read)
    ]
    if len(set(effects)) < 2:
        return None
    low, high = np.quantile(effects, [0.0, 1.0] if few else [0.025, 0.975])
    return float(low), float(high), len(names)
