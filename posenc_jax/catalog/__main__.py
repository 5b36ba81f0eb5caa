"""Writes docs/catalog.md, its pictures and the table in README.md, or checks them.

    python -m posenc_jax.catalog [--check] [--redraw]

Only pictures that are missing are drawn, unless all are asked for: they differ between versions of
the plotting library.
"""

import difflib
import sys
from pathlib import Path

from posenc_jax.catalog import PICTURED, catalog, catalog_markdown, picture_name
from posenc_jax.core import disk
from posenc_jax.core.command import Parser
from posenc_jax.core.registry import Card, Kind, SpecError

BEGIN, END = '<!-- catalog:begin -->', '<!-- catalog:end -->'
README_COLUMNS = ('key', 'name', 'door', 'example', 'reference')
PICTURES = 'catalog'
HEADER = """# Catalogue

Written by `python -m posenc_jax.catalog` from the Cards; do not edit. What each promise means,
and which test checks it, stands in `Promises` (`posenc_jax/core/registry.py`) and
`tests/contract_test.py`. The pictures show the example with its parameters as initialised: the
logits of equal tokens against their distance, up to four times the trained length (dashed), a line
for each head (dark: the first); extensions act on `rope()` or, where they need something else, on
`alibi()`, `nope()` or `learned_absolute()`. `python -m posenc_jax.gallery SPEC...` draws any
encoding larger.

"""


def rendered(root: Path) -> dict[Path, str]:
    """What the generated files ought to hold, by path.

    Raises:
      ValueError: README.md has lost its markers.
    """
    readme = root / 'README.md'
    text = readme.read_text(encoding='utf-8')
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f'{readme} needs the markers {BEGIN} and {END}, once each and in this order'
        )
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    return {
        readme: f'{before}\n{catalog_markdown(columns=README_COLUMNS)}{after}',
        root / 'docs' / 'catalog.md': HEADER + catalog_markdown(pictures=PICTURES),
    }


def draw(kind: Kind, card: Card, path: Path) -> None:
    """The small picture of one method; an example that needs narrow heads gets them."""
    from posenc_jax.extension import extend
    from posenc_jax.gallery import Probe, thumbnail

    bases = (
        ('rope()', 'alibi()', 'nope()', 'learned_absolute(max_len=64)')
        if kind == 'extension'
        else (None,)
    )
    for base, width in [(base, width) for base in bases for width in (64, 8)]:
        probe = Probe(head_dim=width)
        try:
            if base is None:
                encoding = probe.make(card.example)
            else:
                encoding = extend(probe.make(base), card.example, **probe.context)
        except SpecError as error:
            refused = error
            continue
        thumbnail(encoding, path, probe)
        return
    raise refused


def main(arguments: list[str] | None = None, root: Path = Path(__file__).parents[2]) -> int:
    """Writes the files; with --check writes nothing, prints how they differ and returns 1 where
    they do.
    """
    parser = Parser(prog='python -m posenc_jax.catalog', description=__doc__.splitlines()[0])
    parser.add_argument(
        '--check', action='store_true', help='report what is out of date instead of writing'
    )
    parser.add_argument('--redraw', action='store_true', help='draw every picture anew')
    known = parser.parse_args(arguments)
    check, stale = known.check, 0
    for kind in PICTURED:
        for card in catalog(kind):
            path = root / 'docs' / PICTURES / picture_name(kind, card.key)
            if path.exists() and not known.redraw:
                continue
            stale = 1
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                draw(kind, card, path)
            print(f'{path} is missing' if check else f'wrote {path}')
    for path, wanted in rendered(root).items():
        found = path.read_text(encoding='utf-8') if path.exists() else ''
        if found == wanted:
            continue
        stale = 1
        if check:
            lines = difflib.unified_diff(
                found.splitlines(), wanted.splitlines(), str(path), 'generated', lineterm='', n=0
            )
            print('\n'.join(lines))
        else:
            disk.write(path, wanted)
            print(f'wrote {path}')
    return stale if check else 0


if __name__ == '__main__':
    sys.exit(main())
