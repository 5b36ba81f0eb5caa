"""What a claim is, how its measure reads the results of a sweep, and how the verdict follows."""

import copy
import csv
import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from posenc_jax.lab.evaluate.measurement import FEWEST
from posenc_jax.lab.evaluate.results import read_groups

LEAST_SEEDS = 3
SAME = {'protocol': 'same_tokens'}  # rows whose windows of all lengths score the same tokens
Document = tuple[str, str, int]  # data set, split, number
VERDICTS = ('holds', 'partly', 'contrary', 'open')


class MissingResultError(Exception):
    """The results of a sweep lack what a measure reads."""


class Results:
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

    def values(self, name: str, field: str = 'value', **where: object) -> dict[int, float]:
        """Seed -> number of the run `name`, e.g. `values('rope', length=128)`.

        Args:
          name: the run without its seed; with ' | EXTENSION' if it was extended for the evaluation.
          field: which number of the row, e.g. 'nll'.
          where: further fields that the row must have.

        Raises:
          MissingResultError: there is no such row, or there are several for one seed.
        """
        found: dict[int, float] = {}
        for row in self.rows:
            if row['name'] == name and all(row.get(key) == value for key, value in where.items()):
                if row['seed'] in found:
                    raise MissingResultError(f'several results of {name!r} with {where}')
                if row.get(field) is None:
                    raise MissingResultError(f'the results of {name!r} have no {field}')
                found[row['seed']] = row[field]
                self.read.append(row)
        if not found:
            names = sorted({row['name'] for row in self.rows})
            raise MissingResultError(f'no result of {name!r} with {where}; there are {names}')
        return found

    def drawn(self, counts: Mapping[Document, int]) -> 'Results':
        """These results on a text in which each document occurs so many times."""
        other = copy.copy(self)
        other.rows = [{**row, **_with_counts(row, counts)} for row in self.rows]
        other.read = []
        return other


def _with_counts(row: Mapping[str, Any], counts: Mapping[Document, int]) -> dict[str, float]:
    documents = row.get('documents') or {}
    tokens = sum(counts.get(name, 0) * tokens for name, (tokens, _) in documents.items())
    loss = sum(counts.get(name, 0) * loss for name, (_, loss) in documents.items())
    return {'nll': loss / tokens, 'value': math.exp(min(loss / tokens, 700.0))} if tokens else {}


Measure = Callable[[Results], Mapping[int, float]]


def over_documents(
    measure: Measure, results: Results, draws: int = 1000
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


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How a claim is measured.

    Attributes:
      test: what is compared, in one sentence.
      sweep: module in `evidence.experiments`.
      arguments: arguments of the sweep, without seeds and directory.
      measure: from the results to seed -> effect; a larger effect speaks for the claim.
      unit: what the effect counts, such as 'points of exact match'.
      margin: the least effect that counts, in that unit; above 0.
      minutes: time of the sweep on two cores.
      seeds: seeds of the runs.
      repeats: what the effects of one claim differ in: 'seeds' of training, 'samples' of text that
        one public model reads, 'rounds' of timing, or 'cases' that are computed without chance.
      remark: why the result is as it is, if that is known.
    """

    test: str
    sweep: str
    arguments: Sequence[str]
    measure: Measure
    unit: str
    margin: float
    minutes: float
    seeds: tuple[int, ...] = (0, 1, 2)
    repeats: Literal['seeds', 'samples', 'rounds', 'cases'] = 'seeds'
    remark: str = ''

    def verdict(self, effects: Mapping[int, float]) -> str:
        """'holds' if every seed reaches the margin, 'partly' if the mean does, 'contrary' if the
        mean is beyond the margin on the other side, otherwise 'open'. Fewer than three seeds are
        always open.
        """
        values = list(effects.values())
        if len(values) < LEAST_SEEDS:
            return 'open'
        mean = statistics.fmean(values)
        if min(values) >= self.margin:
            return 'holds'
        if mean >= self.margin:
            return 'partly'
        return 'contrary' if mean <= -self.margin else 'open'


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of a paper.

    Attributes:
      id: short name that stays the same, such as 'B5'.
      family: heading under which the page has the claim.
      key: name of the method.
      arxiv: number of the paper.
      statement: what the paper says, in our words.
      test: what would be compared, for a claim that nothing measures yet; else ''.
      minutes: about how long that test would take on two cores; else 0.
      how: its measurement, if there is one.
    """

    id: str
    family: str
    key: str
    arxiv: str
    statement: str
    test: str
    minutes: float
    how: Measurement | None = None


def by_seed(combine: Callable[..., float], *parts: Measure) -> Measure:
    """A measure that combines others seed by seed, over the seeds that all of them have."""

    def measure(results: Results) -> dict[int, float]:
        values = [part(results) for part in parts]
        seeds = sorted(set.intersection(*(set(value) for value in values)))
        return {seed: combine(*(value[seed] for value in values)) for seed in seeds}

    return measure


def least(*parts: Measure) -> Measure:
    """The least of several measures, seed by seed."""
    return by_seed(lambda *values: min(values), *parts)


def best(*parts: Measure) -> Measure:
    """The largest of several measures, seed by seed."""
    return by_seed(lambda *values: max(values), *parts)


def mean(*parts: Measure) -> Measure:
    """The mean of several measures, seed by seed."""
    return by_seed(lambda *values: statistics.fmean(values), *parts)


def number(name: str, field: str = 'value', **where: object) -> Measure:
    """The measure that reads one number of a run."""
    return lambda results: results.values(name, field, **where)


def minus(first: Measure, second: Measure) -> Measure:
    """The difference of two measures."""
    return by_seed(lambda a, b: a - b, first, second)


def above(better: str, worse: str, field: str = 'value', **where: object) -> Measure:
    """How much more `better` has than `worse`, e.g. of exact match."""
    return minus(number(better, field, **where), number(worse, field, **where))


def below(better: str, worse: str, **where: object) -> Measure:
    """How many nats a token fewer `better` needs than `worse`."""
    return above(worse, better, 'nll', **where)


def gain(name: str, near: int, far: int, **where: object) -> Measure:
    """How many nats a token fewer a run needs at the length `far` than at `near`."""
    return minus(
        number(name, 'nll', length=near, **where), number(name, 'nll', length=far, **where)
    )


def lead(own: Measure, *others: Measure) -> Measure:
    """How much more the first has than the best of the others."""
    return by_seed(lambda first, *rest: first - max(rest), own, *others)


def lead_in_nats(name: str, *others: str, **where: object) -> Measure:
    """How many nats a token fewer `name` needs than the best of the others."""
    of = lambda run: by_seed(lambda nats: -nats, number(run, 'nll', **where))
    return lead(of(name), *map(of, others))
