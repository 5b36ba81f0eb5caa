"""Attention with a positional encoding for projections of one's own: a layer that takes queries,
keys and values, and a pure function of the weights of the projections.
"""

import types
from collections.abc import Callable
from typing import cast

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.products import linear
from posenc_jax.layer.attention import CachedLayer, tokens_told
from posenc_jax.layer.cache import Cache
from posenc_jax.layer.mixer import AttentionMixer
from posenc_jax.layer.projections import Projections
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import names_checked
from posenc_jax.protocol.registry import constructor_signature
from posenc_jax.protocol.tokens import Tokens


class EncodedAttention(CachedLayer):
    """Attention with an encoding, for a layer with projections of its own. It takes the place of
    what rotates queries and keys, of the cache, and of the softmax.

    It computes what `Attention` computes between its projections. Its variables are those of the
    encoding.

    Args:
      encoding, width, heads, kv_heads, head_dim, causal, train_len: as for `Attention`; `width` is
        that of the layer input, from which the queries, keys and values are projected.
      block, implementation: as for `attend`.
      rngs: draws the parameters of the encoding.

    Raises:
      ValueError: sizes that do not fit together; an encoding that acts before the projections, such
        as on token vectors (`embed`), which `Attention` serves.

    Example:
      >>> layer = EncodedAttention('rope() | fox()', width=8, heads=2, rngs=nnx.Rngs(0))
      >>> x, q = jnp.ones((1, 5, 8)), jnp.ones((1, 5, 2, 4))
      >>> layer(x, q, q, q).shape
      (1, 5, 2, 4)
      >>> cache = layer.start(1, capacity=5)
      >>> for t in range(5):
      ...     y, cache = layer.step(*(a[:, t : t + 1] for a in (x, q, q, q)), cache)
      >>> bool(jnp.allclose(y, layer(x, q, q, q)[:, 4:], atol=1e-5))
      True
    """

    _dtype = jnp.float32

    @names_checked
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
        block: int | None = None,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        kind = implementation
        kv_heads, head_dim = self._encode(
            encoding, width, heads, kv_heads, head_dim, causal, train_len, block, kind, rngs
        )
        for part in parts_of(self.encoding):
            for door in ('embed', 'qkv'):
                if part.opens(door):
                    raise ValueError(
                        f'EncodedAttention: {name_of(part)} acts before the projections, in '
                        f'{door!r}; expected an encoding that acts behind them. pj.Attention, '
                        'which has projections, calls every door'
                    )
        self.sizes = width, heads, kv_heads, head_dim

    def __call__(
        self,
        x: Float[Array, 'B L D'],
        query: Float[Array, 'B L N H'],
        key: Float[Array, 'B L K H'],
        value: Float[Array, 'B L K H'],
        tok: Tokens | None = None,
    ) -> Float[Array, 'B L N H']:
        """The result of the heads for whole sequences.

        Args:
          x: the layer input, for encodings that read it (`fox`).
          query, key, value: its projections, neither rotated nor divided by the square root of H.
          tok: as for a call of `Attention`.

        Raises:
          ValueError: arrays of other shapes, with the numbers; `tok` that is no `Tokens`.
        """
        given = self._arrays(x, query, key, value)
        batch, length = x.shape[:2]
        known = tokens_told(self._name, tok, batch, length, f'x has {length}')
        out = self._mixer(x.dtype, given).whole(x, self.encoding.place(known))
        return out.reshape(query.shape)

    def step(
        self, x, query, key, value, cache: Cache, *, valid=None, segment=None
    ) -> tuple[Float[Array, 'B T N H'], Cache]:
        """The result of the heads for T new tokens behind a cache of `start`, and the cache that
        holds them too; as `Attention.step`, with the arrays of a call.
        """
        given = self._arrays(x, query, key, value)
        out, cache = self._step(x, cache, self._mixer(x.dtype, given), valid, segment)
        return out.reshape(query.shape), cache

    def _mixer(self, dtype, given: tuple[Array, Array, Array] | None = None) -> AttentionMixer:
        """The mixer for given queries, keys and values; for None it begins caches."""
        width, heads, kv_heads, head_dim = self.sizes

        def qkv(x):
            heads_of = lambda count: jnp.zeros((*x.shape[:2], count, head_dim), dtype)
            return given or (heads_of(heads), heads_of(kv_heads), heads_of(kv_heads))

        output = lambda out: out.reshape(*out.shape[:2], -1)
        weights = types.SimpleNamespace(width=width, qkv=qkv, output=output)
        return AttentionMixer(
            cast(Projections, weights), self.encoding, self.block, self.implementation, dtype
        )

    def _arrays(self, x, query, key, value) -> tuple[Array, Array, Array]:
        """The queries, keys and values, of the sizes of the layer."""
        width, heads, kv_heads, head_dim = self.sizes
        for name, a, sizes in (
            ('x', x, (width,)),
            ('query', query, (heads, head_dim)),
            ('key', key, (kv_heads, head_dim)),
            ('value', value, (kv_heads, head_dim)),
        ):
            if a.shape != (*x.shape[:2], *sizes) or not jnp.issubdtype(a.dtype, jnp.floating):
                expected = ', '.join(map(str, (*x.shape[:2], *sizes)))
                raise ValueError(
                    f'{self._name}: {name} must be floats [{expected}], got {a.dtype} {a.shape}'
                )
        return query, key, value


EncodedAttention.__signature__ = constructor_signature(EncodedAttention)  # pyright: ignore[reportAttributeAccessIssue]


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
    known = tokens_told('attention_layer', tok, x.shape[0], x.shape[1], f'x has {x.shape[1]}')
    placed = encoding.place(known, key=key)
    return AttentionMixer(cast(Projections, weights), encoding, **options).whole(
        encoding.embed(x, placed), placed
    )
