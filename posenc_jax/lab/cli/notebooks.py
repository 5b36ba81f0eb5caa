"""Writes the notebooks of the library into a folder, so that Jupyter can open them.

    posenc-notebooks [NAME...] [--out=DIR]

Without a name all notebooks are written, into the working directory. They run with the installed
package and need no address. A file that exists is left as it is.
"""

import pathlib
import shutil
import sys

from posenc_jax.base import interrupts
from posenc_jax.base.programs import WRONG_INPUT, program
from posenc_jax.lab.files import repository
from posenc_jax.lab.files.command import Parser, in_line
from posenc_jax.protocol.errors import check_choice

NAME = 'posenc_jax.lab.cli.notebooks'


def main(argv: list[str] | None = None) -> int:
    found = {path.stem: path for path in sorted((repository.ROOT / 'notebooks').glob('*.ipynb'))}
    parser = Parser(program(NAME), description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(found))
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path(), metavar='DIR')
    known = parser.parse_args(argv)
    try:
        names = [check_choice('the notebook', name, found) for name in known.names] or list(found)
        for name in names:
            if (known.out / f'{name}.ipynb').exists():
                path = known.out / f'{name}.ipynb'
                raise FileExistsError(f'{path} exists already; give another folder by --out=DIR')
        known.out.mkdir(parents=True, exist_ok=True)
        for name in names:
            print(shutil.copyfile(found[name], known.out / f'{name}.ipynb'))
    except (ValueError, OSError) as error:
        print(f'{program(NAME)}: {in_line(error)}', file=sys.stderr)
        return WRONG_INPUT
    return 0


if __name__ == '__main__':
    sys.exit(interrupts.run(NAME, main))
