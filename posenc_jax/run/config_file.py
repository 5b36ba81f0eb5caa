"""Reads a config from a Python file and applies the fields that a command line changes."""

import os
import runpy
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from posenc_jax.core.imports import described
from posenc_jax.core.registry import quoted
from posenc_jax.run.fields import check_fields
from posenc_jax.run.overrides import read_overrides, replaced


def read(path: str, arguments: Iterable[str] = ()) -> ConfigDict:
    """The config that `get_config()` of a Python file returns, with fields changed by arguments. It
    is not validated yet.

    The file is executed like any Python program.

    Args:
      path: the Python file.
      arguments: texts of the form '--config.NAME=VALUE'.

    Raises:
      ValueError: the file defines no config (the message has its error and the line), lacks a
        field, or has a field of another type; an argument has another form, an unknown field, or a
        value of another type.
      FileNotFoundError: there is no such file.

    Example:
      >>> read('configs/quickstart.py', ['--config.train.lr=0.5']).train.lr
      0.5
    """
    config = _executed(path)
    try:
        check_fields(config)
    except ValueError as error:
        raise ValueError(f'{_named(path)}: {error}') from None
    return replaced(config, read_overrides(arguments))


def _named(path: str) -> str:
    return quoted(path, 200)


def _executed(path: str) -> Any:
    if not os.path.isfile(path):
        found = 'is a directory' if os.path.isdir(path) else 'does not exist'
        raise FileNotFoundError(
            f'{_named(path)} {found}; expected a Python file with get_config(), e.g. '
            'configs/quickstart.py'
        )
    if not path.endswith('.py'):
        raise ValueError(
            f'{_named(path)} is not a Python file; expected one with get_config(), e.g. '
            'configs/quickstart.py'
        )
    try:
        made = runpy.run_path(path, run_name='config').get('get_config')
        if callable(made):
            return made()
    except (Exception, SystemExit) as error:  # a config file may raise anything
        raise ValueError(
            f'{_named(path)} cannot be read as a config: {described(error, path)}'
        ) from None
    raise ValueError(f'{_named(path)} has no function get_config()')
