"""Attention with a positional encoding, as a layer for any model and as a pure function."""

import types
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export
from jaxtyping import Array, Float

from posenc_jax.attention.attend import IMPLEMENTATIONS
from posenc_jax.base.products import linear
from posenc_jax.language.make import make
from posenc_jax.layer import slots
from posenc_jax.layer.cache import Cache, check_cached
from posenc_jax.layer.layers import BIASES
from posenc_jax.layer.mixer import AttentionMixer
from posenc_jax.layer.projections import Projections
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import check_choice, is_size, names_checked
from posenc_jax.protocol.registry import constructor_signature
from posenc_jax.protocol.tokens import Tokens


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
        self,
        x: Float[Array, 'B L D'],
        tok: Tokens | None = None,
        *,
        valid=None,
        segment=None,
        key: Array | None = None,
        mask=None,
    ) -> Float[Array, 'B L D']:
        """The result for whole sequences, in the dtype of `x`.

        A `mask`, as other layers have it, is refused. Padding is told by `valid`, packed documents
        by `segment`, and which keys a query sees by `causal` and the encoding, e.g. 'rope() |
        window(size=64)'.

        Args:
          tok: what is known about the tokens (positions, documents, padding, ids); None counts
            positions from 0.
          valid: [#B, L] booleans, False for padding; short for `tok=Tokens.of(valid=valid)`.
          segment: [#B, L] integers, equal within a packed document; short for
            `tok=Tokens.of(segment=segment)`.
          key: draws positions where the encoding draws them in training; None is evaluation.

        Raises:
          ValueError: `x`, `tok`, `valid` or `segment` of another shape, with the numbers; `tok`
            that is no `Tokens`, or that comes with `valid` or `segment`; any `mask`.

        Example:
          >>> layer = Attention('rope()', width=8, heads=2, rngs=nnx.Rngs(0))
          >>> x = jax.random.normal(jax.random.key(0), (1, 5, 8))
          >>> padded = layer(x, valid=jnp.array([[True, True, True, False, False]]))
          >>> bool(jnp.allclose(padded[:, :3], layer(x[:, :3]), atol=1e-5))
          True
        """
        if mask is not None:
            raise _no_mask('Attention', 'mask', mask)
        x = self._checked(x)
        batch, length = x.shape[:2]
        tok = _tokens('Attention', tok, batch, length, f'x has {length}', valid, segment)
        tok = self.encoding.place(tok, key=key)
        return self._mixer(x.dtype).whole(self.encoding.embed(x, tok), tok)

    def start(
        self, batch: int, capacity: int, tok: Tokens | None = None, dtype: Any = None
    ) -> Cache:
        """An empty cache.

        Args:
          batch: number of rows.
          capacity: number of tokens that the cache has room for.
          tok: what is known about all of these tokens; None counts positions from 0, and `step` may
            tell padding and documents. An encoding that places tokens by their ids needs all of
            these ids here.
          dtype: of the inputs of `step`; None for that of the layer's parameters.

        Raises:
          ValueError: an encoding that no cache can serve; sizes below 1; `tok` that is no `Tokens`,
            or of another shape.

        Example:
          >>> layer = Attention('rope()', width=8, heads=2, rngs=nnx.Rngs(0))
          >>> cache = layer.start(1, capacity=4, dtype=jnp.bfloat16)
          >>> layer.step(jnp.ones((1, 3, 8), jnp.bfloat16), cache)[0].dtype
          dtype(bfloat16)
        """
        for name, size in dict(batch=batch, capacity=capacity).items():
            if not (export.is_symbolic_dim(size) or is_size(size)):
                raise ValueError(
                    f'Attention: {name} must be an integer of at least 1, got {size!r}'
                )
        check_cached(self.encoding)
        for part in parts_of(self.encoding):
            if 'sees_later' in part.traits:
                raise ValueError(
                    f'Attention: {name_of(part)} lets tokens see later ones, which a step does not '
                    'know yet; call the layer on the whole sequence'
                )
        dtype = self.projections.w_q[...].dtype if dtype is None else dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f'Attention: dtype must be one of floats, got {dtype!r}')
        known = _tokens('Attention', tok, batch, capacity, f'the capacity is {capacity}')
        placed = self.encoding.place(known)
        state = self._mixer(dtype).start(batch, placed)
        unplaced = known if tok is None else None
        return Cache((placed,), jnp.zeros((), jnp.int32), (state,), unplaced)

    def step(
        self, x: Float[Array, 'B T D'], cache: Cache, *, valid=None, segment=None
    ) -> tuple[Float[Array, 'B T D'], Cache]:
        """The result for T new tokens behind a cache, and the cache that holds them too.

        Prefill in pieces and decoding are the same call. However a sequence is cut, the results
        equal those of one call of the layer on the text so far. With a rule that follows the
        current length (`dynamic_ntk`) earlier results stay those of the shorter text.

        A cache that is too full is an error outside of `jax.jit`. Inside, where the cursor is not
        known, the results are NaN for the tokens beyond the capacity, and right for the others.

        Args:
          valid: [#B, T] booleans of the new tokens, as for a call; None if all are real.
          segment: [#B, T] integers of the new tokens, as for a call; None continues the document of
            the last real token. Tokens before the first `segment` are document 0. The first step
            that gets `valid` or `segment` changes the shapes of `cache.tokens`, so a
            `jax.lax.scan` begins behind it.

        Raises:
          ValueError: `x`, `valid` or `segment` of another shape; what is no cache of `start` or
            `step`; another dtype of `x` than the cache was made for; more tokens than there are
            free slots (as far as the cursor is known); several tokens at once where every token
            rewrites the cached keys; `valid` or `segment` for a cache that was started with `tok`,
            or with an encoding that places all tokens together.

        Example:
          >>> layer = Attention('rope()', width=8, heads=2, rngs=nnx.Rngs(0))
          >>> x = jax.random.normal(jax.random.key(0), (1, 5, 8))
          >>> documents = jnp.array([[0, 0, 0, 1, 1]])
          >>> _, cache = layer.step(x[:, :4], layer.start(1, 5), segment=documents[:, :4])
          >>> y, cache = layer.step(x[:, 4:], cache)
          >>> bool(jnp.allclose(y, layer(x, segment=documents)[:, 4:], atol=1e-5))
          True
        """
        x = self._checked(x)
        batch, count = x.shape[:2]
        if not isinstance(cache, Cache):
            raise ValueError(
                'Attention: cache must be what start(batch, capacity) returned, or the second '
                f'result of the last step, got {type(cache).__name__}'
            )
        (state,) = cache.layers
        if state.k.shape[0] != batch:
            raise ValueError(
                f'Attention: x has {batch} rows, the cache was started for {state.k.shape[0]}; '
                f'start({batch}, ...) makes one for x'
            )
        if state.rows.dtype != x.dtype:
            raise ValueError(
                f'Attention: x is {x.dtype}, the cache was started for {state.rows.dtype}; '
                f'start(..., dtype=jnp.{x.dtype}) makes one for x'
            )
        if count > cache.free:
            raise ValueError(
                f'Attention: {count} new tokens do not fit the cache, which has {cache.free} of '
                f'{cache.capacity} slots free'
            )
        tokens, unplaced = cache.tokens, cache.unplaced
        if valid is not None or segment is not None:
            unplaced = self._told(cache, batch, count, valid, segment)
            tokens = (self.encoding.place(unplaced),)
        x = self.encoding.embed(x, slots.at(tokens[0], cache.cursor, count))
        y, state = self._mixer(x.dtype).step(x, tokens[0], state, cache.cursor)
        return y, Cache(tokens, cache.cursor + count, (state,), unplaced)

    def _told(self, cache: Cache, batch, count, valid, segment) -> Tokens:
        """The tokens of the cache, before they are placed, with what a step tells of its own."""
        names = ' and '.join(_given(valid=valid, segment=segment))
        if cache.unplaced is None:
            raise ValueError(
                f'Attention: step got {names}, but the cache was started with tok, which describes '
                f'all tokens; give {names} to the Tokens.of that makes tok, or start without tok'
            )
        for part in parts_of(self.encoding):
            if part.opens('place') and 'reads_other_tokens' in part.traits:
                raise ValueError(
                    f'Attention: step got {names}, but {name_of(part)} places all tokens together; '
                    f'describe all of them by start(..., tok=Tokens.of(...)), with {names}'
                )
        new = _tokens('Attention', None, batch, count, f'x has {count}', valid, segment)
        return slots.told(cache.unplaced, cache.cursor, new)

    def _mixer(self, dtype) -> AttentionMixer:
        return AttentionMixer(
            self.projections, self.encoding, self.block, self.implementation, dtype
        )

    def _checked(self, x) -> Float[Array, 'B L D']:
        x = jnp.asarray(x)
        if x.ndim != 3 or x.shape[2] != self.projections.width:
            raise ValueError(
                f'Attention: x has shape {x.shape}, expected [B, L, {self.projections.width}]'
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f'Attention: x must be floats, got {x.dtype}')
        return x


