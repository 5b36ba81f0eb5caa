"""Applies a context extension, given as a spec string, to an encoding or to its spec string."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.language.make import make
from posenc_jax.language.spec import CONTEXT_NAMES, build, parse
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.calls import Chain, Node, written
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import SpecError, nearest, quoted
from posenc_jax.protocol.families import Bias
from posenc_jax.protocol.registry import lookup

Part = Encoding | Node  # of a chain: built, or as its spec string calls it


def extend(encoding: Encoding | str, spec: str, **context) -> Encoding:
    """An encoding for longer texts: its rotary part or its relative bias is extended. All other
    parts and all variables are kept, and the given encoding stays as it is.

    A frequency rule (`yarn`) replaces the rule of the rotary part, which is `rope` or another one
    that has a method `with_rule` (`fope`). An extension (`dca`) wraps the
    part. An extension with an attribute `extends` wraps only a part of one of these classes
    (`alibi_pi`). Several extensions, joined by `|`, are applied from left to right.

    Args:
      encoding: a single encoding or a chain, or a spec string of one.
      spec: e.g. 'yarn(factor=4.0)', 'lm_infinite()', 'pi(factor=2.0) | dca()'.
      **context: arguments that the spec strings leave to the model, above all `train_len`, the
        trained length in tokens. A spec string of an encoding needs those of `make`.

    Raises:
      SpecError: a spec is wrong or lacks something, the first argument is no encoding, or the
        encoding does not have exactly one part to extend.

    Example:
      >>> import posenc_jax as pj
      >>> encoding = pj.make('rope() | alibi()', heads=4, head_dim=64)
      >>> pj.extend(encoding, 'yarn(factor=4.0)', train_len=512)
      rope(freqs=yarn(factor=4.0)) | alibi()
    """
    for name in context:
        if name not in CONTEXT_NAMES:
            raise SpecError(f'extend() has no argument {name!r}; {nearest(name, CONTEXT_NAMES)}')
    if isinstance(encoding, str):
        encoding = make(encoding, **context)
    if not isinstance(encoding, Encoding):
        raise SpecError(
            'extend() takes an encoding, or its spec string, and the spec string of an extension; '
            f'the encoding is {quoted(encoding)}'
        )
    if not isinstance(spec, str):
        raise SpecError(
            'extend() takes an extension as a spec string like "yarn(factor=4.0)", got '
            f'{quoted(spec)}'
        )
    for call in _calls(spec):
        encoding = chain(*_extended(parts_of(encoding), call, context))
    return encoding


def extended_spec(encoding: str, spec: str) -> str:
    """`extend` on spec strings: the spec of the extended encoding, e.g. to train it from the start.

    An extension that changes an argument of the part instead of wrapping it
    (`segmented_sequences`) has a function `written`, which returns the changed call.

    Raises:
      SpecError: as for `extend`. Errors that depend on the sizes of a model appear when the result
        is built.
    """
    nodes = parse_layer(encoding).nodes
    for call in _calls(spec):
        nodes = _extended(nodes, call, {})
    return str(Chain(nodes))


def _extended(parts: tuple[Part, ...], call: Node, context: dict[str, Any]) -> tuple[Part, ...]:
    """The parts of a chain, encodings or calls, after one call of an extension: which part it
    extends, and how, is decided here alone.
    """
    part = parts[_place(call, parts)]
    change = _with_rule if call.entry.kind == 'frequencies' else _inside
    extended = change(part, call, context)
    return tuple(extended if other is part else other for other in parts)


def _with_rule(part: Part, rule: Node, context: dict[str, Any]) -> Part:
    """A rotary part with another frequency rule."""
    if isinstance(part, Node):
        return dataclasses.replace(part, arguments={**part.arguments, 'freqs': rule})
    rotary: Any = part
    extended = rotary.with_rule(build(rule, context))
    kept = (shown for shown in part._spec_arguments if shown[0] != 'freqs')
    extended._spec_arguments = (*kept, ('freqs', written(rule)))
    return extended


def _inside(part: Part, call: Node, context: dict[str, Any]) -> Part:
    """What an extension makes of a part: the part is its argument `encoding`, if it takes one."""
    if not isinstance(part, Node):
        return build(call, {**context, 'encoding': part})
    if hasattr(call.entry.build, 'written'):
        return call.entry.build.written(part, **call.arguments)
    entry = lookup(call.entry.key, ('encoding',))
    own = {'encoding': Chain((part,))} if 'encoding' in entry.parameters else {}
    return Node(entry, {**own, **call.arguments})


def _calls(spec: str) -> tuple[Node, ...]:
    """The calls in an extension spec. At most one may be a frequency rule, since a second rule
    would replace the first.
    """
    nodes = parse(spec, kinds=('extension', 'frequencies')).nodes
    rules = [node.entry.key for node in nodes if node.entry.kind == 'frequencies']
    if len(rules) > 1:
        raise SpecError(
            f'{spec}: {rules[1]} would replace {rules[0]}, because an encoding has one frequency '
            'rule; leave one out'
        )
    return nodes


def _place(call: Node, parts: Sequence[Part]) -> int:
    """The place in a chain of the one part that a call extends."""
    if 'encoding' in call.arguments:
        raise SpecError(
            f'{call.entry.key} extends the given encoding; leave out '
            f'encoding={call.arguments["encoding"]}'
        )
    own, rule = getattr(call.entry.build, 'extends', ()), call.entry.kind == 'frequencies'
    bias = call.entry.kind == 'extension' and not own
    fits = lambda kind: (
        hasattr(kind, 'with_rule')
        if rule
        else issubclass(kind, own or Rotary) or (bias and is_relative_bias(kind))
    )
    kinds = [part.entry.build if isinstance(part, Node) else type(part) for part in parts]
    places = [at for at, kind in enumerate(kinds) if isinstance(kind, type) and fits(kind)]
    if len(places) != 1:
        named = lambda kind: 'rotary encoding' if kind is Rotary else kind.card.key
        wanted = [f'one {named(kind)}' for kind in own or (Rotary,)]
        wanted += ['one relative bias'] if bias else []
        among = ' | '.join(str(p) if isinstance(p, Node) else name_of(p) for p in parts)
        raise SpecError(
            f'{call.entry.key} extends {" or ".join(wanted)}; found {len(places)} in {among}'
        )
    return places[0]


def is_relative_bias(kind: type) -> bool:
    """Whether it is a class of biases that depend on position differences only, like ALiBi, and
    mask no keys.
    """
    return (
        issubclass(kind, Bias)
        and hasattr(kind, 'card')
        and kind.card.promises.relative
        and 'mask' not in kind.opened_doors()
    )
