"""The transformer: a decoder, an encoder, or an encoder-decoder, with one output."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.base.derivatives import at_own_precision
from posenc_jax.lab.model import change_parts
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.input_layer import check_sides
from posenc_jax.lab.model.stack import Inputs, LayerStack
from posenc_jax.layer.cross import Source
from posenc_jax.layer.layers import normal, pooled
from posenc_jax.layer.projections import merge_adapters
from posenc_jax.layer.sharding import constrain
from posenc_jax.methods.soft_cap import soft_cap_logits
from posenc_jax.protocol.checks import about
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens


class Transformer(LayerStack):
    """A pre-norm transformer with a positional encoding, or another mixer, in every layer.

    A model of kind 'encoder_decoder' has an `encoder`, a stack of layers of its own, whose output
    all its layers read by cross-attention. A pyramid over an image has stacks of layers in `lower`,
    from the image on, and this stack reads the grid of the last of them.

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
        lower = cfg.of_lower
        channels = lower[-1].width if lower else cfg.channels
        super().__init__(dataclasses.replace(cfg, channels=channels, lower=()), rngs=rngs)
        self.cfg = cfg
        self.lower = nnx.List(LayerStack(stage, rngs=rngs) for stage in lower)
        self.output = (
            None
            if cfg.tie
            else normal(rngs, (cfg.width, cfg.output_size), cfg.width, ('width', 'vocab'))
        )
        with about('source_encoding or source_pattern'):
            self.encoder = (
                LayerStack(cfg.of_source, rngs=rngs) if cfg.kind == 'encoder_decoder' else None
            )

    @property
    def stacks(self) -> list[LayerStack]:
        """This stack, and those that it reads."""
        return [self, *self.lower, *([] if self.encoder is None else [self.encoder])]

    def encoded(
        self,
        source: Int[Array, 'B S'],
        tok: Tokens | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Source:
        """The output of the encoder for a source, which `source` of a call takes. Arguments as for
        a call of the model.

        Raises:
          ValueError: the model has no encoder; as for a call.
        """
        if self.encoder is None:
            raise ValueError(f'a model of kind {self.cfg.kind!r} reads no source')
        tok = Tokens.of(length=source.shape[1]) if tok is None else tok
        x = self.encoder.hidden(source, tok, key=key, train=train)
        reads_order = any('reads_target_order' in part.traits for part in self.encoder.encodings)
        if tok.pos.ndim == 3 and reads_order:
            # Cross-attention reads the position of a word in the source, the first component.
            tok = dataclasses.replace(tok, pos=tok.pos[..., 0])
        return Source(x, tok)

    def merged(self) -> 'Transformer':
        """The same function without adapters: their products are added into the projections."""
        model = nnx.clone(self)
        for stack in model.stacks:
            stack.cfg = dataclasses.replace(stack.cfg, lora_rank=0)
            for block in stack.blocks:
                for holder in (block, block.cross):
                    if holder is not None and holder.attention is not None:
                        holder.attention = merge_adapters(holder.attention)
        return model

    def unstacked(self) -> 'Transformer':
        """The same model with a period of all layers, so that no layer is cut out of a stack.

        It is made for decoding: the cuts copy all weights, which takes long beside a decode step,
        and here they are made once. In exchange, the compile time of a pass over whole sequences
        grows with the number of layers.
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
        """
        if self.blocks[0].mlp.rows_in is not None:
            return self
        model = self.merged().unstacked()
        for block in model.blocks:
            block.mlp = block.mlp.joined()
            if block.attention is not None:
                block.attention = block.attention.joined()
        model.cfg = dataclasses.replace(model.cfg, lora_rank=0)
        return model

    def check_source(self, source: Source | None) -> None:
        """Raises ValueError if a source is missing, or given to a model that reads none."""
        if (source is None) != (self.encoder is None):
            raise ValueError(
                f'a model of kind {self.cfg.kind!r} '
                + ('reads no source' if self.encoder is None else 'needs source=encoded(...)')
            )

    @property
    def precision(self) -> str:
        """That of products, see `TransformerConfig`."""
        return self.cfg.precision

    @at_own_precision
    def logits(self, hidden: Float[Array, 'B T D']) -> Float[Array, 'B T V']:
        """Float32 logits of any number of hidden rows, so that evaluation can go in chunks."""
        # The tied table is not transposed: XLA would copy it into the new layout on one core.
        table, axes = (
            (self.embedding, 'btd,vd->btv') if self.output is None else (self.output, 'btd,dv->btv')
        )
        out = jnp.einsum(
            axes, hidden, table[...].astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        out = soft_cap_logits(out, self.cfg.output_cap) if self.cfg.output_cap else out
        return constrain(out, 'batch', 'sequence', None)

    def __call__(
        self,
        tokens: Inputs,
        tok: Tokens | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
        last: int | None = None,
        source: Source | None = None,
    ) -> Float[Array, 'B _ V']:
        """Logits in float32, [B, T, V]; [B, 1, V] of the pooled tokens if `cfg.pool` is set.

        Args:
          tokens: token ids, or the vectors or images that the model reads in their place.
          tok: what else is known about them (positions, documents, padding); None counts 0 .. T-1,
            and is required of images.
          key: draws random positions and dropout; None is the evaluation rule of the encodings.
          train: turns dropout on; needs a key.
          last: how many tokens, from the end, get logits; None for all.
          source: the result of `encoded`, for a model of kind 'encoder_decoder'.

        Raises:
          ValueError: shapes that do not fit, `train` without a key, or a source that is missing or
            not wanted.
        """
        if last is not None and not 1 <= last <= tokens.shape[1]:
            raise ValueError(f'last must lie in 1 .. {tokens.shape[1]}, got {last}')
        hidden = self.hidden(tokens, tok, key=key, train=train, source=source)
        return self.logits(hidden if last is None else hidden[:, -last:])

    def hidden(self, tokens, tok=None, *, key=None, train=False, source=None):
        """The input of `logits`: the last layer's output after the final norm, [B, T, D], or [B, 1,
        D] where it is pooled. Arguments as for a call of the model.

        Vectors [B, R, T, C] are R draws of the features of every row. Their results are averaged,
        which averages the logits, since these are linear in them.
        """
        self.check_source(source)
        if tokens.ndim == 4 and not self.cfg.patch:
            of_draw = lambda drawn: self.hidden(drawn, tok, key=key, train=train)
            return jax.vmap(of_draw, in_axes=1)(tokens).mean(0)
        if source is not None and len(source.x) != len(tokens):
            raise ValueError(f'{len(tokens)} rows of tokens, but {len(source.x)} of the source')
        if self.lower and tokens.ndim == 4:  # the first stage refuses another number of dimensions
            patches = [stage.cfg.patch for stage in (*self.lower, self)]
            check_sides(tokens.shape[1], tokens.shape[2], patches)
        for number, stage in enumerate(self.lower):
            grid: Any = stage.tokens_of(tokens, tok).grid
            rows, columns = grid
            own = None if key is None else jax.random.fold_in(key, number)
            x = stage.hidden(tokens, key=own, train=train)
            tokens = x.reshape(len(x), rows, columns, x.shape[-1])
        x = super().hidden(tokens, tok, key=key, train=train, source=source)
        return pooled(x, tok, self.cfg.pool) if self.cfg.pool else x

    def extend(self, spec: str, **context) -> 'Transformer':
        """The same weights with every encoding replaced by its context extension, e.g.
        'yarn(factor=4.0)'.

        A part that an extension replaces was in the model once or in every layer, and so is the
        new part. In a pattern, layers that have nothing to extend stay as they are, and so does
        cross-attention. The encoder of a source is extended too.

        Args:
          spec: an extension (see `posenc_jax.methods`).
          **context: overrides what the model tells the extension (`train_len`, `head_dim`, ...).

        Raises:
          SpecError: the spec is wrong, or no layer has a part that this extension works on.
        """
        return change_parts.extended(self, spec, context)

    def map_parts(
        self, kind: type[Encoding], change: Callable[[Encoding, Int[Array, 'groups']], Encoding]
    ) -> 'Transformer':
        """A copy in which the result of `change` replaces every part of one class. Every layer then
        owns its part. The encoder of a source and cross-attention stay as they are.

        Args:
          kind: the class, which acts on layers (does not open `place` or `embed`).
          change: `change(part, layers) -> part`, once for each layer type that has such a
            part. `layers` are the numbers of its layers. The variables of the result have the
            layers as leading axis, like those of `part` if layers owned it.

        Raises:
          ValueError: no layer has a part of this class, or it acts at the stem, which exists once.

        Example:
          >>> from posenc_jax.methods.alibi import ALiBi
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
