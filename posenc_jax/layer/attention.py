"""Attention with a positional encoding, as a layer for any model."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export
from jaxtyping import Array, Float

from posenc_jax.attention.attend import IMPLEMENTATIONS
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


class CachedLayer(nnx.Module):
    """What layers of attention share: an encoding for their sizes, and a decode cache."""

    encoding: Encoding
    projections: Any  # with the width of the layer input, see `AttentionMixer`
    _dtype: Any  # of the inputs of `step`, where `start` is not told

    def _encode(
        self, encoding, width, heads, kv_heads, head_dim, causal, train_len, block, kind, rngs
    ) -> tuple[int, int]:
        """Makes the encoding. Returns the number of key heads and the head width."""
        given = dict(kv_heads=kv_heads, head_dim=head_dim, block=block)
        given = {name: size for name, size in given.items() if size is not None}
        for name, size in dict(width=width, heads=heads, **given).items():
            if not is_size(size):
                raise ValueError(
                    f'{self._name}: {name} must be an integer of at least 1, got {size!r}'
                )
        if kind is not None:
            check_choice(f'{self._name}: implementation', kind, IMPLEMENTATIONS)
        if head_dim is None and width % heads:
            raise ValueError(
                f'{self._name}: width {width} is not a multiple of {heads} heads; give head_dim'
            )
        kv_heads = heads if kv_heads is None else kv_heads
        head_dim = width // heads if head_dim is None else head_dim
        sizes = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, model_dim=width)
        if train_len is not None:
            sizes['train_len'] = train_len
        self.encoding = make(encoding, causal=causal, rngs=rngs, **sizes)
        self.block, self.implementation = block, kind
        return kv_heads, head_dim

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _mixer(self, dtype) -> AttentionMixer:
        return AttentionMixer(
            self.projections, self.encoding, self.block, self.implementation, dtype
        )

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
                    f'{self._name}: {name} must be an integer of at least 1, got {size!r}'
                )
        check_cached(self.encoding)
        for part in parts_of(self.encoding):
            if 'sees_later' in part.traits:
                raise ValueError(
                    f'{self._name}: {name_of(part)} lets tokens see later ones, which a step does '
                    'not know yet; call the layer on the whole sequence'
                )
        dtype = self._dtype if dtype is None else dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f'{self._name}: dtype must be one of floats, got {dtype!r}')
        known = tokens_told(self._name, tok, batch, capacity, f'the capacity is {capacity}')
        placed = self.encoding.place(known)
        state = self._mixer(dtype).start(batch, placed)
        unplaced = known if tok is None else None
        return Cache((placed,), jnp.zeros((), jnp.int32), (state,), unplaced)

    def _step(self, x, cache: Cache, mixer: AttentionMixer, valid, segment) -> tuple[Array, Cache]:
        """The result of a mixer for new tokens behind a cache."""
        batch, count = x.shape[:2]
        if not isinstance(cache, Cache):
            raise ValueError(
                f'{self._name}: cache must be what start(batch, capacity) returned, or the second '
                f'result of the last step, got {type(cache).__name__}'
            )
        (state,) = cache.layers
        if state.k.shape[0] != batch:
            raise ValueError(
                f'{self._name}: x has {batch} rows, the cache was started for {state.k.shape[0]}; '
                f'start({batch}, ...) makes one for x'
            )
        if state.rows.dtype != x.dtype:
            raise ValueError(
                f'{self._name}: x is {x.dtype}, the cache was started for {state.rows.dtype}; '
                f'start(..., dtype=jnp.{x.dtype}) makes one for x'
            )
        if count > cache.free:
            raise ValueError(
                f'{self._name}: {count} new tokens do not fit the cache, which has {cache.free} of '
                f'{cache.capacity} slots free'
            )
        tokens, unplaced = cache.tokens, cache.unplaced
        if valid is not None or segment is not None:
            unplaced = self._told(cache, batch, count, valid, segment)
            tokens = (self.encoding.place(unplaced),)
        x = self.encoding.embed(x, slots.at(tokens[0], cache.cursor, count))
        y, state = mixer.step(x, tokens[0], state, cache.cursor)
        return y, Cache(tokens, cache.cursor + count, (state,), unplaced)

    def _told(self, cache: Cache, batch, count, valid, segment) -> Tokens:
        """The tokens of the cache, before they are placed, with what a step tells of its own."""
        names = ' and '.join(_given(valid=valid, segment=segment))
        if cache.unplaced is None:
            raise ValueError(
                f'{self._name}: step got {names}, but the cache was started with tok, which '
                f'describes all tokens; give {names} to the Tokens.of that makes tok, or start '
                'without tok'
            )
        for part in parts_of(self.encoding):
            if part.opens('place') and 'reads_other_tokens' in part.traits:
                raise ValueError(
                    f'{self._name}: step got {names}, but {name_of(part)} places all tokens '
                    'together; describe all of them by start(..., tok=Tokens.of(...)), with '
                    f'{names}'
                )
        new = tokens_told(self._name, None, batch, count, f'x has {count}', valid, segment)
        return slots.told(cache.unplaced, cache.cursor, new)

    def _checked(self, x) -> Float[Array, 'B L D']:
        x = jnp.asarray(x)
        if x.ndim != 3 or x.shape[2] != self.projections.width:
            raise ValueError(
                f'{self._name}: x has shape {x.shape}, expected [B, L, {self.projections.width}]'
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f'{self._name}: x must be floats, got {x.dtype}')
        return x


class Attention(CachedLayer):
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
        check_choice('Attention: bias', bias, BIASES)
        kind = implementation
        kv_heads, head_dim = self._encode(
            encoding, width, heads, kv_heads, head_dim, causal, train_len, block, kind, rngs
        )
        self.projections = Projections(
            width, heads, kv_heads, head_dim, bias=bias, gain=1.0, rngs=rngs
        )

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
            raise no_mask('Attention', 'mask', mask)
        x = self._checked(x)
        batch, length = x.shape[:2]
        tok = tokens_told('Attention', tok, batch, length, f'x has {length}', valid, segment)
        tok = self.encoding.place(tok, key=key)
        return self._mixer(x.dtype).whole(self.encoding.embed(x, tok), tok)

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
        return self._step(x, cache, self._mixer(x.dtype), valid, segment)

    @property
    def _dtype(self):
        return self.projections.w_q[...].dtype


Attention.__signature__ = constructor_signature(Attention)  # pyright: ignore[reportAttributeAccessIssue]


def _given(**arguments) -> list[str]:
    """The names of the arguments that are not None."""
    return [name for name, a in arguments.items() if a is not None]


def tokens_told(user: str, tok, batch, length, wanted: str, valid=None, segment=None) -> Tokens:
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
        raise no_mask(user, 'tok', tok)
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


def no_mask(user: str, name: str, given) -> ValueError:
    shape = getattr(given, 'shape', None)
    found = type(given).__name__ if shape is None else f'an array {given.dtype} {shape}'
    expected = 'must be Tokens' if name == 'tok' else 'is no argument of this layer'
    return ValueError(
        f'{user}: {name} {expected}, got {found}. In the place of a mask, padding is told by '
        'valid=[B, L], packed documents by segment=[B, L], and which keys a query sees by '
        "causal= and the encoding: 'rope() | window(size=64)', 'rope() | prefix(length=16)'"
    )
