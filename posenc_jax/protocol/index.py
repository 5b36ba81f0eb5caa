"""The modules that register keys, read from the sources, so that `import posenc_jax` needs no
method. A module is imported when somebody asks for its key.
"""

import functools
import importlib
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from posenc_jax.base import extras

_PACKAGE = pathlib.Path(__file__).parents[1]
_REGISTRATION = re.compile(r"^@register\(\s*'(\w+)',\s*kind='(\w+)'", re.MULTILINE)


@functools.cache
def modules() -> dict[tuple[Any, str], str]:
    """(kind, key) -> the dotted name of the module of this package that registers it.

    Raises:
      ImportError: the sources are not there as files, e.g. in a zip archive; two modules register
        one key.

    Example:
      >>> modules()['encoding', 'alibi']
      'posenc_jax.methods.alibi'
    """
    found: dict[tuple[Any, str], str] = {}
    for file in sorted(_PACKAGE.rglob('[!.]*.py')):
        text = file.read_text(encoding='utf-8') if file.is_file() else ''
        if '@register(' in text:
            name = '.'.join(file.relative_to(_PACKAGE.parent).with_suffix('').parts)
            for key, kind in _REGISTRATION.findall(text):
                if (kind, key) in found:
                    raise ImportError(f'{kind} {key!r} is in {found[kind, key]} and in {name}')
                found[kind, key] = name.removesuffix('.__init__')
    if not found:
        raise ImportError(
            f'posenc_jax finds its methods by reading its source files, and {_PACKAGE} has none; '
            'install it as files, and not as a zip archive'
        )
    return found


def load(names: Iterable[tuple[Any, str]]) -> None:
    """Imports the modules that register these pairs of kind and key; others are ignored."""
    for module in dict.fromkeys(modules()[name] for name in names if name in modules()):
        importlib.import_module(module)


def load_all(kind: str | None = None) -> list[str]:
    """Imports every module that registers something, of one kind if it is given, apart from those
    that need an extra which is not installed.

    Returns:
      What is not installed, a line each.
    """
    missing = {}
    for name in modules():
        if kind in (None, name[0]):
            try:
                load([name])
            except ModuleNotFoundError as error:
                if (said := extras.reason(error)) is None:
                    raise
                missing[said] = True
    return list(missing)
