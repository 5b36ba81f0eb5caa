"""Command lines that report a wrong argument in one line, with exit status 2."""

import argparse
import difflib
import functools
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from posenc_jax.base.programs import printable
from posenc_jax.lab.files import paths, regular
from posenc_jax.protocol.errors import nearest, quoted, shortened


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that keeps the line breaks of its description, reports an error in one
    line, and accepts integers of 32 bits and finite floats alone. An argument of the type
    `pathlib.Path` is a local path; one of the type `paths.path` may be in a bucket.

    Example:
      >>> parser = Parser('program')
      >>> _ = parser.add_argument('--tokens', type=int)
      >>> parser.parse_args(['--tokens=16']).tokens
      16
    """

    def __init__(self, prog: str | None = None, **options: Any):
        super().__init__(
            prog, **{'formatter_class': argparse.RawDescriptionHelpFormatter, **options}
        )
        self.register('type', int, functools.partial(_number, int, 'a whole number of 32 bits'))
        self.register('type', float, functools.partial(_number, float, 'a finite number'))
        self.register('type', pathlib.Path, functools.partial(_path, False))
        self.register('type', paths.path, functools.partial(_path, True))

    def add_options(self, options: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds optional arguments: name without dashes -> the options of `add_argument`."""
        for name, given in options.items():
            self.add_argument(f'--{name}', **given)

    def add_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Adds optional arguments whose defaults say their types.

        Args:
          defaults: name without dashes -> default, or (default, help). False makes a flag, a list
            takes several values, an empty list texts FIELD=VALUE, and None stands for a text.
        """
        for name, given in defaults.items():
            default, what = given if isinstance(given, tuple) else (given, None)
            words: dict[str, Any] = {'default': default, 'help': what}
            if isinstance(default, bool):
                words |= {'action': 'store_true'}
            elif isinstance(default, list) and default:
                words |= {'type': type(default[0]), 'nargs': '+'}
            elif isinstance(default, list):
                fields = what or 'more config fields'
                words |= {'nargs': '*', 'metavar': 'FIELD=VALUE', 'help': fields}
            else:
                words |= {'type': str if default is None else type(default)}
            self.add_argument(f'--{name}', **words)

    def add_choices(self, choices: Mapping[str, Iterable[str]]) -> None:
        """Adds optional arguments that take some of the given names, by default all of them."""
        for name, own in choices.items():
            names = list(own)
            self.add_argument(f'--{name}', nargs='+', choices=names, default=names, metavar='NAME')

    def add_imports(self, of_runs: bool = False, action: Any = None) -> None:
        """Adds the argument `--import=MODULE`, which imports a module of one's own at once.

        Args:
          of_runs: whether the program reads runs; it then has `--trust-imports` too.
          action: what is done in the place of that, e.g. 'append' for a list of the modules.
        """
        self.add_argument(
            '--import',
            action=action or _Import,
            default=[] if action else argparse.SUPPRESS,
            metavar='MODULE',
            help='a dotted name or a .py file that registers encodings or tasks; may be repeated',
        )
        if of_runs:
            self.add_argument(
                '--trust-imports',
                action='store_true',
                help='execute the Python files in the folders imports/ of the runs that are read',
            )

    def add_processes(self) -> None:
        """Adds the arguments of a program that several processes run together."""
        self.add_argument(
            '--coordinator',
            default='',
            metavar='HOST:PORT',
            help='of process 0 if several processes work together; auto where JAX finds it',
        )
        self.add_argument('--processes', type=int, metavar='N', help='how many work together')
        self.add_argument('--process_id', type=int, metavar='I', help='of this one, 0 .. N - 1')

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse writes this message differently from one version of Python to the next.
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f'invalid choice {quoted(value)}; {nearest(str(value), choices)}'
            )

    def near(self, argument: str) -> str:
        """A proposal for an argument that is no option, if one has a similar name: '; did you mean
        --tokens?'.
        """
        options = {name.lstrip('-'): name for a in self._actions for name in a.option_strings}
        words = re.split(r'\W+', argument.lstrip('-'))[0].split('_')
        asked = [argument.lstrip('-').partition('=')[0], *words]
        close = [c for word in asked for c in difflib.get_close_matches(word, options, 1, 0.75)]
        return f'; did you mean {options[close[0]]}?' if close else ''

    def error(self, message: str) -> NoReturn:
        for action in self._actions:
            if action.choices and message.endswith(f'are required: {action.dest}'):
                message += f'; {nearest("", map(str, action.choices))}'
        self.exit(2, f'{self.prog}: error: {in_line(message, 800)}\n')


def read_letters(file: pathlib.Path, most: int = 2**24) -> str:
    """The text in a file, which may be a pipe and have no size.

    Raises:
      OSError: the file cannot be read.
      ValueError: it has more than `most` letters, or bytes that are no text.
    """
    told = lambda: f'{file} has more than {most} letters, the most that are read'
    with file.open() as opened:
        return regular.read_most(opened, most, told)


def in_line(error: object, longest: int = 2000) -> str:
    """A message as programs print it: on one line, with escapes for control characters, without the
    middle of long words (such as a path that a user gave) and of a long line.
    """
    text = re.sub(r'\S{201,}', lambda word: shortened(word[0], 200), str(error))
    return printable(shortened(' '.join(text.splitlines()), longest))


def processes_of(known: argparse.Namespace) -> tuple[str, int | None, int | None]:
    """Takes the arguments of `add_processes` from those that were parsed; None is one that was not
    given.
    """
    coordinator, processes, number = map(
        vars(known).pop, ('coordinator', 'processes', 'process_id')
    )
    return coordinator, processes, number


class _Import(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from posenc_jax.lab.files import imports

        try:
            imports.load([str(values)])
        except (ValueError, OSError) as error:
            parser.error(str(error))


def _path(anywhere: bool, text: str) -> pathlib.Path:
    try:
        found = paths.path(text)
    except (ValueError, ImportError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not anywhere and not paths.is_local(found):
        raise argparse.ArgumentTypeError(f'expected a local path, got {text}')
    return found


def _number(kind: type, wanted: str, text: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) if kind is float else abs(value) < 2**31):
        raise argparse.ArgumentTypeError(f'expected {wanted}, got {quoted(text)}')
    return value
