"""Pages of the catalogue, one for each kind of method, and the table from papers to commands."""

import html
import re
from typing import Any

from posenc_jax.lab.catalogue.columns import MORE, by_family
from posenc_jax.language.catalog import (
    COLUMNS,
    KINDS,
    PICTURED,
    catalog,
    catalog_markdown,
    markdown_table,
    picture_name,
    pictured,
    promise_text,
    reference_text,
)
from posenc_jax.language.catalog.cells import (
    HEADINGS,
    bounds_text,
    call_with_defaults,
    reference_markdown,
    summary,
)
from posenc_jax.protocol.registry import Card, Entry, Kind, lookup
from website.commands import command
from website.equations import equation, mathml, parts, with_formulas

NOTATION = (
    r'$i$ is the query and $j$ the key, and also their positions where nothing else is said; both '
    r'count from 0. $q_i$, $k_j$ and $v_j$ are the query, key and value of a head, $\ell_{ij}$ is '
    r'its logit, $a_{ij}$ the softmax of the logits over $j$, and $o_i$ the output. A tilde marks '
    r'a vector after the encoding. $x_t$ is a token vector, $[x, y]$ joins two vectors, and '
    r'$\odot$ multiplies them entry by entry. $H$ is the width of a head, $D$ that of the model, '
    r'$N$ the number of heads, $h = 1, \dots, N$ a head, and $L$ the trained length. '
    r'$\theta_t = b^{-2t/H}$ is the frequency of plane $t = 0, 1, \dots$ with the base $b$, and '
    r'$R(\varphi)$ turns each plane by its angle; if a part of the head is rotated, $H$ is the '
    r'width of that part.'
)
# That of the pages on which there is no attention.
SHORT = (
    r'$[x, y]$ joins two vectors, $\odot$ multiplies them entry by entry, and $N(m, s^2)$ is the '
    r'normal distribution. The other symbols are explained below each equation.'
)
INTRODUCTION = """
The entries are in the order in which a layer calls their first doors. *With defaults* shows all
arguments that a spec string may have; the model gives the others. The other columns and the
promises are explained above the [table of all methods](../catalog.md).
"""


def pages() -> dict[str, str]:
    """Path below the folder of the site, and Markdown, of all pages of the catalogue."""
    made = {f'methods/{kind}.md': kind_page(kind) for kind in KINDS}
    return {**made, 'methods/papers.md': papers_page()}


def without_equations(markdown: str) -> str:
    """The page docs/catalog.md without the column of equations, which makes its tables too wide for
    the site; every key links to its entry, which has the equation.

    Raises:
      ValueError: the page does not have the tables that `posenc_jax.language.catalog` makes.
    """
    columns = tuple(column for column in COLUMNS if column != 'equation')
    explained = '| equation | one line in the symbols of the paper |\n'
    changes = {explained: ''}
    given: dict[str, Any] = dict(pictures='catalog', more=MORE, order=by_family)
    for kind in KINDS:
        narrow = catalog_markdown(kind, columns=columns, **given)
        linked = re.sub(r'^\| `(\w+)`', rf'| [`\1`](methods/{kind}.md#\1)', narrow, flags=re.M)
        wrapped = f'<div class="methods" markdown>\n\n{linked}\n</div>\n'
        changes[catalog_markdown(kind, **given)] = wrapped
    for found, wanted in changes.items():
        if markdown.count(found) != 1:
            raise ValueError(
                'docs/catalog.md is not up to date; run python -m posenc_jax.lab.catalogue'
            )
        markdown = markdown.replace(found, wanted)
    keys = "and in the registry, also of the method's file and test file |"
    return markdown.replace(keys, f'{keys[:-2]}; it leads to the equation |')


def kind_page(kind: Kind) -> str:
    """The page of a kind: one entry for each method."""
    lines = [f'# {HEADINGS[kind]}', INTRODUCTION]
    notation = SHORT if kind in ('coordinates', 'graph', 'field') else NOTATION
    lines += [f'<div class="notation"><p>{with_formulas(notation)}</p></div>', '']
    lines += [_entry(lookup(card.key, (kind,)), card) for card in catalog(kind)]
    return '\n'.join(lines)


def _entry(entry: Entry, card: Card) -> str:
    code = lambda text: f'<code>{html.escape(text, quote=False)}</code>'
    rows = {
        'paper': f'{html.escape(card.title)}. {html.escape(short_authors(card))}, {_link(card)}',
        'spec': code(card.example),
        'with defaults': code(call_with_defaults(entry)) if entry.parameters else '',
        'arguments': html.escape(bounds_text(entry)) if entry.parameters else '',
        'doors': html.escape(card.door),
        'promises': promise_text(card) if entry.kind in ('encoding', 'extension') else '',
        'command': code(command(entry)) if command(entry) != card.example else '',
    }
    table = ''.join(
        f'<tr><th>{name}</th><td>{cell}</td></tr>' for name, cell in rows.items() if cell
    )
    parts = [f'## {card.name} {{ #{card.key} }}', '', summary(entry), '', _equation(card)]
    if pictured(entry):
        source = f'../catalog/{picture_name(entry.kind, card.key)}'
        parts += ['', f'![{card.name}. {PICTURED[entry.kind]}]({source}){{ loading=lazy }}']
    return '\n'.join([*parts, '', f'<table class="card"><tbody>{table}</tbody></table>', ''])


def _equation(card: Card) -> str:
    """The formula of a method and what its symbols mean, as HTML."""
    found = equation(card.key)
    formulas = ''.join(mathml(part, display=True) for part in parts(found['tex']))
    where = with_formulas(found['where'])
    return f'<div class="equation"><div>{formulas}</div><p>{where}</p></div>'


def _link(card: Card) -> str:
    text = reference_text(card)
    if card.arxiv:
        return f'<a href="https://arxiv.org/abs/{card.arxiv}">{text}</a>'
    return html.escape(text)


def short_authors(card: Card) -> str:
    """The first author, and 'et al.' if there are several.

    Example:
      >>> short_authors(lookup('rope', ('encoding',)).card)
      'Su et al.'
    """
    first, *others = card.authors.split(' and ')
    return first.split(',')[0] + (' et al.' if others else '')


def papers_page() -> str:
    """The table from papers to spec strings and commands."""
    code = lambda text: '`' + text.replace('|', '\\|') + '`'
    rows = []
    for kind in KINDS:
        for card in catalog(kind):
            line = command(lookup(card.key, (kind,)))
            link = f'[{card.name}]({kind}.md#{card.key})'
            rows.append((card.year, _paper(card), link, code(card.example), code(line)))
    rows = [row[1:] for row in sorted(rows)]
    table = markdown_table(('paper', 'method', 'spec', 'command'), rows)
    return f'{PAPERS}<div class="papers" markdown>\n\n{table}\n\n</div>\n'


def _paper(card: Card) -> str:
    return f'{card.title}, {reference_markdown(card)}'.replace('|', '\\|')


PAPERS = """---
hide: [toc]
---

# From papers to commands

The table has one row for each method of a paper. It is made from the Cards of the methods.

- Encodings and layers are trained in a small model. Sizes in the spec strings are small, too; the
  defaults of the library are the sizes of the papers.
- Frequency rules and extensions are applied to a run that is trained already, here the run that
  `python train.py --config=configs/quickstart.py` makes with `rope()`, or with the encoding in the
  name of the run. Other runs and public checkpoints take the place of its name.
- `python -m evidence.claims` measures claims of a paper: it trains and evaluates what the claim
  compares. [The ledger of claims](../claims.md) has the results.
- A call without `python` in front is one in Python.

"""
