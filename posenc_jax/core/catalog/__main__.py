"""`python -m posenc_jax.core.catalog [--check]`: writes docs/catalog.md and the table in README.md, or checks them."""

import argparse
import difflib
import sys
from pathlib import Path

import posenc_jax  # noqa: F401  (registers every method)
from posenc_jax.core.catalog import catalog_markdown

BEGIN, END = '<!-- catalog:begin -->', '<!-- catalog:end -->'
README_COLUMNS = ('key', 'name', 'door', 'example', 'reference')
HEADER = """# Catalogue

Written by `python -m posenc_jax.core.catalog` from the Cards; do not edit. What each promise means, and which test
checks it, stands in `Promises` (`posenc_jax/core/registry.py`) and `tests/contract_test.py`.

"""


def rendered(root: Path) -> dict[Path, str]:
    """What the generated files ought to hold, by path.

    Raises:
      ValueError: README.md has lost its markers.
    """
    readme = root / 'README.md'
    text = readme.read_text(encoding='utf-8')
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f'{readme} needs the markers {BEGIN} and {END}, once each and in this order')
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    return {
        readme: f'{before}\n{catalog_markdown(columns=README_COLUMNS)}{after}',
        root / 'docs' / 'catalog.md': HEADER + catalog_markdown(),
    }


def main(arguments: list[str] | None = None, root: Path = Path(__file__).parents[3]) -> int:
    """Writes the files; with --check writes nothing, prints how they differ and returns 1 where they do."""
    parser = argparse.ArgumentParser(prog='python -m posenc_jax.core.catalog', description=__doc__)
    parser.add_argument('--check', action='store_true', help='report what is out of date instead of writing')
    check = parser.parse_args(arguments).check
    stale = 0
    for path, wanted in rendered(root).items():
        found = path.read_text(encoding='utf-8') if path.exists() else ''
        if found == wanted:
            continue
        stale = 1
        if check:
            lines = difflib.unified_diff(found.splitlines(), wanted.splitlines(), str(path), 'generated', lineterm='', n=0)
            print('\n'.join(lines))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted, encoding='utf-8')
            print(f'wrote {path}')
    return stale if check else 0


if __name__ == '__main__':
    sys.exit(main())
