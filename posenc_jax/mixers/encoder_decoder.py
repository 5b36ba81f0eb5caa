"""The recurrent encoder-decoder of the paper on location attention: a bidirectional GRU, one
attention, and a GRU.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.layer.layers import dropout
from posenc_jax.mixers.gru import GRU, uniform
from posenc_jax.mixers.location_weights import Location
from posenc_jax.mixers.monotonic_location import Content, MonotonicLocation, monotonic_location_mix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderState:
    """The state that one decoder step passes to the next."""

    hidden: Float[Array, 'B E']
    progress: Any  # the state of the attention


def enclose(
    x: Float[Array, 'B S E'],
    length: Int[Array, 'B'],
    start: Float[Array, 'E'],
    end: Float[Array, 'E'],
) -> Float[Array, 'B S+2 E']:
    """Puts `start` before and `end` behind the first `length` rows of x; zeros follow."""
    behind = (jnp.arange(x.shape[1] + 2) - length[:, None] - 1)[..., None]  # 0 at the row of `end`
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0))).at[:, 0].set(start)
    return jnp.where(behind < 0, x, jnp.where(behind == 0, end, 0))


class EncoderDecoder(nnx.Module):
    """Maps source symbols to target symbols, as the code of the authors does.

    Encoder: a trained START stands before the embedded source and a trained END behind it. A GRU
    runs in each direction, `e = [forwards ; backwards]`, with dropout on e. Decoder: its initial
    state h_0 is the last states of both GRUs, concatenated. Step t attends with h_{t-1}, then
    `h_t = GRU([embedded symbol t-1 ; context], h_{t-1})`. The logits are `table (W h_t + b) + c`
    with the embedding table, which sources and targets share. With `both_ways`,
    `g = sigmoid(5 (w . h_0 + b))` mixes the encodings with their reverse
    (`monotonic_location_mix`), so that the decoder can step through a source from its end. The
    authors' code also declares a trained h_0 and does not use it.

    Args:
      symbols: V, the number of symbols of sources and targets.
      embedding: width of embedded symbols.
      hidden: E, the width of e and h; each direction of the encoder has half of it.
      both_ways: whether the encodings are mixed with their reverse.
      rate: dropout rate of the encodings; dropout needs a key at the call.
      heads, head_dim, location, content, position_past, gru: as for `MonotonicLocation`.
      attention: `attention(query_dim, key_dim, rngs=rngs)` makes another attention, for example
        `functools.partial(HTRAttention, kind='location')`; the arguments of `MonotonicLocation` are
        then not read. None for `MonotonicLocation`.

    Raises:
      ValueError: no symbols, widths below 1, an odd `hidden`, a rate below 0 or at least 1; also
        the errors of `MonotonicLocation`.

    Reference: Ray Chowdhury, Caragea, arXiv 2305.20019.

    Example:
      >>> model = EncoderDecoder(12, hidden=8, head_dim=4, location='onestep', rngs=nnx.Rngs(0))
      >>> source, length, target = jnp.ones((2, 5), int), jnp.array([5, 3]), jnp.ones((2, 3), int)
      >>> (
      ...     model(source, length, target).shape,
      ...     model.generate(source, length, first=0, steps=4).shape,
      ... )
      ((2, 3, 12), (2, 4))
    """

    def __init__(
        self,
        symbols: int,
        *,
        embedding: int = 64,
        hidden: int = 128,
        heads: int = 1,
        head_dim: int = 128,
        location: Location | None = 'monoattn',
        content: Content | None = None,
        both_ways: bool = True,
        position_past: bool = False,
        gru: bool = False,
        attention: Callable[..., Any] | None = None,
        rate: float = 0.5,
        rngs: nnx.Rngs,
    ):
        if min(symbols, embedding) < 1 or not 0 <= rate < 1:
            found = f'{symbols=}, {embedding=}, {rate=}'
            raise ValueError(
                'EncoderDecoder needs at least 1 symbol, an embedding of at least 1 and a rate of '
                f'at least 0 and below 1, got {found}'
            )
        if hidden < 2 or hidden % 2:
            raise ValueError(
                'hidden must be even, since each direction has half of it, and at least 2, got '
                f'{hidden}'
            )
        self.rate = rate
        normal = jax.random.normal(rngs.params(), (symbols, embedding), jnp.float32)
        self.table = nnx.Param((2 / symbols) ** 0.5 * normal)
        self.bias = nnx.Param(jnp.zeros(symbols, jnp.float32))
        self.start, self.end = (nnx.Param(jnp.zeros(embedding, jnp.float32)) for _ in range(2))
        self.forwards, self.backwards = (GRU(embedding, hidden // 2, rngs=rngs) for _ in range(2))
        draw = lambda *shape: uniform(rngs, hidden**-0.5, *shape)
        self.w_gate, self.b_gate = (draw(hidden, 1), draw(1)) if both_ways else (None, None)
        own: dict[str, Any] = dict(heads=heads, head_dim=head_dim, location=location)
        own |= dict(content=content, position_past=position_past, gru=gru)
        make, own = (MonotonicLocation, own) if attention is None else (attention, {})
        self.attention = make(hidden, hidden, rngs=rngs, **own)
        self.cell = GRU(embedding + hidden, hidden, rngs=rngs)
        self.w_out = uniform(rngs, (6 / (hidden + embedding)) ** 0.5, hidden, embedding)
        self.b_out = draw(embedding)

    def encode(
        self, source: Int[Array, 'B S'], length: Int[Array, 'B'], *, key: Array | None = None
    ) -> tuple[Any, DecoderState]:
        """Encodes the first `length` symbols of each source.

        Returns the memory that the decoder attends to, and its state before the first step.
        """
        x = enclose(self.table[...][source], length, self.start[...], self.end[...])
        valid = jnp.arange(x.shape[1]) < length[:, None] + 2
        runs = self.forwards.run(x, valid), self.backwards.run(x, valid, reverse=True)
        e, last = (jnp.concatenate(a, axis=-1) for a in zip(*runs))
        e = dropout(e, self.rate, key)
        if self.w_gate is not None:
            gate = jax.nn.sigmoid(5 * (last @ self.w_gate[...] + self.b_gate[...]))
            e = monotonic_location_mix(e, valid, gate[:, 0])
        # The key of the dropout is not used twice.
        noise = None if key is None else jax.random.fold_in(key, 1)
        progress = self.attention.start(len(source), e.shape[1], noise)
        return self.attention.remember(e, valid), DecoderState(last, progress)

    def _advance(self, x, memory, state):
        context, weights, progress = self.attention(state.hidden, memory, state.progress)
        hidden = self.cell(state.hidden, jnp.concatenate([x, context], axis=-1))
        return hidden, weights, DecoderState(hidden, progress)

    def _logits(self, hidden):
        return (hidden @ self.w_out[...] + self.b_out[...]) @ self.table[...].T + self.bias[...]

    def step(
        self, token: Int[Array, 'B'], memory: Any, state: DecoderState
    ) -> tuple[Float[Array, 'B V'], Float[Array, 'B H S'], DecoderState]:
        """The logits of the symbol after `token`, the attention weights of this step, and the state
        for the next step.
        """
        hidden, weights, state = self._advance(self.table[...][token], memory, state)
        return self._logits(hidden), weights, state

    def __call__(
        self,
        source: Int[Array, 'B S'],
        length: Int[Array, 'B'],
        target: Int[Array, 'B T'],
        *,
        key: Array | None = None,
    ) -> Float[Array, 'B T V']:
        """The logits of the symbol after each symbol of `target`, whose first symbol is one that
        begins every target.
        """
        memory, state = self.encode(source, length, key=key)

        def step(state, x):
            hidden, _, state = self._advance(x, memory, state)
            return state, hidden

        _, hidden = jax.lax.scan(step, state, jnp.swapaxes(self.table[...][target], 0, 1))
        return self._logits(jnp.swapaxes(hidden, 0, 1))

    def generate(
        self, source: Int[Array, 'B S'], length: Int[Array, 'B'], *, first: int, steps: int
    ) -> Int[Array, 'B steps']:
        """Greedy decoding of `steps` symbols after `first`; it does not stop at an end symbol."""
        memory, state = self.encode(source, length)

        def step(loop, _):
            token, state = loop
            logits, _, state = self.step(token, memory, state)
            token = logits.argmax(-1)
            return (token, state), token

        begin = jnp.full(len(source), first), state
        return jax.lax.scan(step, begin, None, length=steps)[1].T
