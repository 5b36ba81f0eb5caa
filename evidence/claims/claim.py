"""What a claim is, how its effect follows from results, and the verdict from the effects."""

import ast
import dataclasses
import functools
import math
import os
import pathlib
import shlex
import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import scipy.stats

from evidence.claims.results import ResultRows, together
from posenc_jax.lab.runs import entries

LEAST_SEEDS = 3
VERDICTS = (
    'holds', 'partly', 'tolerated', 'mixed', 'partly contrary', 'contrary', 'open', 'ceiling',
    'floor',
)  # fmt: skip
TASKS = 'run', 'panel', 'folder'  # fields in which a number may list tasks
Curve = Sequence[tuple[float, float]]


def sooner(own: Curve, other: Curve) -> float:
    """How many times fewer steps one curve (step, loss) takes than another one to the worse of the
    two last losses.
    """
    goal = max(own[-1][1], other[-1][1])
    first = lambda curve: min(step for step, loss in curve if loss <= goal)
    return first(other) / first(own)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """The correlation of the ranks of two lists."""
    return float(scipy.stats.spearmanr(first, second)[0])


# What a formula may call.
FUNCTIONS = {
    'min': min, 'max': max, 'zip': zip, 'log10': math.log10, 'mean': statistics.fmean,
    'deviation': statistics.pstdev, 'sooner': sooner, 'rank_correlation': rank_correlation,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Procedure:
    """How a claim is measured.

    Attributes:
      sweep: module in `evidence.experiments`.
      arguments: arguments of the sweep, without seeds and directory.
      effect: a formula in Python, which is evaluated for each seed; a larger effect speaks for the
        claim. Its names are those of `read`, of `FUNCTIONS`, and of runs.
      unit: what the effect counts, such as 'points of exact match'.
      margin: the least effect that counts, in that unit; above 0.
      where: fields of all rows that the formula reads, see `ResultRows.values`.
      read: name in the formula -> the fields of its rows, if the name is not that of a run.
      seeds: seeds of the runs.
      repeats: what the effects of one claim differ in: 'seeds' of training, 'samples' of text that
        one public model reads, 'rounds' of timing, or 'cases' that are computed without chance.
      kind: 'exact' if the claim holds by construction or by a theorem, 'tolerance' if it is that a
        loss does not rise by more than so much, 'timing', or 'empirical'.
      null: a method that cannot have what the claim says, and that would reach the margin; ''. Such
        a claim is at most 'tolerated'.
      unlearned: why the side that the claim speaks for has not learned the text, such as that a
        5-gram model has a lower loss; '' where it has. Such a claim is 'open'.
      limit: 'ceiling' if both sides are as good as can be, 'floor' if as bad; otherwise ''.
      remark: why the result is as it is, if that is known.
    """

    sweep: str
    arguments: Sequence[str]
    effect: str
    unit: str
    margin: float
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    repeats: Literal['seeds', 'samples', 'rounds', 'cases'] = 'seeds'
    kind: Literal['exact', 'tolerance', 'timing', 'empirical'] = 'empirical'
    null: str = ''
    unlearned: str = ''
    limit: Literal['', 'ceiling', 'floor'] = ''
    remark: str = ''

    @functools.cached_property
    def numbers(self) -> dict[str, dict[str, Any]]:
        """Name in the formula -> the arguments of `ResultRows.values` that read it."""
        nodes = [node for node in ast.walk(ast.parse(self.effect)) if isinstance(node, ast.Name)]
        own = {node.id for node in nodes if isinstance(node.ctx, ast.Store)} | FUNCTIONS.keys()
        names = sorted({node.id for node in nodes} - own)
        if unused := sorted(self.read.keys() - set(names)):
            raise ValueError(f'the formula {self.effect!r} does not read {", ".join(unused)}')
        found = {}
        for name in names:
            given = self.read.get(name, name)
            fields = given if isinstance(given, Mapping) else {'run': given}
            run = {} if 'matches' in fields else {'run': name}
            found[name] = {**self.where, **run, **fields}
        return found

    def effects(self, results: ResultRows) -> dict[int, float]:
        """Seed -> effect, over the seeds that all numbers have.

        Raises:
          MissingResultError: the results lack what the formula reads.
        """
        return self._effects(results, self.numbers)

    def _effects(self, results: ResultRows, numbers: Mapping[str, Any]) -> dict[int, float]:
        found = together([results.values(**asked) for asked in numbers.values()])
        code = compile(self.effect, 'effect', 'eval')
        known = {**FUNCTIONS, '__builtins__': {}}
        return {
            seed: eval(code, {**known, **dict(zip(numbers, own))}) for seed, own in found.items()
        }

    def without_each(self, results: ResultRows) -> dict[str, float]:
        """Task -> the mean effect without it, where the formula takes means over tasks, which all
        its numbers list in the same field and order; otherwise {}.
        """
        lists = [
            [field for field in TASKS if isinstance(asked.get(field), list)]
            for asked in self.numbers.values()
        ]
        fields, counts = {tuple(own) for own in lists}, set()
        if 'mean(' in self.effect and len(fields) == 1 and len(lists[0]) == 1:
            (field,) = lists[0]
            counts = {len(asked[field]) for asked in self.numbers.values()}
        if len(counts) != 1:
            return {}
        found = {}
        for place, items in enumerate(zip(*(asked[field] for asked in self.numbers.values()))):
            rest = {
                name: {**asked, field: asked[field][:place] + asked[field][place + 1 :]}
                for name, asked in self.numbers.items()
            }
            task = os.path.commonprefix(items).rstrip('_') or items[0]
            found[task] = statistics.fmean(self._effects(results, rest).values())
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the margin, of the formula and of what it reads. A record is stale once it
        has changed.
        """
        return entries.digest([self.margin, self.effect, self.numbers])[:12]

    def verdict(
        self, effects: Mapping[int, float], documents: Mapping[str, float] | None = None
    ) -> str:
        """What follows from the effects of the seeds, by the same rules on both sides.

        Args:
          effects: seed -> effect.
          documents: `low` and `high` of the interval over documents, where these are scored.

        Returns:
          'holds' or 'contrary' if every seed and the whole interval are on one side, the seeds
          beyond the margin; 'partly' or 'partly contrary' if the mean is; 'mixed' if seeds are
          beyond the margin on both sides; 'tolerated' in the place of 'holds' if a method
          that cannot have what the claim says would reach the margin too; otherwise `limit`, or
          'open' without one. Fewer than three seeds are always open, and so is a claim for models
          that are `unlearned`.
        """
        values = list(effects.values())
        if len(values) < LEAST_SEEDS or self.unlearned:
            return 'open'
        low, high = (documents or {}).get('low', 1.0), (documents or {}).get('high', -1.0)
        mean, margin = statistics.fmean(values), self.margin
        if max(values) >= margin and min(values) <= -margin:
            return 'mixed'
        if mean >= margin:
            whole = 'holds' if min(values) >= margin and low > 0 else 'partly'
            return 'tolerated' if self.null and whole == 'holds' else whole
        if mean <= -margin:
            return 'contrary' if max(values) <= -margin and high < 0 else 'partly contrary'
        return self.limit or 'open'

    def power(self, effects: Mapping[int, float]) -> float:
        """The effect that this number of seeds, with this spread, would show in four of five tries:
        every seed is then beyond the margin. Three seeds of a normal distribution, for instance,
        are all beyond it with a probability of .80 if the mean lies 1.46 deviations above it.
        """
        above = scipy.stats.norm.ppf(0.8 ** (1 / len(effects)))
        return self.margin + float(above) * statistics.stdev(effects.values())


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of a paper.

    Attributes:
      id: short name that stays the same, such as 'B5'.
      family: heading under which the page has the claim.
      key: name of the method.
      arxiv: number of the paper, '' if it has none.
      statement: what the paper says, in our words.
      test: what is compared, or what would be, in one sentence or two.
      minutes: about how long the sweep takes on two cores.
      how: its measurement, if there is one.
    """

    id: str
    family: str
    key: str
    arxiv: str
    statement: str
    test: str
    minutes: float
    how: Procedure | None = None


def read(path: pathlib.Path) -> Iterator[Claim]:
    """The claims of one file: a table for each, whose names are the attributes of `Claim` and, if
    it is measured, of `Procedure`, with `experiment` for the sweep and its arguments.

    Raises:
      ValueError: the file is no TOML, or a claim has other names.
    """
    content = tomllib.loads(path.read_text(encoding='utf-8'))
    family = content.pop('family')
    for name, table in content.items():
        of_claim = {own: table.pop(own) for own in ('key', 'arxiv', 'statement', 'test', 'minutes')}
        how = None
        if table:
            sweep, *arguments = shlex.split(table.pop('experiment'))
            try:
                how = Procedure(sweep, tuple(arguments), **table)
                how.numbers  # noqa: B018 - a formula that cannot be read is refused here
            except (TypeError, ValueError, SyntaxError) as error:
                raise ValueError(f'{path}: claim {name}: {error}') from error
        yield Claim(name, family, **of_claim, how=how)
