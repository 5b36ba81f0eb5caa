"""The transformer, decoder or encoder: one stem, layers scanned over stacked variables, one
output.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.core.composite import ChainedEncoding
from posenc_jax.core.encoding import Encoding
from posenc_jax.core.tables import known_range, lookup_rows
from posenc_jax.core.tokens import Tokens
from posenc_jax.model import change_parts
from posenc_jax.model.assemble import assemble
from posenc_jax.model.block import Block
from posenc_jax.model.change_parts import Link
from posenc_jax.model.config import TransformerConfig
from posenc_jax.model.layers import Norm, dropout, normal
from posenc_jax.model.mixer import AttentionMixer
from posenc_jax.model.projections import merge_adapters
from posenc_jax.model.sharding import constrain


class Transformer(nnx.Module):
    """A pre-norm transformer with a positional encoding in every layer.

    The pattern repeats with a period, and a layer type is an index in it. Each layer type has one
    `Block` whose variables are stacked over the repetitions, and one `lax.scan` goes over them.
    Parts of an encoding that open `place` or `embed`, parts shared by all layers and parts without
    variables live once in `shared`; the others live in the blocks.

    Args:
      cfg: sizes and choices.
      rngs: initial parameters come from `rngs.params()`.

    Example:
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='alibi()'
      ... )
      >>> Transformer(cfg, rngs=nnx.Rngs(0))(jnp.zeros((1, 5), jnp.int32)).shape
      (1, 5, 7)
    """

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.embedding = normal(rngs, (cfg.vocab_size, cfg.width), cfg.width, ('vocab', 'width'))
        shared, blocks, links = assemble(cfg, rngs)
        self.shared = nnx.List(shared)
        self.blocks = nnx.List(blocks)
        self.links = links
        self.embedding_norm = (
            Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon) if cfg.embedding_norm else None
        )
        self.norm = Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon)
        self.output = (
            None
            if cfg.tie
            else normal(rngs, (cfg.width, cfg.vocab_size), cfg.width, ('width', 'vocab'))
        )

    def encoding(self, layer_type: int, block: Block) -> Encoding:
        """The chain of a layer of this type, with the parts that `block` owns."""
        parts = [self._part(link, block) for link in self.links[layer_type]]
        return parts[0] if len(parts) == 1 else ChainedEncoding(parts)

    def mixer(self, layer_type: int, block: Block) -> AttentionMixer:
        """The attention of a layer of this type, as a mixer."""
        return block.mixer(self.encoding(layer_type, block))

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

    def embed(self, tokens: Int[Array, 'B T'], placed: tuple[Tokens, ...]) -> Float[Array, 'B T D']:
        """Token vectors of about unit variance, changed once by the `embed` of every shared part.

        Raises:
          ValueError: ids outside the vocabulary, except those of padding. Traced ids outside it
            give NaN.
        """
        valid = placed[0].valid
        tokens = tokens if valid is None else jnp.where(valid, tokens, 0)
        self.check_ids(tokens)
        x = lookup_rows(self.embedding[...], tokens) * self.cfg.embedding_scale
        x = constrain(x.astype(self.cfg.dtype), 'batch', 'sequence', None)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        done = set()
        for layer_type, tok in enumerate(placed):
            for number, part in self.stem(layer_type):
                if number not in done:
                    x = part.embed(x, tok)
                    done.add(number)
        return x

    def hidden(
        self,
        tokens: Int[Array, 'B T'],
        tok: Tokens | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Float[Array, 'B T D']:
        """The last layer's output after the final norm, input of `logits`. Arguments as for a call
        of the model.
        """
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f'tokens must be integers [B, T], got {tokens.dtype} {tokens.shape}')
        tok = Tokens.of(length=tokens.shape[1]) if tok is None else tok
        for leaf in jax.tree.leaves(tok):
            if leaf.shape[1] != tokens.shape[1] or leaf.shape[0] not in (1, tokens.shape[0]):
                raise ValueError(
                    f'tokens {tokens.shape} do not fit tok, which has an array {leaf.shape}'
                )
        if train and key is None:
            raise ValueError('train=True needs a key: dropout and positions may be random')
        place_key, stem_key, layer_key = (
            (None, None, None) if key is None else jax.random.split(key, 3)
        )
        placed = self.place(tok, tokens, key=place_key)
        if not train:
            stem_key, layer_key = None, None
        x = dropout(self.embed(tokens, placed), self.cfg.dropout, stem_key)

        def layer(x, number, layer_type, block):
            own_key = None if layer_key is None else jax.random.fold_in(layer_key, number)
            return block(x, placed[layer_type], self.encoding(layer_type, block), key=own_key), None

        x, _ = self.scan_layers(layer, x)
        return self.norm(x)

    def scan_layers(
        self, layer: Callable, x: Float[Array, 'B T D']
    ) -> tuple[Float[Array, 'B T D'], tuple]:
        """Takes `x` through all layers by `layer(x, number, layer_type, block) -> (x, out)`;
        compiled once per period.

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

        if self.cfg.remat == 'full':
            group = jax.checkpoint(group, prevent_cse=False)
        elif self.cfg.remat == 'dots':
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            group = jax.checkpoint(group, prevent_cse=False, policy=policy)
        return jax.lax.scan(group, x, (jnp.arange(self.cfg.layers // period), states))

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

    def merged(self) -> 'Transformer':
        """The same function without adapters: their products are added into the projections."""
        model = nnx.clone(self)
        for block in model.blocks:
            block.attention = merge_adapters(block.attention)
        model.cfg = dataclasses.replace(self.cfg, lora_rank=0)
        return model

    def layers(self) -> list[tuple[int, Block]]:
        """All layers in order, each with its type, cut out of the stacks."""
        split = [nnx.split(block) for block in self.blocks]
        return [
            (layer_type, nnx.merge(graphdef, jax.tree.map(lambda a: a[group], state)))
            for group in range(self.cfg.layers // len(split))
            for layer_type, (graphdef, state) in enumerate(split)
        ]

    def unstacked(self) -> 'Transformer':
        """The same model with a period of all layers, so that no layer is cut out of a stack.

        It is made for decoding: the cuts copy all weights, which takes long beside a decode step,
        and here they are made once. In exchange, the compile time of a pass over whole sequences
        grows with the number of layers.

        Example:
          >>> cfg = TransformerConfig(
          ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='alibi()'
          ... )
          >>> len(Transformer(cfg, rngs=nnx.Rngs(0)).unstacked().blocks)
          2
        """
        model, groups = nnx.clone(self), self.cfg.layers // len(self.blocks)
        split = [nnx.split(block) for block in self.blocks]
        model.blocks = nnx.List(
            nnx.merge(graphdef, jax.tree.map(lambda a: a[group : group + 1], state))
            for group in range(groups)
            for graphdef, state in split
        )
        model.links = self.links * groups
        model.cfg = dataclasses.replace(self.cfg, pattern=self.cfg.specs * groups)
        return model

    def for_decoding(self) -> 'Transformer':
        """`unstacked`, with the projections of a layer that read the same input joined into one
        product.

        The function is the same up to rounding, for one device. A decode step is limited by memory,
        and fewer, longer products read it faster. Adapters are added into the weights. The result
        cannot be saved, exported or trained.

        Example:
          >>> cfg = TransformerConfig(
          ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='alibi()'
          ... )
          >>> Transformer(cfg, rngs=nnx.Rngs(0)).for_decoding().blocks[1].attention.rows_in.shape
          (1, 24, 8)
        """
        if self.blocks[0].mlp.rows_in is not None:
            return self
        model = self.unstacked()
        for block in model.blocks:
            block.attention, block.mlp = block.attention.joined(), block.mlp.joined()
        model.cfg = dataclasses.replace(model.cfg, lora_rank=0)
        return model

    def logits(self, hidden: Float[Array, 'B T D']) -> Float[Array, 'B T V']:
        """Float32 logits of any number of hidden rows, so that evaluation can go in chunks."""
        # The tied table is not transposed: XLA would copy it into the new layout on one core.
        table, axes = (
            (self.embedding, 'btd,vd->btv') if self.output is None else (self.output, 'btd,dv->btv')
        )
        out = jnp.einsum(
            axes, hidden, table[...].astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        return constrain(out, 'batch', 'sequence', None)

    def __call__(
        self,
        tokens: Int[Array, 'B T'],
        tok: Tokens | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
        last: int | None = None,
    ) -> Float[Array, 'B _ V']:
        """Logits in float32.

        Args:
          tokens: token ids.
          tok: what else is known about them (positions, documents, padding); None counts 0 .. T-1.
          key: draws random positions and dropout; None is the evaluation rule of the encodings.
          train: turns dropout on; needs a key.
          last: how many tokens, from the end, get logits; None for all.

        Raises:
          ValueError: shapes that do not fit, or `train` without a key.
        """
        if last is not None and not 1 <= last <= tokens.shape[1]:
            raise ValueError(f'last must lie in 1 .. {tokens.shape[1]}, got {last}')
        hidden = self.hidden(tokens, tok, key=key, train=train)
        return self.logits(hidden if last is None else hidden[:, -last:])

    def extend(self, spec: str, **context) -> 'Transformer':
        """The same weights with every encoding replaced by its context extension, e.g.
        'yarn(factor=4.0)'.

        A part that an extension replaces was in the model once or in every layer, and so is the
        new part. In a pattern, layers that have nothing to extend stay as they are.

        Args:
          spec: an extension (see `posenc_jax.extension`).
          **context: overrides what the model tells the extension (`train_len`, `head_dim`, ...).

        Raises:
          SpecError: the spec is wrong, or no layer has a part that this extension works on.
        """
        return change_parts.extended(self, spec, context)

    def map_parts(
        self, kind: type[Encoding], change: Callable[[Encoding, Int[Array, 'groups']], Encoding]
    ) -> 'Transformer':
        """A copy in which the result of `change` replaces every part of one class. Every layer then
        owns its part.

        Args:
          kind: the class, which acts on layers (does not open `place` or `embed`).
          change: `change(part, layers) -> part`, once for each layer type that has such a
            part. `layers` are the numbers of its layers. The variables of the result have the
            layers as leading axis, like those of `part` if layers owned it.

        Raises:
          ValueError: no layer has a part of this class, or it acts at the stem, which exists once.

        Example:
          >>> from posenc_jax.logits.alibi import ALiBi
          >>> cfg = TransformerConfig(
          ...     vocab_size=7, train_len=8, layers=3, width=8, heads=2, encoding='alibi()'
          ... )
          >>> def steeper(part, layers):
          ...     part.slopes = type(part.slopes)(
          ...         part.slopes[...] * (1 + layers)[:, None], axes=('heads',)
          ...     )
          ...     return part
          >>> model = Transformer(cfg, rngs=nnx.Rngs(0)).map_parts(ALiBi, steeper)
          >>> [model.encoding(*at).parts[0].slopes[0].tolist() for at in model.layers()]
          [0.0625, 0.125, 0.1875]
        """
        return change_parts.with_changed_parts(self, kind, change)


def abstract_model(cfg: TransformerConfig, extend: str = '') -> Transformer:
    """The model, with its context extension, as shapes without values."""

    def build():
        model = Transformer(cfg, rngs=nnx.Rngs(0))
        return model.extend(extend) if extend else model

    return nnx.eval_shape(build)
