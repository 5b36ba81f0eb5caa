"""The spec language: `'rope(freqs=yarn(factor=4.0)) | alibi()'`. Data, not code: parsed by `ast`, never executed.

    spec  := call ('|' call)*
    call  := name | name '(' arguments ')'
    value := number | string | True | False | None | tuple or list of values | call (frequencies, encodings)

A parameter whose default is `CONTEXT` (`heads`, `kv_heads`, `head_dim`, `model_dim`, `train_len`, `rngs`) is filled in
by the model; a spec string may override `train_len`, repeat the sizes (for use without a model), and has no `rngs`.
"""

import ast
import difflib
import dataclasses
import inspect
import types
import typing
from typing import Any

from posenc_jax.core.registry import LARGEST, Entry, Kind, SpecError, lookup, nearest

MAX_SPEC_CHARS = 4000


class _Context:
    """Default of a parameter that the surrounding model supplies."""

    def __repr__(self):
        return 'CONTEXT'


CONTEXT: Any = _Context()


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


def parse(spec: str, kinds: tuple[Kind, ...] = ('encoding',)) -> Chain:
    """Parses and checks a spec string without building anything (no device is touched).

    Args:
      spec: the string.
      kinds: what the outermost names may be.

    Raises:
      SpecError: anything the language does not have, unknown names, unknown, missing or mistyped arguments.
    """
    if not isinstance(spec, str):
        raise SpecError(f'a spec is a string like "rope() | alibi()", got {type(spec).__name__}: {spec!r}')
    if len(spec) > MAX_SPEC_CHARS:
        raise SpecError(f'spec of {len(spec)} characters; at most {MAX_SPEC_CHARS} are accepted')
    try:
        tree = ast.parse(spec.strip(), mode='eval').body
        return Chain(tuple(_call(part, spec, kinds) for part in _split(tree)))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f'cannot read spec {spec!r}: {error}') from None


def _split(tree: ast.expr) -> list[ast.expr]:
    parts = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        parts.append(tree.right)
        tree = tree.left
    return [tree, *reversed(parts)]


def _call(tree: ast.expr, spec: str, kinds: tuple[Kind, ...]) -> Node:
    match tree:
        case ast.Name(id=name):
            args, keywords = [], []
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            pass
        case _:
            raise SpecError(f'{ast.unparse(tree)!r} in {spec!r} is not a name or a call; expected e.g. "rope(base=10000.0)"')
    entry = lookup(name, kinds)
    parameters = {n: p for n, p in entry.parameters.items() if n != 'rngs'}
    usage = f'{name}({", ".join(str(p) for p in parameters.values())})'
    hints = _hints(entry)
    values: dict[str, Any] = {}
    if len(args) > len(parameters):
        raise SpecError(f'{name} takes at most {len(parameters)} arguments, got {len(args)}; signature: {usage}')
    for parameter, value in zip(parameters, args):
        values[parameter] = value
    for keyword in keywords:
        if keyword.arg is None:
            raise SpecError(f'"**" is not part of the spec language: {spec!r}')
        if keyword.arg not in parameters:
            raise SpecError(
                f'{name} has no argument {keyword.arg!r}; {nearest(keyword.arg, parameters)}; signature: {usage}'
            )
        if keyword.arg in values:
            raise SpecError(f'{name} got {keyword.arg!r} twice; signature: {usage}')
        values[keyword.arg] = keyword.value
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in values:
            raise SpecError(f'{name} needs {parameter.name!r}; signature: {usage}')
    arguments = {}
    for parameter, tree in values.items():
        hint = hints.get(parameter, Any)
        try:
            value = _value(tree, spec, hint)
        except SpecError as error:
            raise SpecError(f'{name}: {parameter}: {error}; signature: {usage}') from None
        converted = _convert(value, hint)
        if converted is _MISMATCH:
            raise SpecError(f'{name}: {parameter}={value!s} is not {_show(hint, value)}; signature: {usage}')
        arguments[parameter] = converted
    return Node(entry, arguments)


def _hints(entry: Entry) -> dict[str, Any]:
    target = entry.build.__init__ if inspect.isclass(entry.build) else entry.build
    try:
        return typing.get_type_hints(target)
    except NameError:
        return dict(getattr(target, '__annotations__', {}))


def _nested_kinds(hint) -> tuple[Kind, ...]:
    """Which registered kinds an argument with this annotation accepts: classes say so by `spec_kind`."""
    kinds: list[Kind] = []
    for option in typing.get_args(hint) or (hint,):
        kind = getattr(option, 'spec_kind', None)
        if kind is not None:
            kinds.append(kind)
    return tuple(kinds)


