"""The spec language: `'rope(freqs=yarn(factor=4.0)) | alibi()'`. Data, not code: parsed by `ast`,
never executed.

    spec  := call ('|' call)*
    call  := name | name '(' arguments ')'
    value := number | string | True | False | None | tuple or list of values | call (frequencies,
    encodings)

A parameter whose default is `CONTEXT` (`heads`, `kv_heads`, `head_dim`, `model_dim`, `train_len`,
`rngs`) is filled in by the model; a spec string may override `train_len`, repeat the sizes (for use
without a model), and has no `rngs`.
"""

import ast
import difflib
import functools
import inspect
import math
import numbers
import operator
import re
import types
import typing
import warnings
from typing import Any

import jax
from flax import nnx

from posenc_jax.base.memory import bytes_of, readable
from posenc_jax.protocol.calls import CONTEXT, Chain, Node, written
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import LARGEST, SpecError, near, nearest, quoted
from posenc_jax.protocol.registry import Entry, Kind, entries, lookup

MAX_SPEC_CHARS = 4000
# Of the variables that one call makes: a table of 65,536 positions in a model of width 4,096.
MAX_BYTES = 2**30
MAX_SIZE = 2**20  # of each of SIZES
SIZES = ('heads', 'kv_heads', 'head_dim', 'model_dim')
CONTEXT_NAMES = (*SIZES, 'train_len', 'rngs')  # what a model knows


def parse(spec: str, kinds: tuple[Kind, ...] = ('encoding',)) -> Chain:
    """Parses and checks a spec string without building anything (no device is touched).

    Args:
      spec: the string.
      kinds: the kinds that the outermost names may have.

    Raises:
      SpecError: a string that is not of the language; a name that is not registered; an argument
        that is unknown, missing, or of the wrong type.
    """
    if not isinstance(spec, str):
        raise SpecError(
            f'a spec is a string like "rope() | alibi()", got {type(spec).__name__}: {quoted(spec)}'
        )
    if not spec.strip():
        raise SpecError('the spec is empty; expected a call, e.g. "rope(base=10000.0)"')
    if len(spec) > MAX_SPEC_CHARS:
        raise SpecError(f'spec of {len(spec)} characters; at most {MAX_SPEC_CHARS} are accepted')
    try:
        # Python warns about some of the texts that are refused below.
        with warnings.catch_warnings(action='ignore'):
            tree = ast.parse(spec.strip(), mode='eval').body
        return Chain(tuple(_call(part, spec, kinds) for part in _split(tree)))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        why = error.msg if isinstance(error, SyntaxError) else error or type(error).__name__
        names = _near_names(spec, kinds)
        raise SpecError(f'cannot read spec {quoted(spec)}: {names or why}') from None


