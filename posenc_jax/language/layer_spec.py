"""The spec of a layer: a chain of encodings, or a mixer in the place of attention."""

from posenc_jax.language.spec import Chain, Node, parse
from posenc_jax.protocol.errors import SpecError, quoted

# Encodings that act at these doors alone work before a layer without attention too.
BEFORE_LAYERS = {'place', 'embed'}


def parse_layer(spec: str) -> Chain:
    """Parses the spec of a layer: a chain of encodings, or a mixer that replaces attention, behind
    encodings that act on the token vectors, if any.

    Raises:
      SpecError: as for `parse`; a mixer that is not a layer of a model, is not the last call, or
        stands behind an encoding that acts within attention.

    Example:
      >>> str(parse_layer('rope() | alibi()')), str(parse_layer('sinusoidal() | gru()'))
      ('rope() | alibi()', 'sinusoidal() | gru()')
    """
    chain = parse(spec, ('encoding', 'mixer'))
    for number, node in enumerate(chain.nodes):
        if node.entry.kind != 'mixer':
            continue
        if not node.entry.is_layer:
            raise SpecError(f'{node.entry.key} is a mixer with a model of its own, not a layer')
        last = number == len(chain.nodes) - 1
        if not last or not all(map(_acts_before_layers, chain.nodes[:number])):
            raise SpecError(
                f'{node.entry.key} replaces attention, so it stands alone in a layer, behind '
                'encodings that act on token vectors, if any; mix it with other encodings by '
                f'pattern, e.g. ("{node.entry.key}()", "rope()"); got {quoted(spec)}'
            )
    return chain


def _acts_before_layers(node: Node) -> bool:
    card = node.entry.card
    if node.entry.kind != 'encoding' or card is None:
        return False
    return set(card.door.split(', ')) <= BEFORE_LAYERS
