"""Tables of an evaluation for the terminal."""

import fractions
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from posenc_jax.base.programs import printable
from posenc_jax.lab.evaluate.differences import Difference
from posenc_jax.lab.evaluate.measurement import (
    BY_PLANE,
    Measurement,
    is_of_points,
    is_share,
    spread_name,
)
from posenc_jax.lab.evaluate.series import (
    Estimate,
    Series,
    between,
    depths_of,
    of_tables,
    scored,
    unit,
)
from posenc_jax.protocol.errors import shortened

if TYPE_CHECKING:
    from posenc_jax.lab.evaluate.results import Results

NUMBER: dict[str, Any] = dict(justify='right', no_wrap=True)
FOLDED: dict[str, Any] = dict(overflow='fold')


def tables(results: 'Results', console: Any = None) -> list[Any]:
    """Tables of `rich`: for each protocol the metric by length (and depth), or perplexity by
    position. Lengths, and encodings by position, that do not fit into the width of a console go
    into further tables.
    """
    made = []
    for protocol in results.protocols:
        if protocol in ('per_position', BY_PLANE):
            own = functools.partial(_position_table, protocol)
            made += _split(own, results.series, console)
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


def as_shown(text: str) -> str:
    r"""A text as a cell or a title of a table shows it: `printable`, and not as markup.

    Example:
      >>> as_shown('[red]\x1b[31m')
      '\\[red]\\x1b[31m'
    """
    import rich.markup

    return rich.markup.escape(printable(text))


def _table(
    title: str, columns: Iterable[tuple[str, dict[str, Any]]], rows: Iterable[Sequence[str]]
) -> Any:
    """A table of columns with a head and options each."""
    import rich.table

    table = rich.table.Table(title=as_shown(title), title_justify='left')
    for head, options in columns:
        table.add_column(head, **options)
    for row in rows:
        table.add_row(*row)
    return table


def _caption(table: Any, text: str) -> None:
    table.caption = f'{table.caption}\n{text}' if table.caption else text
    table.caption_justify = 'left'


def _split(
    table_of: Callable[[Sequence[Any]], Any], columns: Sequence[Any], console: Any
) -> list[Any]:
    """`table_of(columns)`, or tables of some of the columns each if that one is too wide."""
    table = table_of(columns)
    if len(columns) <= 1 or console is None or _width(table, console) <= console.width:
        return [table]
    half = (len(columns) + 1) // 2
    parts = columns[:half], columns[half:]
    return [table for some in parts for table in _split(table_of, some, console)]


def _width(table: Any, console: Any) -> int:
    """The least width in which no number is cut; names are folded."""
    unbounded = console.options.update(max_width=100_000)
    return console.measure(table, options=unbounded).minimum


def _difference_tables(found: Sequence[Difference], console: Any) -> list[Any]:
    """For each protocol the differences from the first series, by length."""
    made = []
    for protocol in dict.fromkeys(d.protocol for d in found):
        own = [d for d in found if d.protocol == protocol]
        made += _split(
            functools.partial(_difference_table, own), sorted({d.length for d in own}), console
        )
        spreads = dict.fromkeys(spread_name(d.groups, d.drawn) for d in own)
        _caption(made[-1], as_shown(f'{" or ".join(spreads)}, of both sides at once'))
    return made


def _difference_table(found: Sequence[Difference], lengths: Iterable[int]) -> Any:
    cells = {(d.label, d.length): f'{d.value:+.3f}\n{d.low:+.3f} to {d.high:+.3f}' for d in found}
    return _table(
        f'nats a token above {shortened(found[0].against, 48)}, {found[0].protocol}',
        [('encoding', FOLDED | dict(min_width=24)), *((str(n), NUMBER) for n in lengths)],
        [
            (as_shown(shortened(label, 96)), *(cells.get((label, n), '') for n in lengths))
            for label in dict.fromkeys(d.label for d in found)
        ],
    )


