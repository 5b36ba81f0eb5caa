"""The catalogue of registered methods, made from their Cards: a table, Markdown, and BibTeX."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence

from posenc_jax.core.registry import NAMED_ONLY, Card, Entry, Kind, SpecError, entries
from posenc_jax.core.spec import Chain, Node, parse

KINDS: tuple[Kind, ...] = (
    'encoding',
    'frequencies',
    'extension',
    'coordinates',
    'graph',
    'field',
    'mixer',
    *NAMED_ONLY,
)
COLUMNS = ('key', 'name', 'door', 'equation', 'promises', 'example', 'reference')
PICTURED: tuple[Kind, ...] = ('encoding', 'frequencies', 'extension')

_PIPELINE = ('place', 'embed', 'qkv', 'project', 'match', 'score', 'mask', 'collect', 'none')
_HEADINGS = {
    'encoding': 'Encodings',
    'frequencies': 'Frequency rules, for `freqs=` of a rotary encoding',
    'extension': 'Extensions, which turn an encoding into another encoding',
    'coordinates': 'Encoders of coordinates',
    'graph': 'Encoders of graphs, and codes of their nodes and edges',
    'field': 'Fields: networks from coordinates, or their features, to values',
    'mixer': 'Mixers, which replace attention',
    'cache': 'Caches: methods that edit, join, shorten or read a decode cache',
    'conversion': 'Conversions, which turn a model into another model',
    'analysis': 'Analyses of a model or an encoding',
}


class Catalog(tuple[Card, ...]):
    """Cards that print as a table."""

    def __str__(self):
        rows = [COLUMNS, *(_row(card) for card in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines = [
            '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows
        ]
        return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__


def catalog(kind: Kind | None = None) -> Catalog:
    """The Cards of all registered methods, ordered by their first door; they print as a table.

    Args:
      kind: 'encoding', 'frequencies', 'extension', 'coordinates', 'graph', 'field', 'mixer',
        'cache', 'conversion' or 'analysis'; None for all kinds, in this order.

    Raises:
      SpecError: another kind.

    Example:
      >>> [card.name for card in catalog('encoding') if card.key == 'alibi']
      ['ALiBi']
    """
    if kind is not None and kind not in KINDS:
        raise SpecError(f'catalog kind is {kind!r}; valid: {", ".join(map(repr, KINDS))}')
    return Catalog(card for k in KINDS if kind in (None, k) for card in _cards(k))


def _cards(kind: Kind) -> list[Card]:
    def place(card):
        first = re.split(r'\W+', card.door)[0]
        return _PIPELINE.index(first) if first in _PIPELINE else len(_PIPELINE)

    return sorted(
        (entry.card for entry in entries(kind) if entry.card is not None),
        key=lambda card: (place(card), card.key),
    )


def _row(card: Card) -> tuple[str, ...]:
    return (
        card.key,
        card.name,
        card.door,
        card.equation,
        promise_text(card),
        card.example,
        reference_text(card),
    )


def promise_text(card: Card) -> str:
    """The promises of a Card as words. `cached` is named only if a cache does not keep the keys as
    encoded, which is the default.

    Example:
      >>> import posenc_jax as pj
      >>> promise_text(pj.make('nope()').card)
      'relative, sweep free, blockwise, fused'
    """
    made = [
        field.name
        for field in dataclasses.fields(card.promises)
        if getattr(card.promises, field.name) is True
    ]
    made += [f'cached {card.promises.cached}'] if card.promises.cached != 'encoded' else []
    return ', '.join(name.replace('_', ' ') for name in made)


def reference_text(card: Card) -> str:
    """The reference of a method: `arXiv:2108.12409 (2022)`, or its source if there is no paper."""
    return f'arXiv:{card.arxiv} ({card.year})' if card.arxiv else f'{card.source} ({card.year})'


def picture_name(kind: Kind, key: str) -> str:
    """The file of a method's small picture, in the folder of pictures."""
    return f'{kind}_{key}.png'


