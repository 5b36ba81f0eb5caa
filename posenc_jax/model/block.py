"""The pre-norm block: a mixer and a feed-forward network, each behind a norm."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.core.encoding import Encoding
from posenc_jax.core.tokens import Tokens
from posenc_jax.model.layers import MLP, Norm, dropout
from posenc_jax.model.mixer import AttentionMixer
from posenc_jax.model.projections import Projections
from posenc_jax.model.sharding import constrain, sharded_attend


class Block(nnx.Module):
    """Pre-norm block: `x + attention(norm(x))`, then `x + mlp(norm(x))`. It holds the encodings
    that this layer owns.

    With `cfg.parallel` both branches read the same x: `x + attention(norm(x)) + mlp(norm'(x))`.

    Args:
      cfg: a `TransformerConfig`.
      encodings: the parts of the encoding that have parameters of their own in every layer.
      stack: leading dimensions of all variables, for blocks that are scanned over; `encodings` have
        them already.
    """

    def __init__(
        self, cfg, encodings: list[Encoding], *, stack: tuple[int, ...] = (), rngs: nnx.Rngs
    ):
        # With this gain the residual stream is of order one at any depth.
        drawn: dict[str, Any] = dict(gain=(2 * cfg.layers) ** -0.5, stack=stack, rngs=rngs)
        self.attention_norm = Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon, stack=stack)
        self.attention = Projections(
            cfg.width,
            cfg.heads,
            cfg.kv_heads,
            cfg.head_dim,
            bias=cfg.bias,
            rank=cfg.lora_rank,
            alpha=cfg.lora_alpha,
            **drawn,
        )
        self.mlp_norm = Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon, stack=stack)
        self.mlp = MLP(cfg.mlp, cfg.width, cfg.mlp_width, bias=cfg.bias == 'all', **drawn)
        self.parallel = cfg.parallel
        self.encodings = nnx.List(encodings)
        self.dropout = cfg.dropout
        self.block = cfg.block or None
        self.implementation = cfg.implementation or None
        self.attention_fn: Callable = sharded_attend

    def __call__(
        self, x: Float[Array, 'B T D'], tok: Tokens, encoding: Encoding, *, key: Array | None = None
    ) -> Array:
        """The block on whole sequences; `encoding` is the layer's chain, `key` drives dropout."""
        return self.around(x, lambda h: self.mixer(encoding).whole(h, tok), key=key)

    def mixer(self, encoding: Encoding) -> AttentionMixer:
        """The attention of this block, with the layer's chain as `encoding`."""
        return AttentionMixer(
            self.attention,
            encoding,
            self.block,
            self.implementation,
            attention_fn=self.attention_fn,
        )

    def around(
        self, x: Float[Array, 'B T D'], mix: Callable[[Array], Array], *, key: Array | None = None
    ) -> Array:
        """The block with `mix` in the place of attention. It maps the normed input to the term that
        is added to `x`.
        """
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        out = mix(self.attention_norm(x))
        before, x = (
            x,
            constrain(x + dropout(out, self.dropout, attention_key), 'batch', 'sequence', None),
        )
        out = self.mlp(self.mlp_norm(before if self.parallel else x))
        return constrain(x + dropout(out, self.dropout, mlp_key), 'batch', 'sequence', None)
