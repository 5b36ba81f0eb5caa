"""Reads docs/catalog/equations.toml and turns its TeX into MathML, which browsers draw by
themselves, so that a page needs no script and no font of another host.
"""

import functools
import html
import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


@functools.cache
def equations() -> dict[str, dict[str, str]]:
    """By key of the method, `tex` and `where`, a sentence that explains the symbols in it."""
    path = ROOT / 'docs' / 'catalog' / 'equations.toml'
    return tomllib.loads(path.read_text(encoding='utf-8'))


def equation(key: str) -> dict[str, str]:
    """The entry of one method.

    Raises:
      ValueError: it has none.
    """
    if key not in equations():
        raise ValueError(f'docs/catalog/equations.toml has no equation of {key!r}')
    return equations()[key]


def mathml(tex: str, *, display: bool = False) -> str:
    """A formula as a MathML element.

    Raises:
      ValueError: a command of TeX is not known to the converter, which would leave it as text.
    """
    from latex2mathml.converter import convert

    made = convert(tex, display='block' if display else 'inline')
    shown = html.unescape(re.sub('<[^>]*>', ' ', made))
    if left := re.findall(r'\\\w+', shown):
        raise ValueError(f'{tex!r}: {", ".join(left)} cannot be converted to MathML')
    return made


def parts(tex: str) -> list[str]:
    """The formulas of an equation, which `,\\quad` separates outside brackets, so that each
    can have a line of its own where the page is narrow.

    Example:
      >>> parts(r'a = b,\\quad \\left( c,\\quad d \\right)')
      ['a = b,', '\\\\left( c,\\\\quad d \\\\right)']
    """
    found, depth, start = [], 0, 0
    for token in re.finditer(r'\\(?:left|begin|right|end)\b|,\\quad\b|\\[{}]|[{}]', tex):
        if token[0] in ('{', r'\left', r'\begin'):
            depth += 1
        elif token[0] in ('}', r'\right', r'\end'):
            depth -= 1
        elif token[0] == r',\quad' and not depth:
            found.append(tex[start : token.start() + 1])
            start = token.end()
    return [part.strip() for part in (*found, tex[start:])]


def with_formulas(text: str) -> str:
    """A sentence as HTML, in which `$...$` has become MathML and the rest is escaped.

    Raises:
      ValueError: a `$` has no partner, or a formula cannot be converted.
    """
    pieces = text.split('$')
    if len(pieces) % 2 == 0:
        raise ValueError(f'a formula does not end: {text!r}')
    return ''.join(
        mathml(piece) if number % 2 else html.escape(piece, quote=False)
        for number, piece in enumerate(pieces)
    )
