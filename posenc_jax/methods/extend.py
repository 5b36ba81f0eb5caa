"""Applies a context extension, given as a spec string, to an encoding or to its spec string."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.language.make import make
from posenc_jax.language.spec import CONTEXT_NAMES
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.calls import written
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import SpecError, nearest, quoted
from posenc_jax.protocol.families import Bias
from posenc_jax.protocol.registry import lookup


def extend(encoding: Encoding | str, spec: str, **context) -> Encoding:
    """An encoding for longer texts: its rotary part or its relative bias is extended. All other
    parts and all variables are kept, and the given encoding stays as it is.

    A frequency rule (`yarn`) replaces the rule of the rotary part. An extension (`dca`) wraps the
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
    for node in _calls(spec):
        parts = parts_of(encoding)
        part = parts[_place(node, [type(part) for part in parts], ' | '.join(map(name_of, parts)))]
        if node.entry.kind == 'frequencies':
            freqs = spec_language.build(node, context)
            extended = Rotary(part.base, part.layout, part.partial, freqs, part.head_dim)
            extended._spec_arguments = (
                *(shown for shown in part._spec_arguments if shown[0] != 'freqs'),
                ('freqs', written(node)),
            )
        else:
            extended = spec_language.build(node, {**context, 'encoding': part})
        encoding = chain(*(extended if other is part else other for other in parts))
    return encoding


def extended_spec(encoding: str, spec: str) -> str:
    """`extend` on spec strings: the spec of the extended encoding, e.g. to train it from the start.

    An extension that changes an argument of the part instead of wrapping it
    (`segmented_sequences`) has a function `written`, which returns the changed call.

    Raises:
      SpecError: as for `extend`. Errors that depend on the sizes of a model appear when the result
        is built.
    """
    nodes = list(parse_layer(encoding).nodes)
    for node in _calls(spec):
        builds = [n.entry.build for n in nodes]
        part = nodes[_place(node, builds, str(spec_language.Chain(tuple(nodes))))]
        if hasattr(node.entry.build, 'written'):
            extended = node.entry.build.written(part, **node.arguments)
        elif node.entry.kind == 'frequencies':
            extended = dataclasses.replace(part, arguments={**part.arguments, 'freqs': node})
        else:
            entry = lookup(node.entry.key, ('encoding',))
            takes_one = 'encoding' in entry.parameters
            wrapped = {'encoding': spec_language.Chain((part,))} if takes_one else {}
            extended = spec_language.Node(entry, {**wrapped, **node.arguments})
        nodes = [extended if other is part else other for other in nodes]
    return str(spec_language.Chain(tuple(nodes)))


def _calls(spec: str) -> tuple[spec_language.Node, ...]:
    """The calls in an extension spec. At most one may be a frequency rule, since a second rule
    would replace the first.
    """
    nodes = spec_language.parse(spec, kinds=('extension', 'frequencies')).nodes
    rules = [node.entry.key for node in nodes if node.entry.kind == 'frequencies']
    if len(rules) > 1:
        raise SpecError(
            f'{spec}: {rules[1]} would replace {rules[0]}, because an encoding has one frequency '
            'rule; leave one out'
        )
    return nodes


def _place(node: spec_language.Node, builds: Sequence[Any], among: str) -> int:
    """The place in a chain of the one part that a call extends.

    Args:
      builds: what builds each part of the chain: its class, or a function.
      among: the names of the parts, for the message.
    """
    if 'encoding' in node.arguments:
        raise SpecError(
            f'{node.entry.key} extends the given encoding; leave out '
            f'encoding={node.arguments["encoding"]}'
        )
    own = getattr(node.entry.build, 'extends', ())
    bias = node.entry.kind == 'extension' and not own
    fits = lambda kind: issubclass(kind, own or Rotary) or (bias and is_relative_bias(kind))
    places = [at for at, kind in enumerate(builds) if isinstance(kind, type) and fits(kind)]
    if len(places) != 1:
        named = lambda kind: 'rotary encoding' if kind is Rotary else kind.card.key
        wanted = [f'one {named(kind)}' for kind in own or (Rotary,)]
        wanted += ['one relative bias'] if bias else []
        raise SpecError(
            f'{node.entry.key} extends {" or ".join(wanted)}; found {len(places)} in {among}'
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
