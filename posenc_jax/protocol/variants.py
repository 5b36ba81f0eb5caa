"""Variants of an encoding: subclasses that its arguments choose, see `Encoding`."""

import copyreg
import functools
from collections.abc import Mapping
from typing import Any

from flax import nnx


class _Joined(type(nnx.Module)):
    """The type of the classes that join variants. No module holds such a class, so it is pickled as
    the call that makes it of its variants.
    """


copyreg.pickle(_Joined, lambda cls: (_joined, (cls.__bases__,)))


@functools.cache
def _joined(variants: tuple[type, ...]) -> type:
    """One class of several variants, which may not change the same attribute in different ways."""
    first = variants[0]
    if len(variants) == 1:
        return first
    changes: dict[str, type] = {}
    for cls in variants:
        for name, value in vars(cls).items():
            other = changes.setdefault(name, cls)
            if not name.startswith('_') and vars(other)[name] != value:
                raise TypeError(
                    f'these arguments ask for {other.__name__} and for {cls.__name__}, which both '
                    f'change {name!r}: write their conditions so that one excludes the other'
                )
    name = 'And'.join(cls.__name__ for cls in variants)
    return _Joined(name, variants, {'__module__': first.__module__, '_variant_of': first})


def become(made: Any, variants: Mapping[type, bool]) -> None:
    """Gives an object the class that its arguments ask for: a variant of its class, or several
    variants joined. Without any it keeps its class.

    Args:
      variants: all variants of the class, and whether the arguments ask for them.

    Raises:
      TypeError: the class of the object and its arguments ask for different variants, or two
        variants change the same attribute.
    """
    own = type(made)
    for cls, asked in variants.items():
        if issubclass(own, cls) and not asked:
            raise TypeError(
                f'{own.__name__}: these arguments do not ask for the variant {cls.__name__}; give '
                f'arguments that do, or use {vars(cls)["_variant_of"].__name__}'
            )
    asked = tuple(cls for cls, asked in variants.items() if asked)
    if all(issubclass(own, cls) for cls in asked):
        return
    if not issubclass(variant := _joined(asked), own):
        names, one = ' and '.join(cls.__name__ for cls in asked), len(asked) == 1
        raise TypeError(
            f'{own.__name__} with these arguments needs what {names} {"does" if one else "do"}: '
            f'inherit from {"this class" if one else "these classes"}'
        )
    object.__setattr__(made, '__class__', variant)
