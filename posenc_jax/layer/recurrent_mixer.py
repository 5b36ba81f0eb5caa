"""Mixers that read a sequence from left to right with a state of fixed size."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.layer import cache as caching
from posenc_jax.protocol.errors import must_define
from posenc_jax.protocol.registry import Card
from posenc_jax.protocol.tokens import Tokens

State = Any  # a pytree of float32 arrays, the batch first


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixerState:
    """The memory of a `RecurrentMixer` of the tokens so far.

    Attributes:
      inner: the state of the method.
      segment: packed document of the last real token, -1 before the first.
    """

    inner: State
    segment: Int[Array, 'B']


class RecurrentMixer(nnx.Module):
    """A layer that reads tokens in order and remembers them in a state of fixed size.

    A subclass writes `initial` and `scan`; the rest follows. The state is float32, padding leaves
    it unchanged, and it starts anew at the first token of every packed document.
    """

    card: ClassVar[Card]
    spec_kind: ClassVar[str] = 'mixer'
    streams: ClassVar[bool] = False

    def initial(self, batch: int) -> State:
        """The state before the first token of a document, [B, ...] in float32."""
        raise must_define(self, 'initial(self, batch)')

    def scan(
        self, x: Float[Array, 'B T D'], tok: Tokens, starts: Bool[Array, '#B T'], state: State
    ) -> tuple[Float[Array, 'B T D'], State]:
        """The result for T tokens behind a state, and the state behind them.

        Args:
          x: the normed layer input.
          tok: the tokens. Those that are not valid must leave the state as it is; their results
            have no meaning.
          starts: True where a token is the first of its document, so that it must not see the
            state before it. It is never True on padding.
          state: as `initial` or `scan` returned it.
        """
        raise must_define(self, 'scan(self, x, tok, starts, state)')

    def whole(self, x: Float[Array, 'B L D'], tok: Tokens) -> Float[Array, 'B L D']:
        """The result for whole sequences."""
        return self.advance(x, tok, self._empty(x.shape[0]))[0]

    def start(self, batch: int, tok: Tokens) -> MixerState:
        """The state before the first token."""
        return self._empty(batch)

    def fill(
        self, x, tok: Tokens, capacity: int, count: int | Int[Array, ''] | None = None
    ) -> tuple[Float[Array, 'B T D'], MixerState]:
        """`whole`, and the state behind the first `count` tokens (None: behind all of them)."""
        tok = tok if count is None else caching.filled(tok, count)
        return self.advance(x, tok, self._empty(x.shape[0]))

    def step(
        self, x: Float[Array, 'B T D'], tok: Tokens, state: MixerState, cursor: Int[Array, '']
    ) -> tuple[Float[Array, 'B T D'], MixerState]:
        """The result for T new tokens, and the state behind them. `tok` are the tokens of the
        whole capacity, and `cursor` is how many came before.
        """
        return self.advance(x, tok.slice(cursor, x.shape[1]), state)

    def _empty(self, batch: int) -> MixerState:
        return MixerState(self.initial(batch), jnp.full(batch, -1, jnp.int32))

    def advance(
        self, x: Float[Array, 'B T D'], tok: Tokens, state: MixerState, scan: Callable | None = None
    ) -> tuple[Any, MixerState]:
        """The result for the T tokens `tok` behind a state, and the state behind them.

        Args:
          scan: a function with the arguments of `scan` and a result of its own, for a caller that
            wants what `scan` computes on its way; None is `scan`.
        """
        batch, length = x.shape[:2]
        of_row = lambda a: jnp.broadcast_to(a, (batch, length))
        valid = of_row(jnp.ones((1, 1), bool) if tok.valid is None else tok.valid)
        segment = of_row(jnp.zeros((1, 1), jnp.int32) if tok.segment is None else tok.segment)
        if tok.segment is None:  # one document, whose state is the initial one at its first token
            starts = jnp.zeros((batch, length), bool)
            last = jnp.where(valid.any(axis=1), 0, state.segment)
        else:
            # The document of the last valid token up to each place, from the state on.
            places = jax.lax.cummax(jnp.where(valid, jnp.arange(length), -1), axis=1)
            known = jnp.take_along_axis(segment, jnp.maximum(places, 0), axis=1)
            known = jnp.where(places < 0, state.segment[:, None], known)
            before = jnp.concatenate([state.segment[:, None], known[:, :-1]], axis=1)
            starts, last = valid & (segment != before), known[:, -1]
        y, inner = (scan or self.scan)(x, tok, starts, state.inner)
        return y, MixerState(inner, last)
