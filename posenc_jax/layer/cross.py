"""Cross-attention: the second mixer of a decoder layer, which reads the output of an encoder."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.derivatives import at_own_precision
from posenc_jax.language.make import make
from posenc_jax.layer.layers import branch_norms
from posenc_jax.layer.projections import Projections
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.protocol.composite import ChainedEncoding, name_of, parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import SpecError, about
from posenc_jax.protocol.masks import Document, Full
from posenc_jax.protocol.tokens import Tokens

# Doors that act on one sequence as a whole; cross-attention has two.
_REFUSED = ('place', 'embed', 'qkv', 'update_keys', 'auxiliary_loss', 'begin_stream')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Source:
    """The output of the encoder, and what is known about its tokens."""

    x: Float[Array, 'B S D']
    tok: Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SourceKeys:
    """Keys and values of the source for one layer, with the features that its encoding attached,
    [#B, S, heads or 1, ...].
    """

    k: Float[Array, 'B K S H']
    v: Float[Array, 'B K S H']
    feats: dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossState:
    """The state of a decoder layer with cross-attention: that of its own mixer, and the keys of the
    source, which do not change.
    """

    own: Any
    source: SourceKeys


def cross_encoding(cfg, rngs: nnx.Rngs) -> tuple[Encoding, ...]:
    """The parts of `cfg.cross`, with the mask that keeps packed documents apart.

    Raises:
      SpecError: a part acts on one sequence as a whole, so that it has no meaning between two.
    """
    try:
        encoding = make(cfg.cross, causal=False, **{**cfg.context, 'rngs': rngs})
    except SpecError as error:
        raise SpecError(
            f"cross: {error}; use e.g. 'nope()', 'rope()' or 'alibi_symmetric()'"
        ) from None
    for part in parts_of(encoding):
        if opened := [door for door in _REFUSED if part.opens(door)]:
            why = f'it opens {opened[0]!r}'
        elif part.opens('mask') and not isinstance(part, Full | Document):
            why = 'it hides keys by their index, which counts another sequence'
        elif part.lookback or part.cached != 'encoded':
            why = 'its keys depend on other tokens of their sequence'
        else:
            continue
        raise SpecError(
            f'cross: {name_of(part)} cannot encode attention between two sequences, since {why}; '
            "use e.g. 'nope()', 'rope()' or 'alibi_symmetric()'"
        )
    _check_without_input(encoding, cfg)
    return parts_of(encoding)


def _check_without_input(encoding: Encoding, cfg) -> None:
    """Refuses an encoding whose `project` reads the layer input: queries and keys have two."""
    tok = Tokens.of(length=2)

    def project():
        rows = lambda heads: jnp.zeros((1, 2, heads, cfg.head_dim))
        own = rows(cfg.heads), rows(cfg.kv_heads), rows(cfg.kv_heads)
        return encoding.project(*own, tok, tok, None)[0]

    try:
        jax.eval_shape(project)
    except (AttributeError, TypeError) as error:
        raise SpecError(
            f'cross: {cfg.cross} reads the layer input of queries and keys, which cross-attention '
            "does not share; use e.g. 'nope()', 'rope()' or 'alibi_symmetric()'"
        ) from error


class CrossAttention(nnx.Module):
    """Attention of decoder tokens over the output of an encoder, with a norm of its own:
    `x + cross(norm(x), source)`.

    Args:
      cfg: a `TransformerConfig` of kind 'encoder_decoder'.
      encodings: the parts of `cross_encoding`, with the dimensions of `stack` in front.
      stack: leading dimensions of all variables.
    """

    def __init__(
        self, cfg, encodings: list[Encoding], *, stack: tuple[int, ...] = (), rngs: nnx.Rngs
    ):
        self.norm, self.norm_after = branch_norms(cfg, stack)
        self.attention = Projections.of(cfg, gain=(3 * cfg.layers) ** -0.5, stack=stack, rngs=rngs)
        self.encodings = nnx.List(encodings)
        self.block, self.implementation = cfg.block or None, cfg.implementation or None
        self.precision = cfg.precision

    @property
    def encoding(self) -> Encoding:
        return ChainedEncoding(list(self.encodings))

    @at_own_precision
    def keys(self, source: Source) -> tuple[Array, Array, Tokens]:
        """Keys and values [B, S, K, H] of the source, and its tokens with their features."""
        q, k, v = self.attention.qkv(source.x)
        _, k, v, _, tok = self.encoding.project(q, k, v, source.tok, source.tok, None)
        return k, v, tok

    def start(self, source: Source) -> SourceKeys:
        """What decoding keeps of the source; it is computed once."""
        k, v, tok = self.keys(source)
        k, v = (jnp.swapaxes(a, 1, 2) for a in (k, v))
        return SourceKeys(k, v, {n: f for n, f in tok.feats.items() if n not in source.tok.feats})

    def whole(self, x: Float[Array, 'B T D'], tok: Tokens, source: Source) -> Array:
        """The term that is added to the decoder's `x`, for whole sequences."""
        return self._attend(x, tok, *self.keys(source))

    def step(self, x: Float[Array, 'B T D'], tok: Tokens, keys: SourceKeys, source: Tokens):
        """The same for T new tokens, over keys that `start` made."""
        k, v, known = keys.k, keys.v, source.with_feats(**keys.feats)
        return self._attend(x, tok, k, v, known, heads_first=True, implementation='dense')

    def _attend(self, x, tok, k, v, known, **options):
        q, own_k, own_v = self.attention.qkv(self.norm(x))
        q, _, _, tq, _ = self.encoding.project(q, own_k, own_v, tok, tok, None)
        own = dict(block=self.block, implementation=self.implementation)
        out = sharded_attend(self.encoding, q, k, v, tq, known, **{**own, **options})
        return self.norm_after(self.attention.output(out))


def stacked_cross(cfg, groups: int, rngs: nnx.Rngs) -> CrossAttention:
    """The cross-attention of all groups as one module, whose variables have the groups in front."""

    def build(key):
        return nnx.split(nnx.List(list(cross_encoding(cfg, nnx.Rngs(key)))))

    with about('cross'):
        encodings: Any = nnx.merge(*jax.vmap(build)(jax.random.split(rngs.params(), groups)))
    return CrossAttention(cfg, encodings, stack=(groups,), rngs=rngs)
