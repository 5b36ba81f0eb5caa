"""Moves the parameters of a model to where another model, whose encodings may have more parts,
expects them.
"""

from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.errors import SpecError

Path = tuple[Any, ...]


def carried(source: Transformer, wanted: Transformer) -> dict[str, Any]:
    """The parameters of `source`, as nested dicts. The parameters of an encoding, or of a part of
    one, are put where the same method has them in `wanted`.

    If a chain has a method several times, its parts are matched from the end, since an extension
    adds parts in front. A part whose method does not occur in `wanted` keeps its place. Where the
    pattern of layers of `wanted` repeats that of `source` with other encodings, as in `nope()` for
    every fourth layer of a rotary model, each layer keeps its parameters.

    Args:
      source, wanted: two models of one kind, or their shapes.

    Raises:
      SpecError: a part with parameters would keep a place that another part has in `wanted`.
    """
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(nnx.state(source, nnx.Param)))
    for above, own, other in _stacks(source, wanted):
        flat = _divided(flat, above, len(own.blocks), len(other.blocks))
    moves: dict[Path, Path] = {}
    stay: dict[Path, str] = {}
    for old, new in zip(_chains(source, wanted), _chains(wanted, wanted)):
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


def _stacks(model: Transformer, wanted: Transformer) -> Iterator[tuple[Path, Any, Any]]:
    """Where the parameters of each stack lie, the stack, and the one that takes them over."""
    places = [(), *(('lower', n) for n in range(len(model.lower))), ('encoder',)]
    return zip(places, model.stacks, wanted.stacks)


def _divided(flat: dict[Path, Any], above: Path, types: int, wanted: int) -> dict[Path, Any]:
    """The parameters of a stack whose layers, which lie one behind the other in an array for each
    layer type, are those of a pattern of `wanted` types; unchanged if that is no multiple.
    """
    if wanted == types or wanted % types:
        return flat
    found, times = {}, wanted // types
    for path, leaf in flat.items():
        if path[: len(above) + 1] != (*above, 'blocks'):
            found[path] = leaf
            continue
        layer_type, rest = path[len(above) + 1], path[len(above) + 2 :]
        for n in range(times):
            cut = lambda a, n=n: a[n::times]
            abstract = isinstance(leaf, jax.ShapeDtypeStruct)
            part = jax.eval_shape(cut, leaf) if abstract else cut(leaf)
            found[*above, 'blocks', layer_type + n * types, *rest] = part
    return found


def _chains(model: Transformer, wanted: Transformer) -> Iterator[list[tuple[Path, str]]]:
    """The chain of each layer type that is wanted, from its end: where a part's parameters lie, and
    its method.
    """
    for above, stack, other in _stacks(model, wanted):
        types = len(stack.blocks)
        for layer_type in range(types if len(other.blocks) % types else len(other.blocks)):
            own, block = (
                (*above, 'blocks', layer_type, 'encodings'),
                stack.blocks[layer_type % types],
            )
            yield [
                (
                    ((*above, 'shared') if link.shared else own) + (link.number,),
                    name_of(stack._part(link, block)),
                )
                for link in reversed(stack.links[layer_type % types])
            ]
