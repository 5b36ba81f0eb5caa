"""Pictures of curves on docs/headline.md, from the numbers of runs in evidence/results."""

import dataclasses
import pathlib
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from evidence.claims import ledger
from evidence.claims.results import MissingResultError, ResultRows
from posenc_jax.lab.evaluate.picture_style import beside, styles
from posenc_jax.lab.files import disk

_MARKED = 12  # places, at most, whose seeds have marks of their own


@dataclasses.dataclass(frozen=True)
class Panel:
    """A panel of a picture.

    Attributes:
      title: what is read.
      claim: the claim whose numbers are drawn.
      runs: name in the legend -> a run, or several of which the mean is drawn.
      where: fields that all rows have, each with one value.
      field: the number of a row that is drawn, such as 'nll' or 'token_accuracy'.
      unit: of the numbers.
      by: the field of a row whose value is its place on the horizontal axis.
      along: what that axis shows; '' where `places` says it.
      places: value of that field -> its name on the axis; {} to draw all numbers that there are on
        a logarithmic axis, or on a linear one if they are many.
      trained: the trained length, or 0 where nothing is marked.
    """

    title: str
    claim: str
    runs: Mapping[str, str | Sequence[str]]
    unit: str
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    field: str = 'value'
    by: str = 'length'
    along: str = ''
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trained: int = 0

    def curves(
        self, results: ResultRows, seeds: Collection[int]
    ) -> dict[str, dict[Any, list[float]]]:
        """Name in the legend -> place on the axis -> the numbers of the seeds.

        Raises:
          ValueError: the results have not one number of each run, place and seed.
        """
        return {
            label: self._curve(results, seeds, [run] if isinstance(run, str) else list(run))
            for label, run in self.runs.items()
        }

    def _curve(self, results, seeds, runs: list[str]) -> dict[Any, list[float]]:
        read = lambda field, **more: results.values(runs, field, **self.where, **more)
        try:
            everywhere = read(self.by, every=True)  # seed -> for each run, pairs of x and the place
            there = {place for own in everywhere.values() for pairs in own for _, place in pairs}
            found = {
                place: read(self.field, **{self.by: place})
                for place in list(self.places) or sorted(there)
            }
            if other := [place for place, own in found.items() if own.keys() != set(seeds)]:
                raise MissingResultError(f'other seeds than {sorted(seeds)} at {other[0]}')
        except MissingResultError as error:
            raise ValueError(
                f'claim {self.claim}: the kept numbers have not one of each seed, of '
                f'{", ".join(runs)} with {dict(self.where)}: {error}'
            ) from None
        return {
            place: [statistics.fmean(numbers) for numbers in own.values()]
            for place, own in found.items()
        }


def draw(
    path: pathlib.Path, panels: Sequence[Panel], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draws the panels beside each other: a line through the means over the seeds, and a mark for
    each seed; a band from the smallest to the largest where a line has many points.

    Raises:
      ValueError: the repository does not keep the numbers of a claim.
    """
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure((1.0 + 3.6 * columns, 0.6 + 3.2 * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    names: dict[str, dict[str, Any]] = {}  # label -> its style, the same in all panels
    of_labels = styles()
    for axis, panel in zip(axes, panels):
        record = records[panel.claim]
        if record['results'] is None:
            raise ValueError(f'the numbers of claim {panel.claim} are not kept, so none is drawn')
        results = ResultRows.kept(ledger.RESULTS / record['results'])
        curves = panel.curves(results, ledger.effects(record))
        for number, (label, points) in enumerate(curves.items()):
            style = names.get(label) or names.setdefault(label, next(of_labels))
            places = _beside(panel, list(points), number, len(curves))
            _draw(axis, dict(zip(places, points.values())), label, style)
        _ticks(axis, panel, sorted({place for points in curves.values() for place in points}))
        axis.set_title(panel.title, fontsize=9)
        axis.set_ylabel(panel.unit)
        if panel.unit.startswith('share'):
            axis.set_ylim(-0.03, 1.03)  # so that panels can be compared
        axis.set_xlabel(panel.along)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    shown = [lines[label] for label in names]
    figure.legend(handles=shown, loc='outside upper center', ncols=min(len(shown), 5), fontsize=8)
    disk.save_figure(figure, path, dpi=110)


def _beside(panel: Panel, places: list[Any], number: int, count: int) -> list[float]:
    """Where the points of one of several curves stand, beside those of the other curves."""
    if panel.places:
        return [place + 0.1 * (number - (count - 1) / 2) for place in range(len(places))]
    return places if len(places) > _MARKED else list(beside(places, number, count))


def _draw(axis, points: Mapping[float, Sequence[float]], label: str, style) -> None:
    """A curve: place -> the numbers of the seeds."""
    means = [statistics.fmean(seeds) for seeds in points.values()]
    many = len(points) > _MARKED
    if many:
        low, high = ([end(seeds) for seeds in points.values()] for end in (min, max))
        axis.fill_between(list(points), low, high, color=style['color'], alpha=0.15, linewidth=0)
    else:
        for place, seeds in points.items():
            axis.plot([place] * len(seeds), seeds, '_', color=style['color'], markersize=9)
    size = 0 if many else 4
    axis.plot(list(points), means, label=label, markersize=size, linewidth=1.4, **style)


def _ticks(axis, panel: Panel, places: Sequence[Any]) -> None:
    if panel.places:
        axis.set_xticks(range(len(panel.places)), list(panel.places.values()))
        axis.set_xlim(-0.5, len(panel.places) - 0.5)
    elif len(places) <= _MARKED:
        axis.set_xscale('log', base=2)
        axis.set_xticks(places, [f'{place:g}' for place in places])
        axis.minorticks_off()
    if panel.trained:
        axis.axvline(panel.trained, color='0.5', linewidth=0.8, linestyle='--', label='_trained')
