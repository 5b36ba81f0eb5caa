"""Copies of a model with other encodings: extended, or with all parts of one class changed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from posenc_jax.methods.extend import extend
from posenc_jax.protocol import conflicts
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import SpecError

# An encoding that opens one of these exists once in a model.
STEM_DOORS = ('place', 'embed', 'anchor', 'auxiliary_loss')


@dataclasses.dataclass(frozen=True)
class Link:
    """Where one part of a layer's chain lives: in `shared` of the model or in `encodings` of the
    layer, under `number`.
    """

    shared: bool
    number: int


def extended(model, spec: str, context: dict[str, Any]):
    """See `Transformer.extend`."""
    model, refused = nnx.clone(model), []
    stacks = getattr(model, 'stacks', [model])
    for stack in stacks:
        try:
            _extend_stack(stack, spec, {**stack.cfg.context, **context})
        except SpecError as error:
            refused.append(error)
    if len(refused) == len(stacks):
        raise refused[0]
    return model


def _extend_stack(model, spec: str, context: dict[str, Any]) -> None:
    """Extends the encodings of a stack of layers, in place.

    Raises:
      SpecError: no layer has a part that this extension works on.
    """
    shared, blocks, links, refused = list(model.shared), [], [], []
    # Layer types that share a part go on sharing it.
    renewed: dict[tuple[Link, ...], list[Link]] = {}

    for layer_type, block in enumerate(model.blocks):
        if block.own_mixer is not None:
            key = block.own_mixer.card.key
            refused.append(SpecError(f'{key} has no encoding that {spec} could extend'))
            links.append(model.links[layer_type])
            blocks.append(block)
            continue
        graphdef, state = nnx.split(block)

        def layer_of(state, layer_type=layer_type, graphdef=graphdef):
            """One layer with its extended parts, the links of its chain with None for a new shared
            part, the new shared parts, and the links of the parts that they replace.
            """
            layer = nnx.merge(graphdef, state)
            old = {
                id(part): link
                for link in model.links[layer_type]
                for part in [model._part(link, layer)]
            }
            parts = parts_of(extend(model.encoding(layer_type, layer), spec, **context))
            gone = tuple(link for ident, link in old.items() if ident not in map(id, parts))
            own, fresh, chain_links = [], [], []
            for part in parts:
                link = old.get(id(part))
                if link is None and all(link.shared for link in gone):
                    fresh.append(part)
                elif link is None or not link.shared:
                    link = Link(False, len(own))
                    own.append(part)
                chain_links.append(link)
            layer.encodings = nnx.List(own)
            return layer, chain_links, fresh, gone

        try:
            _, chain_links, fresh, gone = layer_of(jax.tree.map(lambda a: a[0], state))
        except SpecError as error:
            refused.append(error)
            links.append(model.links[layer_type])
            blocks.append(block)
            continue
        if gone not in renewed:
            renewed[gone] = [Link(True, len(shared) + i) for i in range(len(fresh))]
            shared += fresh
        numbers = iter(renewed[gone])
        links.append(tuple(next(numbers) if link is None else link for link in chain_links))
        blocks.append(nnx.merge(*jax.vmap(lambda state: nnx.split(layer_of(state)[0]))(state)))
    if len(refused) == len(links):
        raise refused[0]
    model.blocks = nnx.List(blocks)
    _link(model, shared, links)


def with_changed_parts(model, kind: type[Encoding], change: Callable):
    """See `Transformer.map_parts`."""
    key = kind.card.key if hasattr(kind, 'card') else kind.__name__
    model, links, found = nnx.clone(model), [], False
    for layer_type, block in enumerate(model.blocks):
        own, chain_links = list(block.encodings), list(model.links[layer_type])
        layers = jnp.arange(layer_type, model.cfg.layers, len(model.blocks))
        for number, link in enumerate(chain_links):
            part = model._part(link, block)
            if not isinstance(part, kind):
                continue
            if at_stem := [door for door in STEM_DOORS if part.opens(door)]:
                raise ValueError(
                    f'map_parts gives every layer its own part, but {key} opens {at_stem[0]!r} and '
                    'exists once'
                )
            found, changed = True, change(nnx.clone(part), layers)
            if link.shared:
                chain_links[number] = Link(False, len(own))
                own.append(changed)
            else:
                own[link.number] = changed
        block.encodings = nnx.List(own)
        conflicts.check([model._part(link, block) for link in chain_links])
        links.append(tuple(chain_links))
    if not found:
        chains = ', '.join(
            ' | '.join(map(name_of, parts_of(model.encoding(*at))))
            if at[1].own_mixer is None
            else at[1].own_mixer.card.key
            for at in enumerate(model.blocks)
        )
        raise ValueError(f'the model has no {key} part; its layers have {chains}')
    _link(model, model.shared, links)
    return model


def _link(model, shared, links):
    """Sets the shared parts and the links of every chain, and drops shared parts that no chain
    uses.
    """
    used = sorted({link.number for chain_links in links for link in chain_links if link.shared})
    moved = lambda link: Link(True, used.index(link.number)) if link.shared else link
    model.shared = nnx.List([shared[number] for number in used])
    model.links = tuple(tuple(map(moved, chain_links)) for chain_links in links)
