"""The parameters of one model in the places that another has for them, whose encodings may have
more parts.
"""

from collections.abc import Iterator
from typing import Any

from flax import nnx

from posenc_jax.core.composite import name_of
from posenc_jax.core.registry import SpecError
from posenc_jax.model.transformer import Transformer

Path = tuple[Any, ...]


def carried(source: Transformer, wanted: Transformer) -> dict[str, Any]:
    """The parameters of `source`, as nested dicts. Those of a part of an encoding are in the place
    that the same method has in `wanted`.

    A method that a chain has several times is counted from the end, since further parts come in
    front. A part whose method is not in the other chain keeps its place.

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
    placed = {}
    for path, leaf in flat.items():
        part = next((path[:end] for end in range(len(path)) if path[:end] in {**moves, **stay}), ())
        if part in stay and part not in moves and part in moves.values():
            raise SpecError(
                f'{stay[part]} has parameters, and the encoding that would continue it has no '
                f'{stay[part]}'
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