def _length_table(series: Sequence[Series], protocol: str, lengths: Sequence[int]) -> Any:
    trained = {s.train_length for s in series}
    heads = (str(n) + (f'\n{_multiple(n, *trained)}' if len(trained) == 1 else '') for n in lengths)
    depth = ('depth',) if depths_of(series) else ()
    return _table(
        _title(series, protocol),
        [
            ('encoding', FOLDED | dict(min_width=min(24, max(len(s.label) for s in series)))),
            *((head, NUMBER) for head in ('trained', unit(protocol), *depth, *heads)),
        ],
        (row for s in series for row in _length_rows(s, protocol, lengths, bool(depth))),
    )


def _title(series: Sequence[Series], protocol: str) -> str:
    """What is measured, and what the numbers below it are."""
    own = is_share(protocol) or is_of_points(protocol)
    title = protocol.replace('_', ' ') if own else f'perplexity, {protocol}'
    # The points of a picture are no sample, so most of what is measured of them has no interval.
    alone = [s for s in series if len(s.runs) == 1]
    known = dict.fromkeys(m.spread for s in alone for m in _measured(s, protocol) if m.spread)
    several = any(len(s.runs) > 1 for s in series)
    around = [*known, *['smallest - largest of several runs'] * several]
    return title + (f' ({", or ".join(around)})' if around else '')


def _measured(series: Series, protocol: str) -> list[Measurement]:
    return [m for run in series.runs for m in run.measurements if m.protocol == protocol]


def _length_rows(
    series: Series, protocol: str, lengths: Sequence[int], deep: bool
) -> Iterable[Sequence[str]]:
    """A row for each depth of a series, or one; a column says the depth if any series has one."""
    estimates = series.estimates(protocol)
    several = f'\n{len(series.runs)} runs' if len(series.runs) > 1 else ''
    name = as_shown(shortened(series.label, 96)) + several
    first = [name, str(series.train_length), scored(series.runs, protocol)]
    for depth in depths_of([series]) or (None,):
        shown = ['' if depth is None else f'{depth:g}'] if deep else []
        yield *first, *shown, *(_cell(estimates.get((n, depth)), protocol) for n in lengths)
        first = ['', '', '']


def _multiple(length: int, trained: int) -> str:
    below = length < trained
    return f'{fractions.Fraction(length, trained)}x' if below else f'{length / trained:g}x'


def _position_table(protocol: str, series: Sequence[Series]) -> Any:
    planes = protocol == BY_PLANE
    buckets: dict[tuple[int, int, int], list[int]] = {}
    for s in series:
        for m in s.runs[0].measurements:
            if m.protocol == protocol:
                buckets.setdefault((m.position_low, m.position_high, m.length), []).append(m.tokens)
    rows = []
    for (low, high, length), tokens in sorted(buckets.items()):
        found = [s.estimates(protocol).get((length, low)) for s in series]
        cells = [(f'{e.value:.5f}' if planes else f'{e.value:.2f}') if e else '' for e in found]
        place = f'{low}, {length}' if planes else f'{low}-{high - 1}'
        rows.append((place, between(tokens), *cells))
    first = 'plane, resolution' if planes else 'positions'
    name = lambda s: as_shown(shortened(s.label, 96))
    folded = lambda s: FOLDED | dict(justify='right', min_width=min(14, len(s.label)))
    labels = [(name(s), folded(s)) for s in series]
    title = 'bit error rate by plane' if planes else 'perplexity by position'
    return _table(title, [(first, NUMBER), (unit(protocol), NUMBER), *labels], rows)


def _cell(estimate: Estimate | None, protocol: str) -> str:
    if estimate is None:
        return ''
    largest = max(v for v in (estimate.value, estimate.high) if v is not None)
    digits = 2 if largest < 100 else 1 if largest < 1000 else 0
    if is_share(protocol):
        digits = 5 if protocol.startswith('bit_error') else 3
    shown = f'{estimate.value:.{digits}f}'
    if estimate.low is None:
        return shown
    return f'{shown}\n{estimate.low:.{digits}f}-{estimate.high:.{digits}f}'
