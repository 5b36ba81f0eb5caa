"""The commands that pip installs, `posenc-NAME`; the table in `pyproject.toml` names them.

A command imports its program, which is in the laboratory, when it is called. So it can say which
extra brings a library that is not installed.
"""

import importlib
import sys
from collections.abc import Callable

from posenc_jax.base import extras, interrupts
from posenc_jax.base.programs import WRONG_INPUT, program


def _command(module: str, name: str) -> Callable[[], int | None]:
    """A command that calls `main()` of a module; `name` is the program's name in messages where
    no installed command started it.
    """

    def run() -> int | None:
        try:
            return interrupts.run(name, lambda: importlib.import_module(module).main())
        except ModuleNotFoundError as error:
            if (said := extras.reason(error)) is None:
                raise
            print(f'{program(name)}: {said}', file=sys.stderr)
            return WRONG_INPUT

    return run


train = _command('posenc_jax.lab.cli.train', 'train.py')
evaluate = _command('posenc_jax.lab.cli.eval', 'eval.py')
generate = _command('posenc_jax.lab.cli.generate', 'generate')
search = _command('posenc_jax.lab.longrope_search.__main__', 'longrope search')
gallery = _command('posenc_jax.lab.cli.gallery', 'posenc_jax.lab.cli.gallery')
catalog = _command('posenc_jax.lab.catalogue.__main__', 'posenc_jax.lab.catalogue')
analysis = _command('posenc_jax.lab.analyse.__main__', 'posenc_jax.lab.analyse')
notebooks = _command('posenc_jax.lab.cli.notebooks', 'posenc_jax.lab.cli.notebooks')