def catalog_markdown(
    kind: Kind | None = None, *, columns: tuple[str, ...] = COLUMNS, pictures: str = ''
) -> str:
    """The catalogue as Markdown tables, with one table for each kind of method.

    Args:
      kind: as for `catalog`.
      columns: names out of `COLUMNS`.
      pictures: folder of the pictures, relative to the page. If it is given, the tables of the
        kinds in `PICTURED` have a column of pictures.

    Raises:
      SpecError: a column that does not exist.
    """
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise SpecError(f'catalogue columns {unknown}; valid: {", ".join(map(repr, COLUMNS))}')
    shown = [COLUMNS.index(column) for column in columns]
    sections = []
    for k in KINDS:
        cards = catalog(k) if kind in (None, k) else ()
        if not cards:
            continue
        rows = [[_markdown_row(card)[i] for i in shown] for card in cards]
        names = list(columns)
        if pictures and k in PICTURED:
            names.insert(1, 'picture')
            for card, row in zip(cards, rows):
                row.insert(1, f'![{card.key}]({pictures}/{picture_name(k, card.key)})')
        heading = [] if kind else [f'**{_HEADINGS[k]}**', '']
        sections.append('\n'.join([*heading, markdown_table(names, rows)]))
    return '\n\n'.join(sections) + '\n'


def markdown_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a `|` in a cell must be written as `\\|`.

    Example:
      >>> print(markdown_table(['a', 'b'], [('1', '2')]))
      | a | b |
      | --- | --- |
      | 1 | 2 |
    """
    lines = [f'| {" | ".join(row)} |' for row in [names, *rows]]
    lines.insert(1, '|' + ' --- |' * len(names))
    return '\n'.join(lines)


def _markdown_row(card: Card) -> tuple[str, ...]:
    code = lambda text: '`' + text.replace('|', '\\|') + '`'
    key, name, door, equation, promises, example, reference = _row(card)
    if card.arxiv:
        reference = f'[{reference}](https://arxiv.org/abs/{card.arxiv})'
    return code(key), name, door, code(equation), promises, code(example), reference


def cite(spec: str) -> str:
    """BibTeX of every paper behind a spec string, each paper once: those of its encodings, masks,
    frequency rules and extensions.

    Raises:
      SpecError: the string is wrong.

    Example:
      >>> print(cite('alibi()').splitlines()[0])
      @misc{press2022alibi,
    """
    papers: dict[str, str] = {}
    for entry in _entries_of(parse(spec, KINDS)):
        if entry.card is not None:
            papers.setdefault(entry.card.arxiv or entry.card.title, bibtex(entry.card))
    return '\n\n'.join(papers.values())


def _entries_of(value) -> Iterable[Entry]:
    if isinstance(value, Chain):
        for node in value.nodes:
            yield from _entries_of(node)
    elif isinstance(value, Node):
        yield value.entry
        for argument in value.arguments.values():
            yield from _entries_of(argument)


def bibtex(card: Card) -> str:
    """The BibTeX entry of one method; a method without an arXiv number is cited by its source."""
    surname = unicodedata.normalize('NFKD', card.authors.split(',')[0])
    label = re.sub('[^a-z]', '', surname.lower()) + f'{card.year}{card.key}'
    escape = lambda text: re.sub(r'([&%$#_])', r'\\\1', text)
    where = (
        {'eprint': card.arxiv, 'archivePrefix': 'arXiv'}
        if card.arxiv
        else {'howpublished': escape(card.source)}
    )
    fields = {
        'title': '{' + escape(card.title) + '}',
        'author': escape(card.authors),
        'year': str(card.year),
        **where,
    }
    return (
        f'@misc{{{label},\n'
        + ''.join(f'  {name} = {{{text}}},\n' for name, text in fields.items())
        + '}'
    )