def _near_names(spec: str, kinds: tuple[Kind, ...]) -> str:
    """What to write in the place of the first name that no name can be, such as 'rope-2d'; '' if
    there is none, or if no name is near.
    """
    names = [entry.key for kind in kinds for entry in entries(kind)]
    for word in re.findall(r'(?:^|\|)\s*(\w[\w.-]*)', spec):
        found = nearest(word, names)
        if not word.isidentifier() and found.startswith('did you mean'):
            return f'{quoted(word)} is not a name; {found}'
    return ''


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
            expected = _near_names(spec, kinds) or 'expected e.g. "rope(base=10000.0)"'
            raise SpecError(f'{_shown(tree)} in {quoted(spec)} is not a name or a call; {expected}')
    entry = lookup(name, kinds, ast.unparse(tree))
    parameters = {n: p for n, p in entry.parameters.items() if n != 'rngs'}
    hints = _hints(entry)
    shown = [p.replace(annotation=hints.get(n, p.empty)) for n, p in parameters.items()]
    usage = f'{name}({", ".join(map(str, shown))})'
    values: dict[str, Any] = {}
    if len(args) > len(parameters):
        raise SpecError(
            f'{name} takes at most {len(parameters)} arguments, got {len(args)}; signature: {usage}'
        )
    for parameter, value in zip(parameters, args):
        values[parameter] = value
    for keyword in keywords:
        if keyword.arg is None:
            raise SpecError(f'"**" is not part of the spec language: {quoted(spec)}')
        if keyword.arg not in parameters:
            raise SpecError(
                f'{name} has no argument {quoted(keyword.arg)}; '
                f'{nearest(keyword.arg, parameters)}; signature: {usage}'
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
        except _NotAValueError as error:
            raise SpecError(f'{name}: {parameter}: {error}; signature: {usage}') from None
        converted = _convert(value, hint)
        if converted is _MISMATCH:
            raise SpecError(
                f'{name}: {parameter}={quoted(value)} is not {_show(hint, value)}; signature: '
                f'{usage}'
            )
        arguments[parameter] = converted
    return Node(entry, arguments)


def _hints(entry: Entry) -> dict[str, Any]:
    target = entry.build.__init__ if inspect.isclass(entry.build) else entry.build
    try:
        hints = typing.get_type_hints(target)
    except NameError:
        return dict(getattr(target, '__annotations__', {}))
    return {name: _as_written(hint) for name, hint in hints.items()}


def _as_written(hint: Any) -> Any:
    """`int | None` where bounds have made it `Optional[int]`."""
    if typing.get_origin(hint) is not typing.Union:
        return hint
    return functools.reduce(operator.or_, typing.get_args(hint))


def _nested_kinds(hint) -> tuple[Kind, ...]:
    """Which registered kinds an argument with this annotation accepts: classes say so by
    `spec_kind`.
    """
    kinds: list[Kind] = []
    for option in typing.get_args(hint) or (hint,):
        kind = getattr(option, 'spec_kind', None)
        if kind is not None:
            kinds.append(kind)
    return tuple(kinds)


class _NotAValueError(SpecError):
    """The text given as an argument is no value; the enclosing call adds the argument's name."""


def _shown(tree: ast.expr) -> str:
    return quoted(ast.unparse(tree))


def _value(tree: ast.expr, spec: str, hint) -> Any:
    match tree:
        case ast.Constant(value=value) if isinstance(value, (int, float, str, bool, type(None))):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if (
            not isinstance(value, bool)
        ):
            return -value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_value(element, spec, Any) for element in elements)
        case ast.Call() | ast.Name() | ast.BinOp(op=ast.BitOr()):
            kinds = _nested_kinds(hint)
            if not kinds:
                found = _shown(tree)
                raise _NotAValueError(
                    f'{found} in {quoted(spec)}: a plain value is expected here '
                    f'({_show(hint, found)})'
                )
            nodes = tuple(_call(part, spec, kinds) for part in _split(tree))
            if len(nodes) != 1 and kinds != ('encoding',):
                raise _NotAValueError(
                    f'{_shown(tree)} in {quoted(spec)}: only encodings are joined by "|"'
                )
            return Chain(nodes) if kinds == ('encoding',) else nodes[0]
        case _:
            raise _NotAValueError(
                f'{_shown(tree)} in {quoted(spec)} is not a value of the spec language'
            )


_MISMATCH = object()


def _convert(value, hint):
    """`value` as the annotation wants it, or `_MISMATCH`. Integers serve as floats; nothing else is
    coerced.
    """
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
        # True and 1.0 are not the choice 1.
        same = lambda choice: type(choice) is type(value) and choice == value
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
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not abs(value) <= LARGEST
        ):
            return _MISMATCH
        return float(value)
    if hint is int:  # of 32 bits, as arrays have them
        return (
            value
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
            else _MISMATCH
        )
    if hint in (bool, str):
        return value if isinstance(value, hint) else _MISMATCH
    return _MISMATCH


def _show(hint, value) -> str:
    kinds = _nested_kinds(hint)
    if kinds:
        return 'a call of kind ' + ' or '.join(kinds)
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        like = difflib.get_close_matches(str(value), map(str, choices), n=1, cutoff=0.5)
        return (
            'one of '
            + ', '.join(map(repr, choices))
            + ''.join(f'; did you mean {choice!r}?' for choice in like)
        )
    if hint is int and type(value) is int:
        return f'a whole number of 32 bits, at most {2**31 - 1}'
    return getattr(hint, '__name__', str(hint)) if not typing.get_args(hint) else str(hint)


