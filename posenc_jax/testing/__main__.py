"""Checks that encodings keep the laws of attention.

    python -m posenc_jax.testing SPEC... [--import=MODULE] [--laws=shapes,decoding]

Each encoding string gets a line with the laws that hold, after half a minute. A broken law ends the
program with the law and the largest difference, and status 1. In a terminal each law is named when
its check begins.
"""

import argparse
import importlib
import importlib.util
import pathlib
import sys

from posenc_jax.base import interrupts
from posenc_jax.base.programs import printable
from posenc_jax.protocol.errors import near
from posenc_jax.testing.compare import BrokenLaw
from posenc_jax.testing.run import check


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        'posenc_jax.testing', description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('specs', nargs='+', metavar='SPEC', help="encoding string, e.g. 'rope()'")
    parser.add_argument(
        '--laws', type=lambda text: text.split(','), default=(), help='laws to check; default: all'
    )
    parser.add_argument(
        '--import', dest='modules', action='append', default=[], metavar='MODULE',
        help='a Python file, or an installed module, that registers encodings; may be repeated',
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        for module in arguments.modules:
            _load(module)
        for spec in arguments.specs:
            print(check(spec, laws=arguments.laws, begun=_name), flush=True)
    except (BrokenLaw, ValueError, OSError, ImportError) as error:
        print(f'posenc_jax.testing: {printable(error)}', file=sys.stderr)
        return 1 if isinstance(error, BrokenLaw) else 2
    return 0


def _load(module: str) -> None:
    """Executes a module, which the command line names.

    Raises:
      ValueError: there is no such file; it has the name of another module; a module raises an
        error.
    """
    name = pathlib.Path(module).stem if module.endswith('.py') else module
    if module.endswith('.py') and not (file := pathlib.Path(module)).is_file():
        found = near(file.name, [path.name for path in file.parent.glob('*.py')])
        like = f'; did you mean {file.with_name(found[0])}?' if found else ''
        raise ValueError(f'--import: {module} does not exist{like}')
    try:
        if not module.endswith('.py'):
            importlib.import_module(module)
            return
        other = importlib.util.find_spec(name)  # this file, if it is in the working directory
        if other and pathlib.Path(other.origin or '').resolve() != pathlib.Path(module).resolve():
            raise ValueError(f'{module} has the name of another module, {name!r}; rename the file')
        made = importlib.util.spec_from_file_location(name, module)
        assert made is not None and made.loader is not None  # for the type checker: it ends in .py
        sys.modules[name] = importlib.util.module_from_spec(made)
        made.loader.exec_module(sys.modules[name])
    except (ValueError, OSError):
        sys.modules.pop(name, None)
        raise
    except Exception as error:  # a module may raise anything
        raise ValueError(f'{module} cannot be imported: {type(error).__name__}: {error}') from None


def _name(law: str) -> None:
    if sys.stderr.isatty():
        print(f'checking {law}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(interrupts.run('posenc_jax.testing', lambda: main(sys.argv[1:])))
