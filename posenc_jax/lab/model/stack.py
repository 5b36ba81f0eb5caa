"""A stack of layers behind an embedding table: what a decoder, an encoder and the source side of
an encoder-decoder have in common.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.lab.model.assemble import assemble, check_depths
from posenc_jax.lab.model.block import Block
from posenc_jax.lab.model.change_parts import Link
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.input_layer import make_input_layer
from posenc_jax.lab.model.mix_ffn import MixFFN
from posenc_jax.lab.model.unrolling import unrolled
from posenc_jax.layer.cross import Source
from posenc_jax.layer.layers import Norm, dropout, normal
from posenc_jax.layer.mixer import AttentionMixer
from posenc_jax.layer.sharding import constrain
from posenc_jax.layer.stream import StreamingMixer, begin_one_stream, has_stream
from posenc_jax.protocol.composite import ChainedEncoding, name_of, parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tables import known_range, lookup_rows
from posenc_jax.protocol.tokens import Tokens

# Token ids [B, T], vectors [B, T, C] or images [B, rows, columns, C].
Inputs = Int[Array, 'B T'] | Float[Array, 'B T C'] | Float[Array, 'B rows columns C']


class LayerStack(nnx.Module):
    """A table of token vectors, layers with a positional encoding or another mixer, and the final
    norm. In the place of ids a stack may read vectors or images (`cfg.channels`, `cfg.patch`); then
    an `input_layer` takes the place of the table.

    The pattern repeats with a period, and a layer type is an index in it. Each layer type has one
    `Block` whose variables are stacked over the repetitions, and one `lax.scan` goes over them.
    Parts of an encoding that open `place` or `embed`, parts shared by all layers and parts without
    variables live once in `shared`; the others live in the blocks.

    Args:
      cfg: sizes and choices.
      rngs: initial parameters come from `rngs.params()`.
    """

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        table = (cfg.vocab_size, cfg.width)
        self.embedding: Any = (
            None if cfg.channels else normal(rngs, table, cfg.width, ('vocab', 'width'))
        )
        self.input_layer: Any = make_input_layer(cfg, rngs)
        shared, blocks, links = assemble(cfg, rngs)
        check_depths(cfg, shared)
        self.shared: Any = nnx.List(shared)
        self.blocks = nnx.List(blocks)
        self.torus = any(part.opens('anchor') for part in shared)
        for block in blocks:
            if isinstance(block.mlp, MixFFN):
                block.mlp.circular = self.torus
        for number, block in enumerate(blocks):
            if isinstance(block.own_mixer, StreamingMixer):
                block.own_mixer.check_order([below.own_mixer for below in blocks[:number]])
        self.links = links
        self.embedding_norm = (
            Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon) if cfg.embedding_norm else None
        )
        self.norm = Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon)

    def encoding(self, layer_type: int, block: Block) -> Encoding:
        """The chain of a layer of this type, with the parts that `block` owns.

        Raises:
          ValueError: the layer has a mixer in the place of attention.
        """
        if block.own_mixer is not None:
            raise ValueError(
                f'layer {layer_type} of the pattern is {block.own_mixer.card.key}, which has no '
                'attention and so no encoding'
            )
        parts = [self._part(link, block) for link in self.links[layer_type]]
        return parts[0] if len(parts) == 1 else ChainedEncoding(parts)

    def mixer(self, layer_type: int, block: Block) -> Any:
        """What a layer of this type does between its norms, see `Block.mixer`."""
        if block.own_mixer is not None:
            return block.own_mixer
        return block.mixer(self.encoding(layer_type, block))

    def attention(self, layer_type: int, block: Block) -> AttentionMixer:
        """The attention of a layer of this type, for methods that read its queries and keys.

        Raises:
          ValueError: as for `encoding`.
        """
        encoding = self.encoding(layer_type, block)
        mixer: Any = block.mixer(encoding)
        if mixer.streams:
            owner = next(part for part in parts_of(encoding) if part.opens('begin_stream'))
            raise ValueError(
                f'{name_of(owner)} carries a stream from layer to layer, which this method does '
                'not pass on'
            )
        return mixer

    def begin_stream(self, placed: tuple[Tokens, ...], batch: int) -> Any:
        """The stream at the first layer, [batch, L, ...]; None where no layer reads one.

        Raises:
          ValueError: layers of two methods that have one.
        """
        owners = []
        for layer_type, (block, tok) in enumerate(zip(self.blocks, placed)):
            of_layer = (
                parts_of(self.encoding(layer_type, block))
                if block.own_mixer is None
                else (block.own_mixer,)
            )
            owners += [(part, tok) for part in of_layer if has_stream(part)]
        return begin_one_stream(owners, batch)

    def _part(self, link: Link, block: Block) -> Encoding:
        return self.shared[link.number] if link.shared else block.encodings[link.number]

    def stem(self, layer_type: int) -> list[tuple[int, Encoding]]:
        """The shared parts of a layer type, with their numbers in `shared`. No other parts
        open `place` or `embed`.
        """
        return [
            (link.number, self.shared[link.number])
            for link in self.links[layer_type]
            if link.shared
        ]

    @property
    def encodings(self) -> tuple[Encoding, ...]:
        """Those that layers share, and those of each block."""
        return *self.shared, *(part for block in self.blocks for part in block.encodings)

    @property
    def reads_ids(self) -> bool:
        """Whether some encoding places tokens by their ids."""
        return any('reads_ids' in part.traits for part in self.shared)

    def place(
        self, tok: Tokens, ids: Int[Array, 'B T'] | None = None, *, key: Array | None = None
    ) -> tuple[Tokens, ...]:
        """Tokens as each layer type sees them; with a key, by the training rule.

        Encodings that read ids get `ids`, or those of `tok`; the result has none.
        """
        if ids is not None and self.reads_ids:
            tok = dataclasses.replace(tok, ids=ids)
        placed = []
        for layer_type in range(len(self.links)):
            own = tok
            for number, part in self.stem(layer_type):
                own = part.place(own, key=None if key is None else jax.random.fold_in(key, number))
            placed.append(own if own.ids is None else dataclasses.replace(own, ids=None))
        return tuple(placed)

    def check_ids(self, tokens: Int[Array, '...'], valid: Bool[Array, '...'] | None = None) -> None:
        """Refuses ids outside the vocabulary, of which a compiled program would make NaN. Traced
        ids and those of padding are not checked.

        Raises:
          ValueError: ids outside; the message has their range and that of the vocabulary.
        """
        low, high = known_range(tokens, valid) or (0, 0)
        if low < 0 or high >= self.cfg.vocab_size:
            raise ValueError(
                f'token ids lie in 0 .. {self.cfg.vocab_size - 1} (vocab_size), got {low} .. {high}'
            )

    def tokens_of(self, inputs: Inputs, tok: Tokens | None = None) -> Tokens:
        """What is known about the tokens of an input: `tok`, or their order alone for None.

        Raises:
          ValueError: an input of another kind than this model reads, a `tok` that does not fit it,
            or any `tok` of an image, whose patches are its tokens.
        """
        if self.input_layer is not None:
            known = self.input_layer.tokens(inputs)
            if known.grid is not None and tok is not None:
                raise ValueError('the tokens of an image are its patches: leave tok out')
        elif inputs.ndim != 2 or not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(f'tokens must be integers [B, T], got {inputs.dtype} {inputs.shape}')
        else:
            known = Tokens.of(length=inputs.shape[1])
        given: Tokens = known if tok is None else tok
        for leaf in jax.tree.leaves(given):
            if leaf.shape[1] != known.length or leaf.shape[0] not in (1, inputs.shape[0]):
                raise ValueError(
                    f'inputs {inputs.shape} do not fit tok, which has an array {leaf.shape}'
                )
        return given

    def _ids(self, inputs: Inputs) -> Int[Array, 'B T'] | None:
        return inputs if self.input_layer is None else None

    def vectors(self, inputs: Inputs, tok: Tokens) -> Float[Array, 'B T D']:
        """Token vectors of about unit variance, before the `embed` of any part.

        Raises:
          ValueError: ids outside the vocabulary, except those of padding. Traced ids outside it
            give NaN.
        """
        if self.input_layer is None:
            ids = inputs if tok.valid is None else jnp.where(tok.valid, inputs, 0)
            self.check_ids(ids)
            x = lookup_rows(self.embedding[...], ids) * self.cfg.embedding_scale
        elif self.cfg.patch:
            for part in self.shared:
                inputs = part.anchor(inputs, self.cfg.patch) if part.opens('anchor') else inputs
            x = self.input_layer(inputs.astype(self.cfg.dtype), circular=self.torus)
        else:
            x = self.input_layer(inputs.astype(self.cfg.dtype), tok)
        x = constrain(x.astype(self.cfg.dtype), 'batch', 'sequence', None)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def once(self, placed: tuple[Tokens, ...], door: str) -> list[tuple[int, Any, Tokens]]:
        """The number of every shared part that opens a door, the part, and its tokens in the first
        layer type that has it.
        """
        found = {}
        for layer_type, tok in enumerate(placed):
            for number, part in self.stem(layer_type):
                found.setdefault(number, (number, part, tok))
        return [one for one in found.values() if one[1].opens(door)]

    def embed(self, inputs: Inputs, placed: tuple[Tokens, ...]) -> Float[Array, 'B T D']:
        """The input of the first layer: `vectors`, changed once by the `embed` of every shared part
        that acts there.

        Raises:
          ValueError: as for `vectors`; a part acts before later layers, which only `hidden` does.
        """
        if deep := self._deep(placed):
            raise ValueError(
                f'{name_of(deep[0][0])} changes the vectors before later layers, which this way of '
                'reading the model does not'
            )
        return self._at_input(inputs, placed)

    def _at_input(self, inputs, placed):
        x = self.vectors(inputs, placed[0])
        for _, part, tok in self.once(placed, 'embed'):
            x = part.embed(x, tok) if part.depth == 0 else x
        return x

    def _deep(self, placed: tuple[Tokens, ...]) -> list[tuple[Encoding, Tokens]]:
        """The shared parts whose `embed` acts before later layers, with their tokens."""
        return [(part, tok) for _, part, tok in self.once(placed, 'embed') if part.depth != 0]

    @property
    def opens_auxiliary_loss(self) -> bool:
        """Whether some encoding adds a term to the loss of training."""
        return any(part.opens('auxiliary_loss') for part in self.shared)

    def auxiliary_loss(self, tokens: Inputs, tok: Tokens | None, key: Array) -> Float[Array, '']:
        """The sum of the terms that the encodings add to the loss of training. Arguments as for
        `hidden`, in which `place` of every part gets the key that its term gets here.
        """
        place_key = jax.random.split(key, 3)[0]
        placed = self.place(self.tokens_of(tokens, tok), self._ids(tokens), key=place_key)
        x, loss = self.vectors(tokens, placed[0]), jnp.zeros((), jnp.float32)
        for number, part, own in self.once(placed, 'auxiliary_loss'):
            loss += part.auxiliary_loss(x, own, key=jax.random.fold_in(place_key, number))
        return loss

    def hidden(
        self,
        tokens: Inputs,
        tok: Tokens | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
        source: Source | None = None,
    ) -> Float[Array, 'B T D']:
        """The last layer's output after the final norm.

        Args:
          tokens: token ids, or the vectors or images that the model reads in their place.
          tok: what else is known about them (positions, documents, padding); None counts 0 .. T-1,
            and is required of images.
          key: draws random positions and dropout; None is the evaluation rule of the encodings.
          train: turns dropout on; needs a key.
          source: what cross-attention reads; None where the model has none.

        Raises:
          ValueError: shapes that do not fit, or `train` without a key.
        """
        tok = self.tokens_of(tokens, tok)
        if train and key is None:
            raise ValueError('train=True needs a key: dropout and positions may be random')
        place_key, stem_key, layer_key = (
            (None, None, None) if key is None else jax.random.split(key, 3)
        )
        placed = self.place(tok, self._ids(tokens), key=place_key)
        if not train:
            stem_key, layer_key = None, None
        x = dropout(self._at_input(tokens, placed), self.cfg.dropout, stem_key)
        deep = self._deep(placed)

        def layer(carry, number, layer_type, block):
            x, stream = carry
            for part, own in deep:
                x = _before_layer(part, x, own, number)
            tok, mixer = placed[layer_type], self.mixer(layer_type, block)
            own_key = None if layer_key is None else jax.random.fold_in(layer_key, number)
            if not mixer.streams:
                encoding = None if block.own_mixer is not None else mixer.encoding
                return (block(x, tok, encoding, key=own_key, source=source), stream), None

            mix = lambda h, stream: (*mixer.whole(h, tok, stream), None)
            cross = None if source is None else lambda x: block.cross.whole(x, tok, source)
            x, stream, _ = block.beside(x, stream, mixer, mix, cross, key=own_key)
            return (x, stream), None

        stream = self.begin_stream(placed, len(x))
        return self.norm(self.scan_layers(layer, (x, stream))[0][0])

    def scan_layers(self, layer: Callable, x: Any) -> tuple[Any, tuple]:
        """Takes `x`, or a pytree with it, through all layers by
        `layer(x, number, layer_type, block) -> (x, out)`; compiled once per period.

        Returns:
          The last x, and for each layer type its `out`, stacked over the groups.
        """
        graphdefs, states = zip(*(nnx.split(block) for block in self.blocks))
        period = len(graphdefs)

        def group(x, step):
            number, states = step
            outs = []
            for layer_type, (graphdef, state) in enumerate(zip(graphdefs, states)):
                x, out = layer(
                    x, number * period + layer_type, layer_type, nnx.merge(graphdef, state)
                )
                outs.append(out)
            return x, tuple(outs)

        policies = {'full': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
        if self.cfg.remat in policies:
            group = jax.checkpoint(group, prevent_cse=False, policy=policies[self.cfg.remat])
        steps = jnp.arange(self.cfg.layers // period), states
        return jax.lax.scan(group, x, steps, unroll=unrolled(self.cfg))

    def loop_layers(
        self,
        mix: Callable,
        x: Float[Array, 'B T D'],
        states: Sequence,
        layers: list[tuple[int, Block]] | None = None,
    ) -> tuple[Float[Array, 'B T D'], tuple]:
        """Takes `x` through all layers one after the other, each with its own state. The states may
        be of different kinds.

        Args:
          mix: `mix(h, mixer, layer_type, own)` maps the normed input h and the state of a layer to
            the term that is added to `x`, and the new state.
          x: the input of the first layer.
          states: one per layer.
          layers: the result of `layers()`, for a caller that loops: XLA does not hoist the cuts.

        Returns:
          The last x, and the new states.
        """
        after = []
        for (layer_type, block), own in zip(
            self.layers() if layers is None else layers, states, strict=True
        ):

            def mixed(h):
                out, grown = mix(h, self.mixer(layer_type, block), layer_type, own)
                after.append(grown)
                return out

            x = block.around(x, mixed)
        return x, tuple(after)

    def layers(self) -> list[tuple[int, Block]]:
        """All layers in order, each with its type, cut out of the stacks."""
        split = [nnx.split(block) for block in self.blocks]
        return [
            (layer_type, nnx.merge(graphdef, jax.tree.map(lambda a: a[group], state)))
            for group in range(self.cfg.layers // len(split))
            for layer_type, (graphdef, state) in enumerate(split)
        ]


def _before_layer(part: Encoding, x: Float[Array, 'B T D'], tok: Tokens, number) -> Array:
    """`part.embed` if it acts before layer `number`, which may be traced."""
    if part.depth == 'every':
        return part.embed(x, tok)
    return jax.lax.cond(number == part.depth, lambda x: part.embed(x, tok), lambda x: x, x)
