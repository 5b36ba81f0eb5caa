"""Applies a context extension, written as a spec string, to an encoding that exists."""

from posenc_jax.core import spec as spec_language
from posenc_jax.core.compose import chain, name_of, parts_of
from posenc_jax.core.encoding import Encoding
from posenc_jax.core.registry import SpecError
from posenc_jax.extension.parts import is_relative_bias
from posenc_jax.rotation.rope import Rotary


def extend(encoding: Encoding, spec: str, **context) -> Encoding:
    """The encoding with its rotary part (or relative bias) extended; every other part, and all variables, are kept.

    A frequency rule replaces the rule of the rotary part. An extension (`dca`, `lm_infinite`) wraps the part. Several,
    joined by `|`, are applied from left to right.

    Args:
      encoding: a single encoding or a chain.
      spec: e.g. 'yarn(factor=4.0)', 'lm_infinite()', 'pi(factor=2.0) | dca()'.
      **context: what the spec need not repeat, above all `train_len`.

    Raises:
      SpecError: the spec is wrong, or the encoding has no part, or several, that it could extend.

    Example:
      >>> import posenc_jax as pj
      >>> long = extend(pj.make('rope()', head_dim=64, causal=True), 'yarn(factor=4.0)', train_len=64)
      >>> long.parts[0].freqs.factor
      4.0
    """
    for node in spec_language.parse(spec, kinds=('extension', 'frequencies')).nodes:
        if 'encoding' in node.arguments:
            raise SpecError(f'{node.entry.key} extends the encoding that is there; leave out encoding={node.arguments["encoding"]}')
        parts = parts_of(encoding)
        extends_bias = node.entry.kind == 'extension'
        found = [part for part in parts if isinstance(part, Rotary) or (extends_bias and is_relative_bias(part))]
        if len(found) != 1:
            wanted = 'one rotary encoding' + (' or one relative bias' if extends_bias else '')
            raise SpecError(f'{node.entry.key} extends {wanted}; found {len(found)} in {" | ".join(map(name_of, parts))}')
        (part,) = found
        if node.entry.kind == 'frequencies':
            freqs = spec_language.build(node, context)
            extended = Rotary(part.base, part.layout, part.partial, freqs, part.head_dim)
        else:
            extended = spec_language.build(node, {**context, 'encoding': part})
        encoding = chain(*(extended if other is part else other for other in parts))
    return encoding
