"""Attention with a positional encoding, as a layer for any model and as a pure function."""

import types
from collections.abc import Callable
from typing import cast

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.core.attention import IMPLEMENTATIONS
from posenc_jax.core.checks import is_size
from posenc_jax.core.compose import make
from posenc_jax.core.composite import name_of, parts_of
from posenc_jax.core.encoding import Encoding
from posenc_jax.core.registry import check_choice, constructor_signature
from posenc_jax.core.tokens import Tokens
from posenc_jax.model.cache import Cache, check_cached
from posenc_jax.model.layers import BIASES, linear
from posenc_jax.model.mixer import AttentionMixer
from posenc_jax.model.projections import Projections


class Attention(nnx.Module):
    """Self-attention with a positional encoding, with its projections and a decode cache.

    The layer calls all doors in their order (`place`, `embed`, `qkv`, `project`, those of the pair
    stage, `merge`), so that none is left out. An encoding that opens `embed` changes the input of
    this layer.

    Args:
      encoding: a spec string, or an encoding with its masks (see `make`).
      width: D, of the input and the result.
      heads: N.
      kv_heads: K, a divisor of N; None for N.
      head_dim: H; None for D // N.
      causal: whether later tokens are hidden, unless the encoding decides it.
      train_len: the trained length in tokens, for encodings that ask for it.
      bias: of the projections: 'none', 'qkv' or 'all'.
      block, implementation: as for `attend`.
      rngs: draws the parameters.

    Raises:
      ValueError: sizes that do not fit together.
      SpecError: the spec string is wrong, or lacks something.

    Example:
      >>> layer = Attention('rope()', width=8, heads=2, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((1, 5, 8))
      >>> layer(x).shape
      (1, 5, 8)
      >>> cache = layer.start(1, capacity=5)
      >>> for t in range(5):
      ...     y, cache = layer.step(x[:, t : t + 1], cache)
      >>> bool(jnp.allclose(y, layer(x)[:, 4:], atol=1e-5))
      True
    """

    def __init__(
        self,
        encoding: str | Encoding,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = True,
        train_len: int | None = None,
        bias: str = 'none',
        block: int | None = None,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        given = dict(kv_heads=kv_heads, head_dim=head_dim, block=block)
        given = {name: size for name, size in given.items() if size is not None}
        for name, size in dict(width=width, heads=heads, **given).items():
            if not is_size(size):
                raise ValueError(
                    f'Attention: {name} must be an integer of at least 1, got {size!r}'
                )
        check_choice('Attention: bias', bias, BIASES)
        if implementation is not None:
            check_choice('Attention: implementation', implementation, IMPLEMENTATIONS)
        if head_dim is None and width % heads:
            raise ValueError(
                f'Attention: width {width} is not a multiple of {heads} heads; give head_dim'
            )
        kv_heads = heads if kv_heads is None else kv_heads
        head_dim = width // heads if head_dim is None else head_dim
        sizes = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, model_dim=width)
        if train_len is not None:
            sizes['train_len'] = train_len
        self.encoding = make(encoding, causal=causal, rngs=rngs, **sizes)
        self.projections = Projections(
            width, heads, kv_heads, head_dim, bias=bias, gain=1.0, rngs=rngs
        )
        self.block, self.implementation = block, implementation

    def __call__(
        self, x: Float[Array, 'B L D'], tok: Tokens | None = None, *, key: Array | None = None
    ) -> Float[Array, 'B L D']:
        """The result for whole sequences.

        Args:
          tok: what is known about the tokens (positions, documents, padding, ids); None counts
            positions from 0.
          key: draws positions where the encoding draws them in training; None is evaluation.

        Raises:
          ValueError: `x` or `tok` of another shape, with the numbers.
        """
        self._check(x)
        tok = self.encoding.place(Tokens.of(length=x.shape[1]) if tok is None else tok, key=key)
        if tok.length != x.shape[1]:
            raise ValueError(f'Attention: tok has {tok.length} tokens, x has {x.shape[1]} tokens')
        return self._mixer(x.dtype).whole(self.encoding.embed(x, tok), tok)

    def start(
        self, batch: int, capacity: int, tok: Tokens | None = None, dtype=jnp.float32
    ) -> Cache:
        """An empty cache.

        Args:
          batch: number of rows.
          capacity: number of tokens that the cache has room for.
          tok: what is known about all of these tokens; None counts positions from 0. An encoding
            that places tokens by their ids needs all of these ids here.
          dtype: of the inputs of `step`.

        Raises:
          ValueError: an encoding that no cache can serve, or `tok` of another length.
        """
        check_cached(self.encoding)
        for part in parts_of(self.encoding):
            if 'sees_later' in part.traits:
                raise ValueError(
                    f'Attention: {name_of(part)} lets tokens see later ones, which a step does not '
                    'know yet; call the layer on the whole sequence'
                )
        tok = self.encoding.place(Tokens.of(length=capacity) if tok is None else tok)
        if tok.length != capacity:
            raise ValueError(f'Attention: tok has {tok.length} tokens, the capacity is {capacity}')
        state = self._mixer(dtype).start(batch, tok)
        return Cache((tok,), jnp.zeros((), jnp.int32), (state,))

    def step(self, x: Float[Array, 'B T D'], cache: Cache) -> tuple[Float[Array, 'B T D'], Cache]:
        """The result for T new tokens behind a cache, and the cache that holds them too.

        Prefill in pieces and decoding are the same call. However a sequence is cut, the results
        equal those of one call of the layer on the text so far. With a rule that follows the
        current length (`dynamic_ntk`) earlier results stay those of the shorter text.

        Raises:
          ValueError: `x` of another shape; more tokens than there are free slots (as far as the
            cursor is known); several tokens at once where every token rewrites the cached keys.
        """
        self._check(x)
        (tok,), (state,) = cache.tokens, cache.layers
        if x.shape[1] > cache.free:
            raise ValueError(
                f'Attention: {x.shape[1]} new tokens do not fit the cache, which has {cache.free} '
                f'of {cache.capacity} slots free'
            )
        x = self.encoding.embed(x, tok.slice(cache.cursor, x.shape[1]))
        y, state = self._mixer(x.dtype).step(x, tok, state, cache.cursor)
        return y, Cache(cache.tokens, cache.cursor + x.shape[1], (state,))

    def _mixer(self, dtype) -> AttentionMixer:
        return AttentionMixer(
            self.projections, self.encoding, self.block, self.implementation, dtype
        )

    def _check(self, x):
        if x.ndim != 3 or x.shape[2] != self.projections.width:
            raise ValueError(
                f'Attention: x has shape {x.shape}, expected [B, L, {self.projections.width}]'
            )


