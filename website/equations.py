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
