"""The runs of an evaluation, and series of runs that differ only in their seed."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from posenc_jax.base.programs import printable
from posenc_jax.lab.evaluate.field_points import ClassMap, Fitted
from posenc_jax.lab.evaluate.measurement import Measurement, is_of_points
from posenc_jax.lab.evaluate.samples import Samples

Place = int | float | None  # first position of a bucket, depth of an answer, or neither
Point = tuple[str, int, Place]  # protocol, length, place


@dataclasses.dataclass(frozen=True)
class RunResult:
    """All measurements of one run.

    Attributes:
      run: the run directory.
      encoding: spec string; those of a pattern over layers are joined by ' / '.
      extend: the context extension of the evaluation, or ''.
      task, dataset, split: what was evaluated; `dataset` is '' for tasks other than language.
      positions: `eval.positions`, 'sampled' or 'first'.
      seed: of training.
      step: of the checkpoint.
      train_length: the length at which the run was trained.
      counted: what the length counts, such as 'side of an image'; '' where that is not known.
      chance: the share that a guess among the classes has right; None where there are no classes.
      parameters: how many numbers the parameters of the model have.
      settings: the fields of the config, without the seed and those that do not change what is
        trained. Runs with equal settings differ only in their seed.
      measurements: one for each protocol, length, and bucket or depth.
      bigram, fivegram: in language modelling on bytes, the perplexity that tables of n-grams of the
        training text have on the tokens of the first protocol; see `lab/evaluate/ngrams.py`.
      fitted, class_map: what a field says at its points and on a map of its task, to be drawn; not
        kept in results.json.
      samples: what a model of classes says of some images, clouds or graphs, to be drawn; not kept
        either.
    """

    run: str
    encoding: str
    extend: str
    task: str
    dataset: str
    split: str
    positions: str
    seed: int
    step: int
    train_length: int
    parameters: int
    settings: dict[str, Any]
    measurements: tuple[Measurement, ...]
    bigram: float | None = None
    fivegram: float | None = None
    counted: str = ''
    chance: float | None = None
    fitted: tuple[Fitted, ...] = ()
    class_map: ClassMap | None = None
    samples: tuple[Samples, ...] = ()

    @property
    def points(self) -> dict[Point, Measurement]:
        """The measurements by protocol, length and place."""
        return {
            (m.protocol, m.length, m.position_low if m.depth is None else m.depth): m
            for m in self.measurements
        }


OWN = tuple(
    f.name
    for f in dataclasses.fields(RunResult)
    if f.name not in ('settings', 'measurements', 'fitted', 'class_map', 'samples')
)  # the same in every row
LATER = {'bigram': None, 'fivegram': None, 'counted': '', 'chance': None}  # not in older results
TABLES = {'bigram': 2, 'fivegram': 5}  # field -> order of the table of n-grams


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with the interval that is drawn around it: from the smallest to the largest of
    several seeds, or the interval of one run.
    """

    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Series:
    """Runs that differ only in their seed, with the name under which they are shown."""

    label: str
    runs: tuple[RunResult, ...]

    @property
    def train_length(self) -> int:
        return self.runs[0].train_length

    def estimates(self, protocol: str) -> dict[tuple[int, Place], Estimate]:
        """The mean over seeds of one protocol, by (length, first position or depth)."""
        out = {}
        for point in self.runs[0].points:
            if point[0] == protocol:
                found = [run.points[point] for run in self.runs if point in run.points]
                values = [m.value for m in found]
                low, high = (
                    (min(values), max(values)) if len(found) > 1 else (found[0].low, found[0].high)
                )
                out[point[1:]] = Estimate(float(np.mean(values)), low, high)
        return out


def group(runs: Iterable[RunResult]) -> tuple[Series, ...]:
    """Joins runs with equal settings and extension to series. A series is named by its encoding and
    extension, and by the settings in which it differs from others of the same name. The name is
    `printable`.
    """
    groups: dict[str, list[RunResult]] = {}
    for run in runs:
        groups.setdefault(
            json.dumps([run.settings, run.extend], sort_keys=True, default=str), []
        ).append(run)
    members = [tuple(g) for g in groups.values()]
    names = [g[0].encoding + (f' + {g[0].extend}' if g[0].extend else '') for g in members]
    namesakes = lambda name: [g for g, n in zip(members, names) if n == name]
    return tuple(
        Series(printable(name + _difference(own, namesakes(name))), own)
        for name, own in zip(names, members)
    )


def _difference(own, namesakes):
    """' (field=value, ...)' for the settings in which series of the same name differ."""
    settings = [g[0].settings for g in namesakes]
    fields = sorted(
        {f for s in settings for f in s if any(s[f] != other.get(f) for other in settings)}
    )
    return f' ({", ".join(f"{f}={own[0].settings.get(f)}" for f in fields)})' if fields else ''


def depths_of(series: Iterable[Series]) -> tuple[float, ...]:
    """The depths at which answers lay, ascending; () if `eval.depths` was not set."""
    found = {m.depth for s in series for run in s.runs for m in run.measurements}
    return tuple(sorted(found - {None}))


def scored(runs: Iterable[RunResult], protocol: str) -> str:
    """How many tokens (or answers of tasks) a protocol scored at a length and depth, as text:
    '32,768', or '512-4,096' where the numbers differ.

    Perplexities on one text are comparable if the same tokens were scored. The windows of different
    protocols score different tokens.
    """
    counts: dict[tuple, int] = {}
    for number, run in enumerate(runs):
        for m in run.measurements:
            if m.protocol == protocol:
                cell = number, m.length, m.depth
                counts[cell] = counts.get(cell, 0) + (
                    m.samples if protocol == 'exact_match' else m.tokens
                )
    return between(counts.values())


def between(counts: Iterable[int]) -> str:
    """The smallest and the largest count as text: '512-4,096', '32,768' if they are equal, or ''
    if there is none.
    """
    ordered = sorted(counts)
    return '-'.join(f'{count:,}' for count in sorted({*ordered[:1], *ordered[-1:]}))


def unit(protocol: str) -> str:
    """The unit of `scored`: 'answers', 'points' or 'tokens'."""
    if is_of_points(protocol):
        return 'points'
    return 'answers' if protocol == 'exact_match' else 'tokens'


def of_tables(series: Iterable[Series]) -> dict[int, float]:
    """Order -> perplexity of a table of n-grams, if it is the same for all runs."""
    runs = [run for s in series for run in s.runs]
    found = {order: {getattr(run, name) for run in runs} for name, order in TABLES.items()}
    return {
        order: value
        for order, values in found.items()
        if len(values) == 1 and (value := values.pop()) is not None
    }
