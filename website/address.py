"""Writes the address of the repository wherever it stands.

    python -m website.address https://example.org/posenc_jax

`Repository` in [project.urls] of pyproject.toml is the address, and pip shows it. The texts that
tell how to install the package from it, and the first cells of the notebooks, repeat it, so that
they can be copied and run. Before an address is known they say `<this repository>` and ''.
"""

import pathlib
import re
import sys
import tomllib
import urllib.parse

ROOT = pathlib.Path(__file__).parents[1]
UNKNOWN = '<this repository>'
TEXTS = 'README.md', 'docs/usage.md'
# File -> the pattern of what stands there, in three groups: before the address, itself, after it.
IN_PROJECT = re.compile(r'(\[project\.urls\]\n)(?:# )?(Repository = "[^"]*")()')
IN_TEXTS = re.compile(r'(git\+)(<this repository>|[^\s\'"`#)]+)()')
IN_NOTEBOOKS = re.compile(r"(REPOSITORY = ')([^']*)(')")


def places(root: pathlib.Path = ROOT) -> dict[pathlib.Path, re.Pattern[str]]:
    """The files that have the address, apart from pyproject.toml."""
    texts = {root / name: IN_TEXTS for name in TEXTS}
    return texts | {path: IN_NOTEBOOKS for path in sorted((root / 'notebooks').glob('*.ipynb'))}


def address(root: pathlib.Path = ROOT) -> str:
    """The address in pyproject.toml; '' if there is none."""
    project = tomllib.loads((root / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    return project['urls'].get('Repository', '')


def write(url: str, root: pathlib.Path = ROOT) -> list[pathlib.Path]:
    """Writes an address into all places, and returns the files.

    Raises:
      ValueError: it is no web address; a file has no place for it.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ('http', 'https') or not parts.netloc or re.search(r'[\s\'"<>#?]', url):
        raise ValueError(f'expected an address like https://example.org/posenc_jax, got {url!r}')
    files = {root / 'pyproject.toml': IN_PROJECT, **places(root)}
    made = {}
    for path, pattern in files.items():
        new = f'Repository = "{url}"' if pattern is IN_PROJECT else url
        replaced = lambda found, new=new: f'{found[1]}{new}{found[3]}'
        made[path], count = pattern.subn(replaced, path.read_text(encoding='utf-8'))
        if not count:
            raise ValueError(f'{path} has no place for the address')
    for path, text in made.items():
        path.write_text(text, encoding='utf-8')
    return list(made)


if __name__ == '__main__':
    try:
        (given,) = sys.argv[1:]
        print(*(path.relative_to(ROOT) for path in write(given)), sep='\n')
    except ValueError as error:
        wrong = error if len(sys.argv) == 2 else f'expected one address, got {len(sys.argv) - 1}'
        print(f'website.address: {wrong}', file=sys.stderr)
        sys.exit(2)
