"""The catalogue of registered methods, made from their Cards: a table, Markdown, and BibTeX."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from posenc_jax.language.catalog.cells import (
    COLUMNS,
    HEADINGS,
    KINDS,
    promise_text,
    reference_markdown,
    reference_text,
    row,
)
from posenc_jax.language.catalog.screen import Catalog, Entries
from posenc_jax.language.spec import Chain, Node, parse
from posenc_jax.protocol import index
from posenc_jax.protocol.encoding import PIPELINE
from posenc_jax.protocol.errors import SpecError, nearest, quoted
from posenc_jax.protocol.registry import Card, Entry, Kind, entries

__all__ = [
    'COLUMNS',
    'KINDS',
    'PICTURED',
    'Catalog',
    'bibtex',
    'catalog',
    'catalog_markdown',
    'cite',
    'markdown_table',
    'picture_name',
    'pictured',
    'promise_text',
    'reference_text',
]
__dir__ = __all__.copy

PICTURED: Mapping[Kind, str] = {  # kind -> what its pictures show
    'encoding': 'Logits by distance',
    'frequencies': 'Logits by distance',
    'extension': 'Logits by distance',
    'graph': 'Features of a small graph',
    'field': 'A fit of a picture',
}

_DOORS = (*PIPELINE, 'none')


def catalog(what: str | None = None) -> Catalog:
    """The Cards of all registered methods, of one kind, or of one key. What prints also has the
    methods that were registered without a Card.

    They print within 100 columns: all keys, a line for each method of the kind, or the whole entry.
    In a notebook they are tables. Within a kind they are ordered by their first door.

    Args:
      what: a kind, which is 'encoding', 'frequencies', 'extension', 'coordinates', 'graph',
        'field', 'mixer', 'cache', 'conversion' or 'analysis'; or the key of a method, such as
        'rope'; None for all kinds, in this order.

    Raises:
      SpecError: neither a kind nor a key; names the nearest ones.
      ModuleNotFoundError: the method needs an extra that is not installed; the message names it.

    Example:
      >>> [card.name for card in catalog('encoding') if card.key == 'alibi']
      ['ALiBi']
      >>> str(catalog('alibi')).splitlines()[0]
      'alibi: ALiBi (encoding)'
    """
    if what is None or what in KINDS:
        return Catalog([_of_kind(kind) for kind in KINDS if what in (None, kind)])
    index.load((kind, str(what)) for kind in KINDS)  # which says what is not installed
    everything = [entry for kind in KINDS for entry in entries(kind)]
    if found := [[entry] for entry in everything if entry.key == what]:
        return Entries(found)
    names = [*KINDS, *(entry.key for entry in everything)]
    raise SpecError(
        f'catalog: no kind and no method is {quoted(what)}; {nearest(str(what), names)}'
    )


def _of_kind(kind: Kind) -> list[Entry]:
    def place(entry):
        first = re.split(r'\W+', entry.card.door)[0] if entry.card else ''
        return _DOORS.index(first) if first in _DOORS else len(_DOORS)

    return sorted(entries(kind), key=lambda entry: (place(entry), entry.key))


def picture_name(kind: Kind, key: str) -> str:
    """The file of a method's small picture, in the folder of pictures."""
    return f'{kind}_{key}.png'


def pictured(entry: Entry) -> bool:
    """Whether a method has a small picture: of the kinds in `PICTURED`, what spec strings build."""
    return entry.kind in PICTURED and entry.in_specs


def catalog_markdown(
    kind: Kind | None = None,
    *,
    columns: tuple[str, ...] = COLUMNS,
    pictures: str = '',
    more: Mapping[str, Callable[[Entry], str]] | None = None,
    order: Callable[[Entry], Any] = lambda entry: 0,
) -> str:
    """The catalogue as Markdown tables, with one table for each kind of method.

    Args:
      kind: as for `catalog`.
      columns: names out of `COLUMNS`.
      pictures: folder of the pictures, relative to the page. If it is given, the tables of the
        kinds in `PICTURED` have a column of pictures.
      more: further columns: their names, and what makes the cell of a method. A kind whose cells
        are all empty has no such column.
      order: what the rows of a kind are sorted by; equal ones stay in the order of `catalog`.

    Raises:
      SpecError: a column that does not exist.
    """
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise SpecError(f'catalogue columns {unknown}; valid: {", ".join(map(repr, COLUMNS))}')
    shown = [COLUMNS.index(column) for column in columns]
    sections = []
    for k in KINDS:
        known = [entry for entry in _of_kind(k) if entry.card] if kind in (None, k) else []
        if not known:
            continue
        known.sort(key=order)
        rows = [[_markdown_row(card)[i] for i in shown] for entry in known if (card := entry.card)]
        names = list(columns)
        if pictures and k in PICTURED:
            names.insert(1, 'picture')
            for entry, row in zip(known, rows):
                file = f'{pictures}/{picture_name(k, entry.key)}'
                row.insert(1, f'![{entry.key}]({file})' if pictured(entry) else '')
        for name, cell in (more or {}).items():
            if any(cells := [cell(entry) for entry in known]):
                names.append(name)
                for row, text in zip(rows, cells):
                    row.append(text)
        heading = [] if kind else [f'**{HEADINGS[k]}**', '']
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
    key, name, door, equation, promises, example, _ = row(card)
    reference = reference_markdown(card)
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
    for entry in entries_of(parse(spec, KINDS)):
        if entry.card is not None:
            papers.setdefault(entry.card.arxiv or entry.card.title, bibtex(entry.card))
    return '\n\n'.join(papers.values())


def entries_of(value) -> Iterable[Entry]:
    if isinstance(value, Chain):
        for node in value.nodes:
            yield from entries_of(node)
    elif isinstance(value, Node):
        yield value.entry
        for argument in value.arguments.values():
            yield from entries_of(argument)


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
