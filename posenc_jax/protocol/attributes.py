"""The error of a name that a module does not have."""

import importlib.util
import sys
from collections.abc import Iterable

from posenc_jax.protocol.registry import nearest, quoted


def missing(module: str, name: str, names: Iterable[str]) -> AttributeError:
    """The error that `__getattr__` of a module raises.

    Args:
      module: its name.
      name: the attribute that it does not have.
      names: those that it has for its users.

    Example:
      >>> str(missing('posenc_jax.functional', 'rop', ['rope', 'rotate']))
      "module 'posenc_jax.functional' has no attribute 'rop'; did you mean 'rope'?"
    """
    hint = nearest(name, names, page=f'dir({module})')
    if '__path__' in vars(sys.modules[module]) and importlib.util.find_spec(f'{module}.{name}'):
        hint = f'import {module}.{name} first'
    # Python adds a proposal of its own where `name` and `obj` are not set.
    return AttributeError(
        f'module {module!r} has no attribute {quoted(name)}; {hint}', name=name, obj=None
    )
