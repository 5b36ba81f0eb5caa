"""The spec of a layer: a chain of encodings, or one mixer in the place of attention."""

from posenc_jax.core.registry import SpecError, quoted
from posenc_jax.core.spec import Chain, parse


def parse_layer(spec: str) -> Chain:
    """Parses the spec of a layer: a chain of encodings, or one mixer that replaces attention.

    Raises:
      SpecError: as for `parse`; a mixer in a chain, or one that is not a layer of a model.

    Example:
      >>> str(parse_layer('rope() | alibi()'))
      'rope() | alibi()'
    """
    chain = parse(spec, ('encoding', 'mixer'))
    for node in chain.nodes:
        if node.entry.kind != 'mixer':
            continue
        if not node.entry.is_layer:
            raise SpecError(f'{node.entry.key} is a mixer with a model of its own, not a layer')
        if len(chain.nodes) > 1:
            raise SpecError(
                f'{node.entry.key} replaces attention, so it stands alone in a layer; mix it with '
                f'encodings by pattern, e.g. ("{node.entry.key}()", "rope()"); got {quoted(spec)}'
            )
    return chain
