"""The page beside the pictures of an evaluation, which says what draws each of them again."""

import pathlib
import shlex
from collections.abc import Sequence

from posenc_jax.base.programs import printable, program
from posenc_jax.lab.evaluate.run_pictures import PICTURES
from posenc_jax.lab.files import disk

PAGE = 'pictures.md'


def command(directory: pathlib.Path) -> str:
    """What draws pictures again from the results in a folder."""
    return f'{evaluator()} --also={shlex.quote(str(directory))}'


def evaluator() -> str:
    """The command that evaluates: that of pip if such a command runs, otherwise the file."""
    return 'posenc-eval' if program('').startswith('posenc-') else 'python eval.py'


def write(pictures: Sequence[pathlib.Path], evaluation: str) -> pathlib.Path:
    """Writes the page.

    Args:
      pictures: in one folder, which gets the page.
      evaluation: the command that evaluated. It draws the pictures of single runs again, since the
        results do not keep what these show.
    """
    directory, parts = pictures[0].parent, ['# Pictures of this evaluation']
    for path in pictures:
        of_run = path.stem.partition('_')[0] in PICTURES
        again = evaluation if of_run else command(directory)
        parts += [f'![{path.stem}]({path.name})', f'Drawn again by `{printable(again)}`.']
    disk.write(directory / PAGE, '\n\n'.join(parts) + '\n')
    return directory / PAGE
