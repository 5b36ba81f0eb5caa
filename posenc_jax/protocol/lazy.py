"""Names of a module that are imported when somebody reads them, and the error of one it lacks."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from posenc_jax.protocol.errors import nearest, quoted


def names_from(
    user: str, package: str, of: Mapping[str, str]
) -> tuple[list[str], Callable[[str], Any]]:
    """`__all__` and `__getattr__` of a module that collects names from others.

    Args:
      user: the name of this module.
      package: the package in which the other modules lie.
      of: module under `package` -> the names that it defines, with spaces between them; '' for the
        module itself.

    Example:
      >>> here = 'posenc_jax.functional'
      >>> names, read = names_from(here, 'posenc_jax', {'methods.alibi': 'alibi_bias alibi_slopes'})
      >>> names, read('alibi_slopes')(2).tolist()
      (['alibi_bias', 'alibi_slopes'], [0.0625, 0.00390625])
    """
    where = {
        name: (f'{package}.{module}', bool(names))
        for module, names in of.items()
        for name in names.split() or [module.rpartition('.')[2]]
    }

    def read(name: str) -> Any:
        if name not in where:
            raise missing(user, name, where)
        module, holds = where[name]
        found = importlib.import_module(module)
        return getattr(found, name) if holds else found

    return sorted(where), read


def missing(module: str, name: str, names: Iterable[str]) -> AttributeError:
    """The error of an attribute that a module does not have.

    Args:
      module: its name.
      name: the attribute that it does not have.
      names: those that it has for its users.

    Example:
      >>> str(missing('posenc_jax.functional', 'rop', ['rope', 'rotate']))
      "module 'posenc_jax.functional' has no attribute 'rop'; did you mean 'rope'?"
    """
    hint = nearest(name, names, page=f'dir({module})')
    package = '__path__' in vars(sys.modules[module]) and name.isidentifier()
    if package and importlib.util.find_spec(f'{module}.{name}'):
        hint = f'import {module}.{name} first'
    # Python adds a proposal of its own where `name` and `obj` are not set.
    return AttributeError(
        f'module {module!r} has no attribute {quoted(name)}; {hint}', name=name, obj=None
    )