Attention.__signature__ = constructor_signature(Attention)  # pyright: ignore[reportAttributeAccessIssue]


def _given(**arguments) -> list[str]:
    """The names of the arguments that are not None."""
    return [name for name, a in arguments.items() if a is not None]


def _tokens(user: str, tok, batch, length, wanted: str, valid=None, segment=None) -> Tokens:
    """`tok`, or the tokens that the other arguments tell, checked against the sizes of `x`.

    Args:
      user, wanted: who asks, and what says the length, for the messages.

    Raises:
      ValueError: no `Tokens`; both ways of telling them at once; another length or number of rows.
    """
    names = _given(valid=valid, segment=segment)
    if tok is None:
        known = None if names else length
        tok = Tokens.of(length=known, valid=valid, segment=segment)
    elif not isinstance(tok, Tokens):
        raise _no_mask(user, 'tok', tok)
    elif names:
        raise ValueError(
            f'{user}: got tok and {" and ".join(names)}; give {" and ".join(names)} to the '
            'Tokens.of that makes tok, or leave out tok'
        )
    name = ' and '.join(names) or 'tok'
    if tok.length != length:
        raise ValueError(f'{user}: {name} has {tok.length} tokens, {wanted}')
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(tok)} - {1, batch}
    if rows:
        raise ValueError(
            f'{user}: {name} has {rows.pop()} rows; expected {batch}, the batch, or 1 for all rows'
        )
    return tok


def _no_mask(user: str, name: str, given) -> ValueError:
    shape = getattr(given, 'shape', None)
    found = type(given).__name__ if shape is None else f'an array {given.dtype} {shape}'
    expected = 'must be Tokens' if name == 'tok' else 'is no argument of this layer'
    return ValueError(
        f'{user}: {name} {expected}, got {found}. In the place of a mask, padding is told by '
        'valid=[B, L], packed documents by segment=[B, L], and which keys a query sees by '
        "causal= and the encoding: 'rope() | window(size=64)', 'rope() | prefix(length=16)'"
    )


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
    known = _tokens('attention_layer', tok, x.shape[0], x.shape[1], f'x has {x.shape[1]}')
    placed = encoding.place(known, key=key)
    return AttentionMixer(cast(Projections, weights), encoding, **options).whole(
        encoding.embed(x, placed), placed
    )