def build(node: Node, context: dict[str, Any]) -> Any:
    """Builds a checked node; parameters with default `CONTEXT` are taken from `context`.

    Raises:
      SpecError: the context lacks a value that is needed, the constructor rejects a value, or its
        variables would take more than `MAX_BYTES`, which is found before they are allocated.
    """

    def made(value, context):
        if isinstance(value, Chain):
            return chain(*(build(n, context) for n in value.nodes))
        return build(value, context) if isinstance(value, Node) else value

    def shapes():
        own = {**context, 'rngs': nnx.Rngs(0)}  # so that nothing is drawn from those of the model
        arguments = {
            name: own[name] if name == 'rngs' else made(value, own) for name, value in given.items()
        }
        return nnx.state(node.entry.build(**arguments))

    given = dict(node.arguments)
    for name, parameter in node.entry.parameters.items():
        if parameter.default is not CONTEXT:
            continue
        if name in SIZES and name in given and name in context and given[name] != context[name]:
            raise SpecError(
                f'{node.entry.key}: {name}={given[name]}, but the model has {name}={context[name]}'
            )
        if name not in given:
            if name not in context:
                key = node.entry.key
                raise SpecError(
                    f'{key} extends another encoding: write {key}(encoding=rope()), or '
                    f'extend(encoding, "{key}()")'
                    if name == 'encoding'
                    else f'{key} needs {name!r}: give it in the spec, or as argument {name}=...'
                    if name in CONTEXT_NAMES or not (known := near(name, CONTEXT_NAMES))
                    else f'{key}: the default of {name!r} is CONTEXT, but a model knows no {name}; '
                    f'did you mean {known[0]!r}?'
                )
            given[name] = context[name]
        if name in SIZES and not 1 <= given[name] <= MAX_SIZE:
            raise SpecError(
                f'{node.entry.key}: {name} must lie in 1 .. {MAX_SIZE}, got {given[name]}'
            )
    try:
        if node.entry.kind in ('encoding', 'extension', 'coordinates', 'field') and _may_be_large(
            given
        ):
            _check_bytes(node.entry, given, jax.eval_shape(shapes))
        built = node.entry.build(**{name: made(value, context) for name, value in given.items()})
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(f'{quoted(str(node))[1:-1]}: {error}') from error
    if isinstance(built, Encoding):
        _leave_out_context(built, node)
    return built


def _leave_out_context(built: Encoding, node: Node) -> None:
    """Takes what the model supplied out of the spec string of an encoding, except the encoding that
    an extension wraps.
    """
    own, parameters = node.arguments, node.entry.parameters
    supplied = {n for n, p in parameters.items() if p.default is CONTEXT and n not in own}
    built._spec_arguments = tuple(
        (name, written(own[name]) if isinstance(own.get(name), Node) else text)
        for name, text in built._spec_arguments
        if name not in supplied or name == 'encoding'
    )


def _sizes(given: dict[str, Any]) -> dict[str, int]:
    return {
        n: int(v)
        for n, v in given.items()
        if isinstance(v, numbers.Integral) and not isinstance(v, bool) and int(v) > 1
    }


def _may_be_large(given: dict[str, Any]) -> bool:
    """Whether an array with all these sizes, and the largest twice, would exceed `MAX_BYTES`."""
    sizes = _sizes(given).values()
    return math.prod(sizes) * max(sizes, default=1) > MAX_BYTES // 4


def _check_bytes(entry: Entry, given: dict[str, Any], made: Any) -> None:
    """Refuses a call whose variables, judged by their shapes, take more than `MAX_BYTES`."""
    if (needed := bytes_of(made)) > MAX_BYTES:
        sizes = ', '.join(f'{name}={value}' for name, value in _sizes(given).items())
        raise SpecError(
            f'{entry.key}: its variables would take {readable(needed)}, and at most '
            f'{readable(MAX_BYTES)} are accepted; '
            f'make one of its sizes smaller: {sizes}'
        )
