"""The lines below pictures of docs/ that say which command draws them."""

import pathlib
import posixpath
import re
import tomllib

COMMANDS = tomllib.loads(pathlib.Path(__file__).with_suffix('.toml').read_text(encoding='utf-8'))
_BEGIN = 'Drawn by `'
_OLDER = (
    ' An earlier version of the program drew it, with bands where four or more curves now have bars'
    ' and with the middle of long names left out.'
)


def pages(docs: pathlib.Path) -> list[pathlib.Path]:
    """The pages below docs/ whose pictures were measured, and that are not written as a whole."""
    return sorted(docs.glob('results/*.md')) + sorted(docs.glob('guides/results.md'))


def caption(file: str) -> str:
    """The line below a picture.

    Args:
      file: its path below docs/.

    Raises:
      ValueError: pictures.toml has neither the file nor its folder.

    Example:
      >>> caption('claims/mixers.png')
      'Drawn by `python -m evidence.claims`.'
    """
    found = COMMANDS.get(file) or COMMANDS.get(posixpath.dirname(file))
    if found is None:
        raise ValueError(f'{file}: evidence/claims/pictures.toml has no command that draws it')
    again = f', and again by `python eval.py --also={found["kept"]}`' if 'kept' in found else ''
    return f'{_BEGIN}{found["by"]}`{again}.{_OLDER if found.get("older") else ""}'


def captioned(markdown: str, folder: str = '') -> str:
    """A page with its captions, each below a picture that stands on a line of its own.

    Args:
      markdown: the page, with captions or without.
      folder: of the page below docs/.
    """
    plain = re.sub(rf'^(!\[.*\]\(\S+\.png\)\n)\n{_BEGIN}.*\n+', r'\1\n', markdown, flags=re.M)

    def shown(match):
        file = posixpath.normpath(posixpath.join(folder, match[2]))
        return f'{match[1]}\n\n{caption(file)}\n\n'

    page = re.sub(r'^(!\[.*\]\((\S+\.png)\))(?:\n+|\Z)', shown, plain, flags=re.M)
    return page.rstrip('\n') + '\n'