Attention.__signature__ = constructor_signature(Attention)  # pyright: ignore[reportAttributeAccessIssue]


def attention_layer(
    encoding: Encoding,
    x: Float[Array, 'B L D'],
    w_q: Float[Array, 'D N H'],
    w_k: Float[Array, 'D K H'],
    w_v: Float[Array, 'D K H'],
    w_out: Float[Array, 'N H D'],
    tok: Tokens | None = None,
    *,
    key: Array | None = None,
    **options,
) -> Float[Array, 'B L D']:
    """The function that `Attention` computes, of the encoding and the weights of its projections.

    Args:
      encoding: with its masks, e.g. `make('rope()', head_dim=64, causal=True)`.
      tok, key: as for a call of `Attention`.
      **options: `block` and `implementation` of `attend`.

    Example:
      >>> x, w = jnp.ones((1, 5, 8)), jnp.ones((8, 2, 4)) / 8
      >>> encoding = make('alibi()', heads=2, causal=True)
      >>> attention_layer(encoding, x, w, w, w, w.transpose(1, 2, 0)).shape
      (1, 5, 8)
    """
    heads, kv_heads, head_dim = *(w.shape[1] for w in (w_q, w_k)), w_q.shape[-1]
    for name, w, shape in (
        ('w_q', w_q, (x.shape[-1], heads, head_dim)),
        ('w_k', w_k, (x.shape[-1], kv_heads, head_dim)),
        ('w_v', w_v, (x.shape[-1], kv_heads, head_dim)),
        ('w_out', w_out, (heads, head_dim, x.shape[-1])),
    ):
        if w.shape != shape:
            raise ValueError(f'attention_layer: {name} has shape {w.shape}, expected {shape}')
    if not isinstance(encoding, Encoding):
        raise ValueError(
            f'attention_layer takes an encoding, got {type(encoding).__name__}; '
            'make(spec, head_dim=..., causal=True) builds one'
        )
    flat: Callable = lambda x, w: linear(x, w.reshape(x.shape[-1], -1))
    weights = types.SimpleNamespace(
        qkv=lambda x: tuple(
            flat(x, w).reshape(*x.shape[:2], *w.shape[1:]) for w in (w_q, w_k, w_v)
        ),
        output=lambda out: flat(out.reshape(*out.shape[:2], -1), w_out),
    )
    tok = encoding.place(Tokens.of(length=x.shape[1]) if tok is None else tok, key=key)
    return AttentionMixer(cast(Projections, weights), encoding, **options).whole(
        encoding.embed(x, tok), tok
    )
