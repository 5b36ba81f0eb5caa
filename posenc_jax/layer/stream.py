"""Layers beside which a second state, a stream, flows from layer to layer.

A mixer with `streams = True` takes the stream in `whole`, `fill` and `step` and returns the stream
for the next layer. `feed` changes it again, by the output of the layer's feed-forward network.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.layer import slots
from posenc_jax.layer.cache import LayerCache
from posenc_jax.layer.mixer import AttentionMixer
from posenc_jax.layer.sharding import constrain
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card
from posenc_jax.protocol.tokens import Tokens

Stream = Any  # a pytree of arrays [B, L, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoState:
    """The state of a layer that keeps nothing of earlier tokens."""


class StreamingMixer(nnx.Module):
    """A layer in the place of attention that takes a stream and returns it.

    A stream has the same structure, shapes and dtypes at all layers of a pass over whole sequences.
    In a decode step only its structure is fixed, so it may hold the cache of a layer as it is.
    """

    card: ClassVar[Card]
    spec_kind: ClassVar[str] = 'mixer'
    streams: ClassVar[bool] = True

    @property
    def memoryless(self) -> bool:
        """Whether the result for a token needs nothing but its input and the stream, so that
        `step` can begin at any token of a prompt, behind `tail`, with `NoState`.
        """
        return False

    def check_order(self, below: Sequence[nnx.Module | None]) -> None:
        """Refuses a place in the pattern, where `below` are the mixers of the layers before, None
        for attention. Called when a model is made.
        """

    def begin_stream(self, tok: Tokens) -> Stream:
        """The stream at the first layer, [#B, L, ...]."""
        raise NotImplementedError

    def start(self, batch: int, tok: Tokens) -> Any:
        """The state before the first token; `tok` are the tokens of the whole capacity."""
        raise NotImplementedError

    def whole(
        self, x: Float[Array, 'B L D'], tok: Tokens, stream: Stream
    ) -> tuple[Float[Array, 'B L D'], Stream]:
        """The result for whole sequences, and the stream behind it."""
        return self.fill(x, tok, stream, tok.length)[:2]

    def fill(
        self,
        x: Float[Array, 'B T D'],
        tok: Tokens,
        stream: Stream,
        capacity: int,
        count: int | Int[Array, ''] | None = None,
    ) -> tuple[Float[Array, 'B T D'], Stream, Any]:
        """`whole`, and the state behind the first `count` tokens (None: behind all of them)."""
        raise NotImplementedError

    def step(
        self, x: Float[Array, 'B T D'], tok: Tokens, stream: Stream, state: Any, cursor
    ) -> tuple[Float[Array, 'B T D'], Stream, Any]:
        """The result for T new tokens, their stream and the state behind them. `tok` are the tokens
        of the whole capacity, `stream` is that of the new tokens.
        """
        raise NotImplementedError

    def feed(self, m: Float[Array, 'B T D'], stream: Stream) -> Stream:
        """The stream behind the feed-forward network, whose output is `m`."""
        return stream

    def tail(self, stream: Stream, count: int) -> Stream:
        """The stream of the last `count` tokens as `step` takes it, from that of `fill`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class StreamingAttention:
    """Attention whose encoding reads a stream and writes it, see `Streams` in
    `protocol/capabilities.py`.

    `Encoding.project` finds the stream of its tokens as the feature 'stream'. It may join it to the
    values, so that it is averaged with the weights of attention. `carry_stream` takes the
    result apart.
    """

    attention: AttentionMixer
    streams: ClassVar[bool] = True

    @property
    def encoding(self) -> Any:
        return self.attention.encoding

    def whole(
        self, x: Float[Array, 'B L D'], tok: Tokens, stream: Stream
    ) -> tuple[Float[Array, 'B L D'], Stream]:
        """The result for whole sequences, and the stream behind attention."""
        out = self.attention.attend(*self.attention.projected(x, _with(tok, stream)))
        return self._output(out, stream, x.dtype)

    def fill(
        self,
        x: Float[Array, 'B T D'],
        tok: Tokens,
        stream: Stream,
        capacity: int,
        count: int | Int[Array, ''] | None = None,
    ) -> tuple[Float[Array, 'B T D'], Stream, LayerCache]:
        """`whole`, and the state behind the first `count` tokens."""
        projected, state = self.attention.begin(x, _with(tok, stream), capacity, count)
        return *self._output(self.attention.attend(*projected), stream, x.dtype), state

    def step(
        self, x: Float[Array, 'B T D'], tok: Tokens, stream: Stream, state: LayerCache, cursor
    ) -> tuple[Float[Array, 'B T D'], Stream, LayerCache]:
        """The result for T new tokens, their stream and the state behind them. `tok` are the tokens
        of the whole capacity, `stream` is that of the new tokens alone.
        """
        projected, state = self.attention.append(x, tok, state, cursor, {'stream': stream})
        out = self.attention.attend(*projected, heads_first=True, implementation='dense')
        y, stream = self._output(out, stream, x.dtype)
        return slots.beyond_as_nan(y, cursor, tok.length), stream, state

    def feed(self, m: Float[Array, 'B T D'], stream: Stream) -> Stream:
        """The stream behind the feed-forward network, whose output is `m`."""
        return _constrained(self.encoding.feed_stream(m, stream))

    def _output(self, out, stream, dtype):
        # The values may have been joined to a stream of a wider dtype.
        out, stream = self.encoding.carry_stream(out, stream)
        return self.attention.output(out.astype(dtype)), _constrained(stream)


def _with(tok: Tokens, stream: Stream) -> Tokens:
    return tok.with_feats(stream=stream)


def _constrained(stream: Stream) -> Stream:
    return jax.tree.map(
        lambda a: constrain(a, 'batch', 'sequence', 'heads', *[None] * (a.ndim - 3)), stream
    )


def has_stream(part: Any) -> bool:
    """Whether an encoding, or a mixer in the place of attention, carries a stream."""
    return part.opens('begin_stream') if isinstance(part, Encoding) else part.streams


def begin_one_stream(owners: Sequence[tuple[Any, Tokens]], batch: int) -> Stream | None:
    """The stream at the first layer, [batch, L, ...], of the parts that carry one, with the tokens
    of their layers; None where there is none.

    Raises:
      ValueError: parts of two methods.
    """
    first: dict[str, tuple[Any, Tokens]] = {}
    for owner, tok in owners:
        first.setdefault(owner.card.key, (owner, tok))
    if len(first) > 1:
        raise ValueError(f'{" and ".join(first)} each carry a stream; use one of them')
    whole = lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:]))
    begun = [owner.begin_stream(tok) for owner, tok in first.values()]
    return jax.tree.map(whole, begun[0]) if begun else None