def _value(tree: ast.expr, spec: str, hint) -> Any:
    match tree:
        case ast.Constant(value=value) if isinstance(value, (int, float, str, bool, type(None))):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)) if type(value) in (int, float):
            return -value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_value(element, spec, Any) for element in elements)
        case ast.Call() | ast.Name() | ast.BinOp(op=ast.BitOr()):
            kinds = _nested_kinds(hint)
            if not kinds:
                found = ast.unparse(tree)
                raise SpecError(f'{found!r} in {spec!r}: a plain value is expected here ({_show(hint, found)})')
            nodes = tuple(_call(part, spec, kinds) for part in _split(tree))
            if len(nodes) > 1 and kinds != ('encoding',):
                raise SpecError(f'{ast.unparse(tree)!r} in {spec!r}: only encodings are joined by "|"')
            return Chain(nodes) if kinds == ('encoding',) else nodes[0]
        case _:
            raise SpecError(f'{ast.unparse(tree)!r} in {spec!r} is not a value of the spec language')


_MISMATCH = object()


def _convert(value, hint):
    """`value` as the annotation wants it, or `_MISMATCH`. Integers serve as floats; nothing else is coerced."""
    origin = typing.get_origin(hint)
    if hint is Any or hint is inspect.Parameter.empty:
        return value
    if isinstance(value, (Node, Chain)):
        return value  # its kind was checked by lookup
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            converted = _convert(value, option)
            if converted is not _MISMATCH:
                return converted
        return _MISMATCH
    if origin is typing.Literal:
        same = lambda choice: type(choice) is type(value) and choice == value  # True and 1.0 are not 1
        return value if any(map(same, typing.get_args(hint))) else _MISMATCH
    if origin is tuple or hint is tuple:
        if not isinstance(value, tuple):
            return _MISMATCH
        inner = typing.get_args(hint)
        if not inner:
            return value
        if len(inner) == 2 and inner[1] is Ellipsis:
            inner = (inner[0],) * len(value)
        if len(inner) != len(value):
            return _MISMATCH
        converted = tuple(_convert(v, h) for v, h in zip(value, inner))
        return _MISMATCH if _MISMATCH in converted else converted
    if hint in (None, type(None)):
        return None if value is None else _MISMATCH
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
            return _MISMATCH
        return float(value)
    if hint is int:  # of 32 bits, as arrays have them
        return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31 else _MISMATCH
    if hint in (bool, str):
        return value if isinstance(value, hint) else _MISMATCH
    return _MISMATCH


def _show(hint, value) -> str:
    kinds = _nested_kinds(hint)
    if kinds:
        return 'a call of kind ' + ' or '.join(kinds)
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        return 'one of ' + ', '.join(map(repr, choices)) + ''.join(f'; did you mean {choice!r}?' for choice in near)
    return getattr(hint, '__name__', str(hint)) if not typing.get_args(hint) else str(hint)


def with_defaults(chain: Chain, **context) -> Chain:
    """The calls with these values given wherever a parameter would take them from the model, nested calls included.

    Example:
      >>> str(with_defaults(parse('rope(freqs=yarn(factor=4.0))'), train_len=64))
      'rope(freqs=yarn(factor=4.0, train_len=64))'
    """

    def filled(value):
        if isinstance(value, Chain):
            return with_defaults(value, **context)
        if not isinstance(value, Node):
            return value
        parameters, arguments = value.entry.parameters, {name: filled(v) for name, v in value.arguments.items()}
        asked = {n: v for n, v in context.items() if n in parameters and parameters[n].default is CONTEXT}
        return Node(value.entry, arguments | {n: v for n, v in asked.items() if n not in arguments})

    return Chain(tuple(filled(node) for node in chain.nodes))


def build(node: Node, context: dict[str, Any]) -> Any:
    """Builds a checked node; parameters with default `CONTEXT` are taken from `context`.

    Raises:
      SpecError: the context lacks something that is needed, or the constructor rejects a value.
    """
    from posenc_jax.core.compose import chain  # compose builds on this module

    def made(value):
        if isinstance(value, Chain):
            return chain(*(build(n, context) for n in value.nodes))
        return build(value, context) if isinstance(value, Node) else value

    arguments = {name: made(value) for name, value in node.arguments.items()}
    for name, parameter in node.entry.parameters.items():
        of_model = name in ('heads', 'kv_heads', 'head_dim', 'model_dim') and parameter.default is CONTEXT
        if of_model and arguments.get(name) != context.get(name) and name in arguments and name in context:
            raise SpecError(f'{node.entry.key}: {name}={arguments[name]}, but the model has {name}={context[name]}')
        if parameter.default is CONTEXT and name not in arguments:
            if name not in context:
                raise SpecError(f'{node.entry.key} needs {name!r}: give it in the spec, or to make(..., {name}=...)')
            arguments[name] = context[name]
    try:
        return node.entry.build(**arguments)
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(f'{node}: {error}') from error
