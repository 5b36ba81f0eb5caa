"""The block: mixers and a feed-forward network, each with its norms."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.derivatives import at_own_precision
from posenc_jax.lab.model.mix_ffn import MixFFN
from posenc_jax.layer.cross import CrossAttention, Source
from posenc_jax.layer.layers import MLP, branch_norms, dropout
from posenc_jax.layer.mixer import AttentionMixer
from posenc_jax.layer.projections import Projections
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.layer.sharding import constrain
from posenc_jax.layer.stream import StreamingAttention
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens


class Block(nnx.Module):
    """Pre-norm block: `x + attention(norm(x))`, in a decoder with a source
    `x + cross(norm(x), source)`, then `x + mlp(norm(x))`. It holds the encodings that this layer
    owns, or the mixer that takes the place of attention.

    With `cfg.parallel` attention and network read the same x:
    `x + attention(norm(x)) + mlp(norm'(x))`. With `cfg.norm_place` 'after' a branch is
    `x + norm(attention(x))`, and with 'both' it is `x + norm'(attention(norm(x)))`.

    Args:
      cfg: a `TransformerConfig`.
      encodings: the parts of the encoding that have parameters of their own in every layer.
      stack: leading dimensions of all variables, for blocks that are scanned over; `encodings`,
        `own_mixer` and `cross` have them already.
      own_mixer: a mixer in the place of attention, or None.
      cross: cross-attention over a source, or None.
    """

    def __init__(
        self,
        cfg,
        encodings: list[Encoding],
        *,
        stack: tuple[int, ...] = (),
        rngs: nnx.Rngs,
        own_mixer: nnx.Module | None = None,
        cross: CrossAttention | None = None,
    ):
        # With this gain the residual stream is of order one at any depth.
        drawn: dict[str, Any] = dict(gain=(2 * cfg.layers) ** -0.5, stack=stack, rngs=rngs)
        self.attention_norm, self.attention_norm_after = branch_norms(cfg, stack)
        self.own_mixer: Any = own_mixer
        self.cross: Any = cross
        self.attention: Any = Projections.of(cfg, **drawn) if own_mixer is None else None
        self.mlp_norm, self.mlp_norm_after = branch_norms(cfg, stack)
        self.mlp: Any = (
            MixFFN(cfg.width, cfg.mlp_width, stack=stack, rngs=rngs)
            if cfg.mlp == 'mix_ffn'
            else MLP(cfg.mlp, cfg.width, cfg.mlp_width, bias=cfg.bias == 'all', **drawn)
        )
        self.parallel = cfg.parallel
        self.encodings = nnx.List(encodings)
        self.dropout = cfg.dropout
        self.precision = cfg.precision
        self.block = cfg.block or None
        self.implementation = cfg.implementation or None
        self.attention_fn: Callable = sharded_attend

    def __call__(
        self,
        x: Float[Array, 'B T D'],
        tok: Tokens,
        encoding: Encoding | None,
        *,
        key: Array | None = None,
        source: Source | None = None,
    ) -> Array:
        """The block on whole sequences.

        Args:
          x: the output of the layer before.
          tok: the tokens.
          encoding: the layer's chain; None where a mixer takes the place of attention.
          key: drives dropout; None for none.
          source: what cross-attention reads.
        """
        mixer = self.mixer(encoding)
        if mixer.streams:
            raise ValueError('the layer reads a stream of the layer before it, which is not given')
        cross = None if source is None else lambda x: self.cross.whole(x, tok, source)
        return self.around(x, lambda h: mixer.whole(h, tok), cross, key=key, grid=tok.grid)

    def mixer(self, encoding: Encoding | None) -> Any:
        """What this block does between its norms: attention with the layer's chain as `encoding`,
        or the mixer in its place; a `Mixer` or, if `streams` is true, one with a stream (see
        layer/stream.py).
        """
        if self.own_mixer is not None or encoding is None:
            return self.own_mixer
        attention = AttentionMixer(
            self.attention,
            encoding,
            self.block,
            self.implementation,
            attention_fn=self.attention_fn,
        )
        return StreamingAttention(attention) if encoding.opens('begin_stream') else attention

    def beside(
        self,
        x: Float[Array, 'B T D'],
        stream: Any,
        mixer: Any,
        mix: Callable[..., tuple],
        cross: Callable[[Array], Array] | None = None,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, 'B T D'], Any, Any]:
        """`around` beside a stream, which passes a mixer that does not read it unchanged.

        Args:
          x: the output of the layer before.
          stream: that of the layer before.
          mixer: of this block.
          mix: `mix(h, stream) -> y, stream, state` if `mixer.streams`, else `mix(h) -> y, state`.
          cross, key: as for `around`.

        Returns:
          The output of the block, the stream behind it, and the state that `mix` returned.
        """
        state = None

        def mixed(h):
            nonlocal stream, state
            if mixer.streams:
                y, stream, state = mix(h, stream)
            else:
                y, state = mix(h)
            return y

        def fed(m):
            nonlocal stream
            stream = mixer.feed(m, stream)

        x = self.around(x, mixed, cross, key=key, fed=fed if mixer.streams else None)
        return x, stream, state

    @at_own_precision
    def around(
        self,
        x: Float[Array, 'B T D'],
        mix: Callable[[Array], Array],
        cross: Callable[[Array], Array] | None = None,
        *,
        key: Array | None = None,
        fed: Callable[[Array], None] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Array:
        """The block with `mix` in the place of attention. It maps the normed input to the term that
        is added to `x`. `cross` maps the sum, before its norm, to a second term. `fed` is called
        with the output of the feed-forward network. `grid` is that of the tokens, see `Tokens`.
        """
        if (cross is None) != (self.cross is None):
            raise ValueError(
                'a layer with cross-attention needs a source, which this way of reading it lacks'
                if cross is None
                else 'a source needs layers with cross-attention, these have none'
            )
        mix_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        cross_key = None if key is None else jax.random.fold_in(key, 2)
        add = lambda x, out, key: constrain(
            x + dropout(out, self.dropout, key), 'batch', 'sequence', None
        )
        before = x
        x = add(x, self.attention_norm_after(mix(self.attention_norm(x))), mix_key)
        if cross is not None:
            x = add(x, cross(x), cross_key)
        h = self.mlp_norm(before if self.parallel else x)
        out = self.mlp(h, grid) if isinstance(self.mlp, MixFFN) else self.mlp(h)
        if fed is not None:
            fed(out)
        return add(x, self.mlp_norm_after(out), mlp_key)
