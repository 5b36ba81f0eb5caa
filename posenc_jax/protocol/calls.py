"""Calls of registered names as values, and how a built value is written as a call again."""

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posenc_jax.protocol.bounds import CONTEXT, checked
from posenc_jax.protocol.registry import Entry
from posenc_jax.protocol.variants import become


@dataclasses.dataclass(frozen=True)
class Node:
    """A checked call: the registered entry and its arguments (nested calls are Nodes)."""

    entry: Entry
    arguments: dict[str, Any]

    def __str__(self):
        def show(value):
            if isinstance(value, Chain):
                return str(value)
            return str(value) if isinstance(value, Node) else repr(value)

        return f'{self.entry.key}({", ".join(f"{k}={show(v)}" for k, v in self.arguments.items())})'


@dataclasses.dataclass(frozen=True)
class Chain:
    """Nodes joined by `|`."""

    nodes: tuple[Node, ...]

    def __str__(self):
        return ' | '.join(map(str, self.nodes))


def with_defaults(chain: Chain, **context) -> Chain:
    """The chain with these values as arguments wherever a parameter would take them from the model,
    also in nested calls.

    Example:
      >>> from posenc_jax.language.spec import parse
      >>> str(with_defaults(parse('rope(freqs=yarn(factor=4.0))'), train_len=64))
      'rope(freqs=yarn(factor=4.0, train_len=64))'
    """

    def filled(value: Any) -> Any:
        if isinstance(value, Chain):
            return with_defaults(value, **context)
        if not isinstance(value, Node):
            return value
        parameters, arguments = (
            value.entry.parameters,
            {name: filled(v) for name, v in value.arguments.items()},
        )
        asked = {
            n: v for n, v in context.items() if n in parameters and parameters[n].default is CONTEXT
        }
        return Node(value.entry, arguments | {n: v for n, v in asked.items() if n not in arguments})

    return Chain(tuple(filled(node) for node in chain.nodes))


def written(value: Any) -> str:
    """A value as a spec string writes it. A frequency rule is written as its call, without the
    arguments that equal their defaults. What no spec string can hold, such as an array, is `...`.

    Example:
      >>> from posenc_jax.methods.yarn import YaRN
      >>> written(YaRN(factor=4.0, train_len=64)), written((1, 2.5))
      ('yarn(factor=4.0, train_len=64)', '(1, 2.5)')
    """
    if isinstance(value, Node):
        return call(value.entry.key, changed(value.arguments, value.entry.parameters))
    if dataclasses.is_dataclass(value) and hasattr(value, 'card'):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        given = {name: getattr(value, name) for name in fields}
        return call(value.card.key, changed(given, inspect.signature(type(value)).parameters))  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, tuple | list):
        return f'({", ".join(map(written, value))}{"," * (len(value) == 1)})'
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    plain = value is None or isinstance(value, bool | int | float | str)
    # An array is not written: its values would become part of the compiled structure of a model.
    return repr(value) if plain or getattr(value, 'spec_kind', '') == 'encoding' else '...'


def changed(
    arguments: dict[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> tuple[tuple[str, str], ...]:
    """The arguments of a constructor that differ from their defaults, each with its text. `rngs` is
    left out, since no spec string has one.
    """
    return tuple(
        (name, written(value))
        for name, value in arguments.items()
        if name != 'rngs' and not _same(value, parameters[name].default)
    )


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    plain = (bool, int, float, str, tuple)
    both_bool = isinstance(value, bool) == isinstance(default, bool)
    return (
        isinstance(value, plain) and isinstance(default, plain) and both_bool and value == default
    )


def call(name: str, arguments: tuple[tuple[str, str], ...]) -> str:
    """The text of a call.

    Example:
      >>> call('rope', (('base', '500.0'),))
      'rope(base=500.0)'
    """
    return f'{name}({", ".join(f"{key}={text}" for key, text in arguments)})'


def name_of(cls: type) -> str:
    """The key of a registered encoding, or the name of another class."""
    if '_variant_of' in vars(cls) and 'registered_key' not in vars(cls):
        return name_of(vars(cls)['_variant_of'])
    return vars(cls).get('registered_key', cls.__name__)


def remembering(init: Callable, variants: Sequence[tuple[Callable, type]]) -> Callable:
    """An `__init__` that also checks the bounds of its arguments (`protocol/bounds.py`), makes the
    object one of the variant that they ask for, and sets `_spec_arguments`, the changed arguments
    and their texts. Where a subclass calls the `__init__` of its base class, that of the base sets
    none of these texts.

    Args:
      variants: the variants of the class of `init` with their conditions, see `Encoding`; they may
        be appended later.
    """
    signature = inspect.signature(init)
    defaults = {name: p.default for name, p in signature.parameters.items()}
    init = checked(init, lambda self: name_of(type(self)))

    @functools.wraps(init)
    def wrapped(self, *args, **kwargs):
        init(self, *args, **kwargs)
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        if variants:
            become(self, {cls: bool(where({**defaults, **given})) for where, cls in variants})
        if type(self).__init__ is wrapped:
            given.pop(next(iter(given)))
            self._spec_arguments = changed(given, signature.parameters)

    return wrapped
