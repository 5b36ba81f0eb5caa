"""Builds the parts of a transformer: those that exist once, and those that every layer owns."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from posenc_jax.lab.model.block import Block
from posenc_jax.lab.model.change_parts import STEM_DOORS, Link
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.language.make import make
from posenc_jax.layer.cross import stacked_cross
from posenc_jax.protocol.composite import ChainedEncoding, name_of, parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import SpecError


def assemble(
    cfg: TransformerConfig, rngs: nnx.Rngs
) -> tuple[list[Encoding], list[Block], tuple[tuple[Link, ...], ...]]:
    """Builds the encodings that exist once, the block of every layer type of the pattern, and the
    links of each layer type's chain.
    """
    names: list[tuple[str, int, int]] = []
    shared: list[Encoding] = []
    blocks, links = [], []

    def shared_link(name, part) -> Link:
        if name not in names:
            names.append(name)
            shared.append(part)
        return Link(True, names.index(name))

    for spec in cfg.specs:
        nodes = parse_layer(spec).nodes
        mixer = nodes[-1] if nodes[-1].entry.kind == 'mixer' else None
        if mixer is not None:
            _check_direction(cfg, mixer)
            nodes = nodes[:-1]
        built = [
            parts_of(spec_language.build(node, {**cfg.context, 'rngs': rngs})) for node in nodes
        ]
        given = [part for parts in built for part in parts]
        own, owned, chain_links, seen = [], 0, [], []
        for node, parts in zip(nodes, built):
            if _in_layer(cfg, node, parts):
                own.append(node)
                chain_links += [Link(False, owned + i) for i in range(len(parts))]
                owned += len(parts)
                continue
            seen.append(str(node))
            # The same call twice in one chain is two parts.
            name = str(node), seen.count(str(node))
            chain_links += [shared_link((*name, i), part) for i, part in enumerate(parts)]
        if mixer is None:  # the masks that a decoder or an encoder adds
            for mask in parts_of(make(ChainedEncoding(given), causal=cfg.causal))[len(given) :]:
                chain_links.append(shared_link((type(mask).__name__, 0, 0), mask))
        blocks.append(_stacked_block(cfg, own if mixer is None else [mixer], rngs))
        links.append(tuple(chain_links))
    if all(block.own_mixer is not None for block in blocks):
        for name, found, none in (
            ('lora_rank', cfg.lora_rank, 0), ('qk_norm', cfg.qk_norm, 'none'),
            ('head_norm', cfg.head_norm, False),
        ):  # fmt: skip
            if found != none:
                raise SpecError(
                    f'{name} is {found!r}, but it acts on the projections of attention, which no '
                    f'layer of {", ".join(cfg.specs)} has; set it to {none!r}'
                )
    return shared, blocks, tuple(links)


def check_depths(cfg: TransformerConfig, shared: Sequence[Encoding]) -> None:
    """Refuses encodings that act before a layer that the model does not have."""
    for part in shared:
        if part.depth != 'every' and not 0 <= part.depth < cfg.layers:
            raise SpecError(
                f'{name_of(part)} acts before layer {part.depth}, but the layers are 0 .. '
                f'{cfg.layers - 1}; use a smaller depth or more layers'
            )


def _check_direction(cfg, node: spec_language.Node) -> None:
    """Refuses a mixer that reads from left to right in a model that sees later tokens, and one that
    sees later tokens in a model that does not.
    """
    if cfg.causal and getattr(node.entry.build, 'sees_later', False):
        raise SpecError(
            f'{node.entry.key} sees the tokens on both sides, but a model of kind {cfg.kind!r} '
            "sees earlier ones alone; use kind 'encoder'"
        )
    if not cfg.causal and node.entry.card is not None and node.entry.card.causal_only:
        raise SpecError(
            f'{node.entry.key} reads tokens from left to right, so it needs a causal model, not '
            f"one of kind {cfg.kind!r}; use kind 'decoder', or encodings such as 'rope()'"
        )


def _in_layer(cfg, node: spec_language.Node, parts: tuple[Encoding, ...]) -> bool:
    """Whether every layer has its own copy of the parts that a call builds. Parts that act at the
    stem, and parts without variables, exist once. Without a Card, 'auto' is one copy in each layer.
    """
    card = node.entry.card
    usual = 'layer' if card is None else card.share
    share = usual if cfg.share == 'auto' else cfg.share
    at_stem = any(part.opens(door) for part in parts for door in STEM_DOORS)
    has_variables = any(jax.tree.leaves(nnx.state(part)) for part in parts)
    return share == 'layer' and not at_stem and has_variables


def _stacked_block(cfg, nodes: Sequence[spec_language.Node], rngs: nnx.Rngs) -> Block:
    """The blocks of all groups as one module, whose variables have the groups as leading axis. The
    parts of `nodes`, or their one mixer, are built for each group.
    """
    groups = cfg.layers // len(cfg.specs)

    def build(key):
        context = {**cfg.context, 'layers': cfg.layers, 'rngs': nnx.Rngs(key)}
        made = (spec_language.build(node, context) for node in nodes)
        is_mixer = lambda one: one.spec_kind == 'mixer'
        parts = [part for one in made for part in ([one] if is_mixer(one) else parts_of(one))]
        return nnx.split(nnx.List(parts))

    built: Any = (
        nnx.merge(*jax.vmap(build)(jax.random.split(rngs.params(), groups))) if nodes else []
    )
    own_mixer = built.pop() if nodes and nodes[0].entry.kind == 'mixer' else None
    cross = stacked_cross(cfg, groups, rngs) if cfg.kind == 'encoder_decoder' else None
    return Block(cfg, built, stack=(groups,), rngs=rngs, own_mixer=own_mixer, cross=cross)
