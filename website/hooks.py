"""Hooks of mkdocs: pages made from the package and from files beside docs/, and a check that no
page asks another host for anything.
"""

import pathlib
import posixpath
import re
import sys

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Files of the repository that are pages of the site, by path below the folder of the site.
BESIDE = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
}
OWN = 'site.css', 'sort.js'  # files of this folder


def on_files(files, config):
    """Adds the pages that are not in docs/."""
    if str(ROOT) not in sys.path:  # the package need not be installed
        sys.path.insert(0, str(ROOT))
    from website import catalogue, notebooks, reference

    made = {**catalogue.pages(), **reference.pages(), **notebooks.pages()}
    for source, target in BESIDE.items():
        text = (ROOT / source).read_text(encoding='utf-8')
        made[target] = relinked(text, source)
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for name in OWN:
        text = (pathlib.Path(__file__).parent / name).read_text(encoding='utf-8')
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown, page, **_):
    """Points the links of a page in docs/ to the site, and makes the table of methods narrow."""
    if page.file.src_uri == 'catalog.md':
        from website.catalogue import without_equations

        page.meta['hide'] = ['toc']
        markdown = without_equations(markdown)
    if not page.file.generated_by:
        markdown = relinked(markdown, f'docs/{page.file.src_uri}')
    return with_bars(markdown)


def with_bars(markdown: str) -> str:
    """Code in tables without the backslash before a bar, which GitHub needs and the site shows.

    Example:
      >>> with_bars('| `a \\\\| b` | c \\\\| d |')
      '| `a | b` | c \\\\| d |'
    """
    code = lambda row: re.sub('`[^`]*`', lambda span: span[0].replace('\\|', '|'), row[0])
    return re.sub(r'^\|.*$', code, markdown, flags=re.M)


def on_post_page(output, page, **_):
    """Refuses a page that would load something from another host when it is opened."""
    loaded = re.findall(
        r'<(?:script|img|iframe|link|source)\b[^>]*(?:src|href)="((?:https?:)?//[^"]*)"', output
    )
    if loaded:
        raise PluginError(f'{page.file.src_uri} loads {loaded[0]} from another host')
    return output


def relinked(text: str, source: str) -> str:
    """The Markdown of a file of the repository with its relative links as the site needs them.

    Args:
      text: Markdown.
      source: path of the file below the root of the repository.

    Example:
      >>> relinked('[a](../README.md#top) [b](guides/x.md)', 'docs/usage.md')
      '[a](index.md#top) [b](guides/x.md)'
      >>> relinked('[a](docs/usage.md) [b](notebooks/compare.ipynb)', 'README.md')
      '[a](usage.md) [b](notebooks/compare.md)'
    """
    here = BESIDE.get(source, source.removeprefix('docs/'))

    def link(match):
        path, anchor = match[1], match[2] or ''
        found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        target = BESIDE.get(found, found.removeprefix('docs/')).replace('.ipynb', '.md')
        return f']({posixpath.relpath(target, posixpath.dirname(here) or ".")}{anchor})'

    return re.sub(r'\]\((?![a-z]+:|#|/)([^)#\s]+)(#[^)\s]*)?\)', link, text)
