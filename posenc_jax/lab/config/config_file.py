"""Reads a config from a Python file and applies the fields that a command line changes."""

import difflib
import os
import pathlib
import runpy
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from posenc_jax.lab.config.fields import check_fields
from posenc_jax.lab.config.overrides import read_overrides, replaced
from posenc_jax.lab.files import repository
from posenc_jax.lab.files.imports import described
from posenc_jax.protocol.errors import nearest, quoted

NAMED = 'posenc_jax.configs.'
EXPECTED = f'with get_config() or e.g. {NAMED}quickstart'


def read(path: str, arguments: Iterable[str] = ()) -> ConfigDict:
    """The config that `get_config()` of a Python file returns, with fields changed by arguments. It
    is not validated yet.

    The file is executed like any Python program.

    Args:
      path: the Python file, or `posenc_jax.configs.NAME` for a config that comes with the package.
        A path into configs/ that does not exist here is that of such a config, too.
      arguments: texts of the form '--config.NAME=VALUE'.

    Raises:
      ValueError: the file defines no config (the message has its error and the line), lacks a
        field, or has a field of another type; an argument has another form, an unknown field, or a
        value of another type.
      FileNotFoundError: there is no such file, or no config of this name.
    """
    config = _executed(path, _located(path))
    try:
        check_fields(config)
    except ValueError as error:
        raise ValueError(f'{_named(path)}: {error}') from None
    return replaced(config, read_overrides(arguments))


def _named(path: str) -> str:
    return quoted(path, 200)


def _located(path: str) -> str:
    """The file of a config."""
    folder = repository.ROOT / 'configs'
    names = sorted(file.stem for file in folder.glob('[!_]*.py'))
    if path.startswith(NAMED):
        if (name := path.removeprefix(NAMED)) in names:
            return str(folder / f'{name}.py')
        raise FileNotFoundError(f'there is no config {_named(path)}; {nearest(name, names)}')
    stem = pathlib.PurePath(path).stem
    if os.path.isfile(path):
        return path
    if pathlib.PurePath(path) == pathlib.PurePath('configs', f'{stem}.py') and stem in names:
        return str(folder / f'{stem}.py')
    found = 'is a directory' if os.path.isdir(path) else 'does not exist'
    near = difflib.get_close_matches(stem[:100], names, 1, 0.5)
    hint = f'; did you mean {NAMED}{near[0]}?' if near else ''
    raise FileNotFoundError(f'{_named(path)} {found}; expected a Python file {EXPECTED}{hint}')


def _executed(path: str, file: str) -> Any:
    if not file.endswith('.py'):
        raise ValueError(f'{_named(path)} is not a Python file; expected one {EXPECTED}')
    try:
        made = runpy.run_path(file, run_name='config').get('get_config')
        if callable(made):
            return made()
    except (Exception, SystemExit) as error:  # a config file may raise anything
        raise ValueError(
            f'{_named(path)} cannot be read as a config: {described(error, file)}'
        ) from None
    raise ValueError(f'{_named(path)} has no function get_config()')
