"""Applies a context extension, given as a spec string, to an encoding or to its spec string."""

import dataclasses

from posenc_jax.core import spec as spec_language
from posenc_jax.core.compose import chain
from posenc_jax.core.composite import name_of, parts_of
from posenc_jax.core.encoding import Encoding
from posenc_jax.core.families import Bias
from posenc_jax.core.registry import SpecError, lookup
from posenc_jax.extension.parts import is_relative_bias
from posenc_jax.rotation.rope import Rotary


def extend(encoding: Encoding, spec: str, **context) -> Encoding:
    """The encoding with its rotary part (or relative bias) extended.

    All other parts and all variables are kept.

    A frequency rule replaces the rule of the rotary part. An extension (`dca`, `lm_infinite`) wraps
    the part, or takes one of the classes in its attribute `extends` if it has that (`alibi_pi`).
    One that makes another size of the same part (`segmented_sequences`) has an attribute `written`,
    which does that to the call in a spec string. Several, joined by `|`, are applied from left to
    right.

    Args:
      encoding: a single encoding or a chain.
      spec: e.g. 'yarn(factor=4.0)', 'lm_infinite()', 'pi(factor=2.0) | dca()'.
      **context: what the spec need not repeat, above all `train_len`.

    Raises:
      SpecError: the spec is wrong, or the encoding has no part, or several, that it could extend.

    Example:
      >>> import posenc_jax as pj
      >>> long = extend(
      ...     pj.make('rope()', head_dim=64, causal=True), 'yarn(factor=4.0)', train_len=64
      ... )
      >>> long.parts[0].freqs.factor
      4.0
    """
    for node in _calls(spec):
        parts, own = parts_of(encoding), _extends(node)
        relative = lambda part: (
            isinstance(part, Rotary) or (node.entry.kind == 'extension' and is_relative_bias(part))
        )
        found = [part for part in parts if (isinstance(part, own) if own else relative(part))]
        part = _the_one(node, found, ' | '.join(map(name_of, parts)))
        if node.entry.kind == 'frequencies':
            freqs = spec_language.build(node, context)
            extended = Rotary(part.base, part.layout, part.partial, freqs, part.head_dim)
        else:
            extended = spec_language.build(node, {**context, 'encoding': part})
        encoding = chain(*(extended if other is part else other for other in parts))
    return encoding


def extended_spec(encoding: str, spec: str) -> str:
    """`extend` on spec strings: the encoding that can be trained with this extension from the
    start.

    Raises:
      SpecError: as `extend`; what only the sizes of a model show is found when the result is built.

    Example:
      >>> extended_spec('rope(base=500.0) | alibi()', 'yarn(factor=4.0)')
      'rope(base=500.0, freqs=yarn(factor=4.0)) | alibi()'
    """
    nodes = list(spec_language.parse(encoding).nodes)
    for node in _calls(spec):
        kinds = _extends(node) or ((Rotary, Bias) if node.entry.kind == 'extension' else (Rotary,))
        relative = lambda n: issubclass(n.entry.build, Rotary) or n.entry.card.promises.relative
        fits = lambda n: (
            issubclass(n.entry.build, kinds)
            and (hasattr(node.entry.build, 'written') or relative(n))
        )
        found = [n for n in nodes if isinstance(n.entry.build, type) and fits(n)]
        part = _the_one(node, found, str(spec_language.Chain(tuple(nodes))))
        if hasattr(node.entry.build, 'written'):
            extended = node.entry.build.written(part, **node.arguments)
        elif node.entry.kind == 'frequencies':
            extended = dataclasses.replace(part, arguments={**part.arguments, 'freqs': node})
        else:
            entry = lookup(node.entry.key, ('encoding',))
            wrapped = (
                {'encoding': spec_language.Chain((part,))} if 'encoding' in entry.parameters else {}
            )
            extended = spec_language.Node(entry, {**wrapped, **node.arguments})
        nodes = [extended if other is part else other for other in nodes]
    return str(spec_language.Chain(tuple(nodes)))


def _calls(spec: str) -> tuple[spec_language.Node, ...]:
    """The calls of an extension, of which one may be a frequency rule: a second one would replace
    the first.
    """
    nodes = spec_language.parse(spec, kinds=('extension', 'frequencies')).nodes
    rules = [node.entry.key for node in nodes if node.entry.kind == 'frequencies']
    if len(rules) > 1:
        raise SpecError(
            f'{spec}: {rules[1]} would replace {rules[0]}, an encoding has one frequency rule; '
            'leave one out'
        )
    return nodes


def _extends(node: spec_language.Node) -> tuple[type[Encoding], ...]:
    """The classes that an extension says it extends; () where it takes any rotary encoding or
    relative bias.
    """
    return getattr(node.entry.build, 'extends', ())


def _the_one(node: spec_language.Node, found: list, among: str):
    """The one part that a call extends."""
    if 'encoding' in node.arguments:
        raise SpecError(
            f'{node.entry.key} extends the encoding that is there; leave out '
            f'encoding={node.arguments["encoding"]}'
        )
    if len(found) != 1:
        wanted = 'one rotary encoding' + (
            ' or one relative bias' if node.entry.kind == 'extension' else ''
        )
        if own := _extends(node):
            wanted = ' or '.join(
                'one rotary encoding' if kind is Rotary else f'one {kind.card.name}' for kind in own
            )
        raise SpecError(f'{node.entry.key} extends {wanted}; found {len(found)} in {among}')
    return found[0]
