"""Runs an experiment: trains, measures, prints tables and writes the results.

    python -m evidence.experiments NAME [GROUP] [--seeds 0 1 2] [--workdir DIR] ...

NAME is a file of this folder: one that declares runs (.toml), or a program (.py). `--help` behind a
name says what it has of its own. What is done already is not done again, so an experiment may be
stopped and started again. WORKDIR, by default runs/NAME or runs/NAME/GROUP, has a folder for each
evaluation of a sweep, most often `comparison`; of a program it has results.csv and results.png.
"""

import importlib
import pathlib
import re
import sys

from evidence.experiments import sweep
from posenc_jax.base import interrupts
from posenc_jax.base.programs import program
from posenc_jax.lab.files.command import Parser
from posenc_jax.protocol.errors import nearest


def names() -> list[str]:
    """The experiments of this folder."""
    folder = pathlib.Path(__file__).parent
    is_program = re.compile(r'^(PROGRAM = |def main\()', re.MULTILINE).search
    programs = [
        path
        for path in folder.glob('*.py')
        if path.stem != '__main__' and is_program(path.read_text())
    ]
    return sorted(path.stem for path in [*folder.glob('*.toml'), *programs])


def main() -> None:
    parser = Parser(program('experiments'), description=__doc__)
    own = parser.add_argument('name', metavar='NAME', help=', '.join(names()))
    name = parser.parse_args(sys.argv[1:2]).name
    if name not in names():
        parser.error(f'there is no experiment {name!r}; {nearest(name, names(), own.help)}')
    arguments, sweeps = sys.argv[2:], sweep.read(name)
    sys.argv[0] = name  # it stands in front of messages
    if not sweeps:
        module = importlib.import_module(f'evidence.experiments.{name}')
        getattr(module, 'PROGRAM', module).main(arguments)
        return
    first = [] if '' in sweeps else arguments[:1]
    group = first[0] if first else ''
    if group in ('-h', '--help'):
        print(next(iter(sweeps.values())).help)
    elif group not in sweeps:
        Parser(name).error(f'name a group first: {", ".join(sweeps)}')
    else:
        sweeps[group].main(arguments[len(first) :])


if __name__ == '__main__':
    interrupts.run('experiments', main)
