"""The catalogue as text on a screen and in a notebook: all keys, a kind, or one entry."""

import html
import textwrap
from collections.abc import Sequence
from typing import Any

from posenc_jax.language import measured
from posenc_jax.language.catalog.cells import (
    COLUMNS,
    HEADINGS,
    bounds_text,
    call_with_defaults,
    promise_text,
    reference_text,
    row,
    summary,
)
from posenc_jax.protocol import index
from posenc_jax.protocol.calls import CONTEXT
from posenc_jax.protocol.registry import Card, Entry

WIDTH = 100  # columns of a screen


class Catalog(tuple[Card, ...]):
    """Cards that print as a text of at most 100 columns, and as a table in a notebook.

    Of several kinds, the text has the keys alone. Of one kind, it has a line for each method.
    """

    groups: tuple[tuple[Entry, ...], ...]

    def __new__(cls, groups: Sequence[Sequence[Entry]]):
        found = super().__new__(cls, (e.card for g in groups for e in g if e.card is not None))
        found.groups = tuple(tuple(group) for group in groups if group)
        return found

    def __str__(self):
        return _lines(self.groups[0]) if len(self.groups) == 1 else _keys(self.groups)

    def __repr__(self):
        return str(self)

    def _repr_html_(self):
        return '\n'.join(map(_html_table, self.groups))


class Entries(Catalog):
    """The Cards of one key, which may be registered in several kinds; they print in full."""

    def __str__(self):
        return '\n\n'.join(_page(entry) for group in self.groups for entry in group)

    def _repr_html_(self):
        return f'<pre>{html.escape(str(self))}</pre>'


def _keys(groups) -> str:
    sections = []
    for group in groups:
        keys = '  '.join(entry.key for entry in group)
        sections.append(f'{HEADINGS[group[0].kind]} ({len(group)})')
        sections.append(textwrap.fill(keys, WIDTH, **_indented('  ')))
    kinds = ', '.join(repr(group[0].kind) for group in groups)
    shown = [
        "catalog('rope') shows one entry. catalog('encoding') has a line for each encoding.",
        f'The kinds are {kinds}.',
    ]
    more = [
        *shown[: len(shown) * bool(groups)],
        *(f'Some methods are not listed: {missing}.' for missing in index.load_all()),
    ]
    return '\n'.join(
        [*sections, '', *(textwrap.fill(line, WIDTH, break_long_words=False) for line in more)]
    )


def _lines(group: Sequence[Entry]) -> str:
    """A table of one kind: key, doors, reference and title."""
    rows = [('key', 'doors', 'reference', 'title')]
    for entry in group:
        if (card := entry.card) is None:
            rows.append((entry.key, '', 'without a Card', _path(entry.build)))
            continue
        source = f'arXiv:{card.arxiv}' if card.arxiv else card.authors.split(',')[0]
        rows.append((card.key, _cut(card.door, 18), _cut(source, 16), card.title))
    widths = [max(len(cells[i]) for cells in rows) for i in range(3)]
    lines = [
        _cut('  '.join([*(f'{cell:{n}}' for cell, n in zip(cells, widths)), cells[3]]))
        for cells in rows
    ]
    heading = f'{HEADINGS[group[0].kind]} ({len(group)})'
    return '\n'.join([heading, *lines, f"catalog('{group[0].key}') shows one entry."])


def _cut(text: str, longest: int = WIDTH) -> str:
    return text if len(text) <= longest else f'{text[: longest - 1]}…'


def _page(entry: Entry) -> str:
    """One entry: what it is, how it is written, its promises, what was measured, and the paper."""
    card, build = entry.card, entry.build
    named = (
        ('in a spec', call_with_defaults(entry)) if entry.in_specs else ('in Python', _path(build))
    )
    supplied = [n for n, p in entry.parameters.items() if p.default is CONTEXT and n != 'rngs']
    of_card = lambda text: '' if card is None else text(card)
    lines = [
        ('what', ' '.join(summary(entry).split())),
        ('equation', of_card(lambda card: card.equation)),
        ('doors', of_card(lambda card: card.door)),
        named,
        ('arguments', bounds_text(entry)),
        ('from the model', ', '.join(supplied)),
        ('example', of_card(lambda card: card.example)),
        ('use when', of_card(lambda card: card.use_when)),
        ('promises', of_card(promise_text)),
        ('cost', measured.cost_text(measured.cost([entry.key]))),
        ('measured', ', '.join(f'{c.claim} {c.verdict}' for c in measured.claims_of(entry.key))),
        ('reference', of_card(lambda card: f'{card.title}, {reference_text(card)}')),
        ('more', f'help({_path(build)})'),
    ]
    heading = f'{entry.key}: {card.name if card else "without a Card"} ({entry.kind})'
    return '\n'.join([heading, *(line for own in lines for line in filled(*own))])


def _path(build) -> str:
    return f'{build.__module__}.{build.__qualname__}'


def filled(name: str, text: str, column: int = 16) -> list[str]:
    """Lines of a screen, with the name in a column of this width in front; none without a text."""
    margin: Any = _indented(' ' * (column + 2)) | {'initial_indent': f'  {name:{column}}'}
    return textwrap.wrap(' '.join(text.split()), WIDTH, **margin)


def _indented(margin: str) -> dict[str, Any]:
    return dict(initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)


def _html_table(group: Sequence[Entry]) -> str:
    cell = lambda text, tag: f'<{tag} style="text-align: left">{text}</{tag}>'
    lines = [''.join(cell(name, 'th') for name in COLUMNS)]
    for entry in group:
        if (card := entry.card) is None:
            lines.append(''.join(cell(text, 'td') for text in (entry.key, 'without a Card')))
            continue
        cells = [html.escape(text) for text in row(card)]
        for i in (COLUMNS.index(name) for name in ('key', 'equation', 'example')):
            cells[i] = f'<code>{cells[i]}</code>'
        if card.arxiv:
            cells[-1] = f'<a href="https://arxiv.org/abs/{card.arxiv}">{cells[-1]}</a>'
        lines.append(''.join(cell(text, 'td') for text in cells))
    rows = '\n'.join(f'<tr>{line}</tr>' for line in lines)
    heading = html.escape(f'{HEADINGS[group[0].kind]} ({len(group)})')
    return f'<details><summary>{heading}</summary>\n<table>\n{rows}\n</table></details>'
