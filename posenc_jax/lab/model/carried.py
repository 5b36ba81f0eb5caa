"""Moves the parameters of a model to where another model, whose encodings may have more parts,
expects them.
"""

from collections.abc import Iterator
from typing import Any

from flax import nnx

from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.errors import SpecError

Path = tuple[Any, ...]


def carried(source: Transformer, wanted: Transformer) -> dict[str, Any]:
    """The parameters of `source`, as nested dicts. The parameters of an encoding, or of a part of
    one, are put where the same method has them in `wanted`.

    If a chain has a method several times, its parts are matched from the end, since an extension
    adds parts in front. A part whose method does not occur in `wanted` keeps its place.

    Args:
      source, wanted: two models of one kind, or their shapes.

    Raises:
      SpecError: a part with parameters would keep a place that another part has in `wanted`.
    """
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(source, nnx.Param)))
    moves: dict[Path, Path] = {}
    stay: dict[Path, str] = {}
    for old, new in zip(_chains(source), _chains(wanted)):
        for place, method in old:
            at = next((i for i, (_, other) in enumerate(new) if other == method), None)
            if at is None:
                stay[place] = method
            else:
                moves[place] = new[at][0]
                new = new[:at] + new[at + 1 :]
    known, taken, placed = moves.keys() | stay.keys(), set(moves.values()), {}
    for path, leaf in flat.items():
        part = next((path[:end] for end in range(len(path)) if path[:end] in known), ())
        if part not in moves and part in taken:
            raise SpecError(
                f'{stay[part]} has parameters, and the encoding that would continue it has no '
                f'{stay[part]}; keep this part, or put other parts in front of it'
            )
        placed[moves.get(part, part) + path[len(part) :]] = leaf
    return nnx.traversals.unflatten_mapping(placed)


def _chains(model: Transformer) -> Iterator[list[tuple[Path, str]]]:
    """The chain of each layer type, from its end: where a part's parameters lie, and its method."""
    places = [(), *(('lower', n) for n in range(len(model.lower))), ('encoder',)]
    for stack, above in zip(model.stacks, places):
        for layer_type, block in enumerate(stack.blocks):
            own = (*above, 'blocks', layer_type, 'encodings')
            yield [
                (
                    ((*above, 'shared') if link.shared else own) + (link.number,),
                    name_of(stack._part(link, block)),
                )
                for link in reversed(stack.links[layer_type])
            ]
