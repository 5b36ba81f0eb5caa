"""The interface of an analysis to the command line: options, and from them reports."""

import argparse
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from posenc_jax.lab.analyse.report import Report, few
from posenc_jax.lab.analyse.subjects import Subject, subjects


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
    """An analysis of the command line.

    Attributes:
      key: its name.
      says: what it measures, for the help.
      reports: makes its reports from the options that are known and those that are not, which are
        fields of the config.
      options: its own options, name -> arguments of `add_argument`.
      batches: sequences that are read unless --batches says otherwise.
    """

    key: str
    says: str
    reports: Callable[[argparse.Namespace, list[str]], Iterable[Report]]
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    batches: int = 4


def _own_numbers(one: Any) -> Mapping[str, Any]:
    return one._asdict()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """An analysis of one or several models, whose results stand in one table and one picture.

    Attributes:
      measure: `measure(model, tokens, **options)`; its name is that of the analysis.
      options, batches: as for `Analysis`; the options are arguments of `measure`.
      columns: heads of the table behind 'model'.
      rows: the rows of one result.
      draw: `draw(figure, found)`, where `found` has the results of at most eight models by their
        names; with panels `draw(axes, name, one)`, which draws one model on a row of the picture.
      title: above the picture.
      panels: axes in the row of a model, or a function of `found`; 0 for a picture without rows.
      size: of the picture in inches, or a function of `found`; with panels the size of one row.
      numbers: what the JSON file holds of one result.
      remarks: lines below the table, from all results.
      longest: tokens of a sequence at most unless --length says otherwise; 0 for any.
      arguments: the arguments of `measure` after the model, where they are not the sequences and
        the options.
    """

    measure: Callable[..., Any]
    batches: int
    columns: Sequence[str]
    rows: Callable[[Any], Iterable[Sequence[Any]]]
    draw: Callable[..., None]
    title: str
    panels: int | Callable[[Mapping[str, Any]], int] = 0
    size: tuple[float, float] | Callable[[Mapping[str, Any]], tuple[float, float]] = (5.4, 3.4)
    numbers: Callable[[Any], Mapping[str, Any]] = _own_numbers
    remarks: Callable[[Mapping[str, Any]], Iterable[str]] = lambda found: ()
    longest: int = 0
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    arguments: Callable[[argparse.Namespace, Subject], dict[str, Any]] | None = None

    @property
    def key(self) -> str:
        return self.measure.__name__

    @property
    def says(self) -> str:
        """The first paragraph of the docstring of `measure`."""
        return ' '.join((inspect.getdoc(self.measure) or '').partition('\n\n')[0].split())

    def reports(self, known: argparse.Namespace, rest: list[str]) -> Iterable[Report]:
        found = {}
        for one in subjects(known, rest):
            if self.arguments is None:
                options = {name: getattr(known, name) for name in self.options}
                options['tokens'] = one.sequences(known, self.longest)
            else:
                options = self.arguments(known, one)
            found[one.label] = self.measure(one.load(), **options)
        return [self.report(found)]

    def report(self, found: Mapping[str, Any]) -> Report:
        """The report of results by the names of their models."""
        shown = few(found)
        panels = self.panels(shown) if callable(self.panels) else self.panels
        width, height = self.size(shown) if callable(self.size) else self.size

        def draw(figure):
            if not panels:
                return self.draw(figure, shown)
            axes = figure.subplots(len(shown), panels, squeeze=False)
            for own, (name, one) in zip(axes, shown.items()):
                self.draw(own, name, one)

        some = len(shown) < len(found)
        part = f' ({len(shown)} of {len(found)} models; the table has all)' if some else ''
        return Report(
            key=self.key,
            columns=('model', *self.columns),
            rows=[(name, *row) for name, one in found.items() for row in self.rows(one)],
            numbers={name: self.numbers(one) for name, one in found.items()},
            draw=draw,
            title=f'{self.title}{part}',
            size=(width, height * len(shown) if panels else height),
            remarks=list(self.remarks(found)),
        )


SYMBOLS = {  # an option that two analyses share
    'symbols': dict(default='0,1', metavar='A,B', help='two texts of one token')
}


def symbols_of(known: argparse.Namespace, subject: Subject) -> tuple[int, int]:
    """The ids of the two texts of --symbols, see `id_of`.

    Raises:
      ValueError: not two texts, or one of them is not one token.
    """
    texts = known.symbols.split(',')
    if len(texts) != 2:
        raise ValueError(
            f'--symbols are two texts with a comma between them, got {known.symbols!r}'
        )
    return id_of(subject, '--symbols are', texts[0]), id_of(subject, '--symbols are', texts[1])


def id_of(subject: Subject, option: str, text: str) -> int:
    """The id of a text of one token; in a task that is not text, the id that is written. `option`
    begins the message of an error, e.g. '--symbols are'.

    Raises:
      ValueError: the text is not one token, or no id.
    """
    task = subject.job.task
    if not task.is_language:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(
                f'{subject.job.directory} reads no text: {option} given by number, got {text!r}'
            )
        return int(text)
    front = len(task.encode(''))  # tokens that begin a document
    ids = list(task.encode(text))[front:]
    if len(ids) != 1:
        raise ValueError(f'{option} of one token, {text!r} has {len(ids)}')
    return int(ids[0])


def powers(
    known: argparse.Namespace, subject: Subject, first: int, most: int, tokens: int = 1
) -> list[int]:
    """The powers of two from `first` on, of so many tokens each and two more, that have room in
    --length, or in the trained length and are at most `most`.
    """
    longest = (known.length or min(subject.job.cfg.train_len, (most + 2) * tokens)) // tokens - 2
    if longest < first:
        raise ValueError(
            f'{known.analysis} needs a length of at least {(first + 2) * tokens} tokens'
        )
    return [2**k for k in range(longest.bit_length()) if first <= 2**k <= longest]
