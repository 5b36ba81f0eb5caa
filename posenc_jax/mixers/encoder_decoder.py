"""A small recurrent encoder-decoder around `MonotonicLocation`: both directions of a GRU, a GRU, one cross attention."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.mixers.monotonic_location import Content, Location, Memory, MonotonicLocation, Progress, mix_directions
from posenc_jax.model.layers import dropout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderState:
    """What a decoder step leaves for the next."""

    hidden: Float[Array, 'B E']
    progress: Progress


def run_gru(
    cell: nnx.GRUCell, x: Float[Array, 'B S I'], valid: Bool[Array, 'B S'], *, reverse: bool = False
) -> tuple[Float[Array, 'B S E'], Float[Array, 'B E']]:
    """States of a GRU from zero along the valid rows, zero at the others, and the last state it reached.

    Example:
      >>> states, last = run_gru(nnx.GRUCell(2, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4, 2)), jnp.arange(4)[None] < 2)
      >>> states.shape, bool((states[:, 1] == last).all()), bool((states[:, 2:] == 0).all())
      ((1, 4, 3), True, True)
    """

    def step(h, row):
        x, valid = row
        h = jnp.where(valid[:, None], cell(h, x)[0], h)
        return h, jnp.where(valid[:, None], h, 0)

    start = jnp.zeros((x.shape[0], cell.hidden_features), x.dtype)
    last, states = jax.lax.scan(step, start, (jnp.swapaxes(x, 0, 1), valid.T), reverse=reverse)
    return jnp.swapaxes(states, 0, 1), last


class EncoderDecoder(nnx.Module):
    """Source symbols to target symbols: `e` from a GRU each way, decoder states h_t from the targets before, a context by
    `MonotonicLocation`, and logits from `[h_t ; context]`.

    The decoder starts from the encoder's last states. With `mix`, `g = sigmoid(5 (w . h_enc + b))` mixes the encodings with
    their reverse (`mix_directions`), so that a source may be stepped through from its end.

    Args:
      symbols: ids 0 .. symbols - 1, of sources and targets; what pads a source says `valid`.
      embedding: width of embedded symbols; hidden: E, half of it in each direction of the encoder.
      mix: whether the two directions are mixed.
      rate: of dropout, on embedded symbols and before the logits; only where a key is given.
      heads, head_dim, location, content, position_past, gru: of `MonotonicLocation`.

    Raises:
      ValueError: an odd `hidden`; what `MonotonicLocation` refuses.

    Reference: Ray Chowdhury, Caragea, arXiv 2305.20019.

    Example:
      >>> model = EncoderDecoder(12, hidden=8, head_dim=4, location='onestep', rngs=nnx.Rngs(0))
      >>> source, valid, target = jnp.ones((2, 5), int), jnp.ones((2, 5), bool), jnp.ones((2, 3), int)
      >>> model(source, valid, target).shape, model.generate(source, valid, first=0, steps=4).shape
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
        mix: bool = True,
        position_past: bool = False,
        gru: bool = False,
        rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        if symbols < 1 or not 0 <= rate < 1:
            raise ValueError(f'EncoderDecoder needs at least 1 symbol and a dropout rate in 0 .. 1, got {symbols=}, {rate=}')
        if hidden % 2:
            raise ValueError(f'hidden must be even, half of it for each direction, got {hidden}')
        self.rate = rate
        self.source = nnx.Embed(symbols, embedding, rngs=rngs)
        self.target = nnx.Embed(symbols, embedding, rngs=rngs)
        self.forwards = nnx.GRUCell(embedding, hidden // 2, rngs=rngs)
        self.backwards = nnx.GRUCell(embedding, hidden // 2, rngs=rngs)
        self.gate = nnx.Linear(hidden, 1, rngs=rngs) if mix else None
        self.begin = nnx.Linear(hidden, hidden, rngs=rngs)
        self.cell = nnx.GRUCell(embedding, hidden, rngs=rngs)
        own = dict(location=location, content=content, position_past=position_past, gru=gru)
        self.attention = MonotonicLocation(hidden, hidden, heads=heads, head_dim=head_dim, rngs=rngs, **own)
        self.joint = nnx.Linear(hidden + heads * head_dim, hidden, rngs=rngs)
        self.readout = nnx.Linear(hidden, symbols, rngs=rngs)

    def encode(
        self, source: Int[Array, 'B S'], valid: Bool[Array, 'B S'], *, key: Array | None = None
    ) -> tuple[Memory, DecoderState]:
        """What the decoder attends to, and its state before the first step."""
        x = dropout(self.source(source), self.rate, key)
        runs = run_gru(self.forwards, x, valid), run_gru(self.backwards, x, valid, reverse=True)
        e, last = (jnp.concatenate(a, axis=-1) for a in zip(*runs))
        if self.gate is not None:
            e = mix_directions(e, valid, jax.nn.sigmoid(5 * self.gate(last)[:, 0]))
        state = DecoderState(jnp.tanh(self.begin(last)), self.attention.start(len(source)))
        return self.attention.remember(e, valid), state

    def _advance(self, x, memory, state):
        hidden, _ = self.cell(state.hidden, x)
        context, weights, progress = self.attention(hidden, memory, state.progress)
        return jnp.concatenate([hidden, context], axis=-1), weights, DecoderState(hidden, progress)

    def _logits(self, joined, key=None):
        return self.readout(dropout(jax.nn.leaky_relu(self.joint(joined)), self.rate, key))

    def step(
        self, token: Int[Array, 'B'], memory: Memory, state: DecoderState
    ) -> tuple[Float[Array, 'B V'], Float[Array, 'B H S'], DecoderState]:
        """Logits of the symbol after `token`, the weights of its attention, and the state for the next step."""
        joined, weights, state = self._advance(self.target(token), memory, state)
        return self._logits(joined), weights, state

    def __call__(
        self, source: Int[Array, 'B S'], valid: Bool[Array, 'B S'], target: Int[Array, 'B T'], *, key: Array | None = None
    ) -> Float[Array, 'B T V']:
        """Logits of the symbol after each of `target`, which starts with the symbol that begins every target."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        memory, state = self.encode(source, valid, key=keys[0])
        x = dropout(self.target(target), self.rate, keys[1])

        def step(state, x):
            joined, _, state = self._advance(x, memory, state)
            return state, joined

        _, joined = jax.lax.scan(step, state, jnp.swapaxes(x, 0, 1))
        return self._logits(jnp.swapaxes(joined, 0, 1), keys[2])

    def generate(
        self, source: Int[Array, 'B S'], valid: Bool[Array, 'B S'], *, first: int, steps: int
    ) -> Int[Array, 'B steps']:
        """The likeliest symbols one after the other, from `first`; nothing stops at an end symbol."""
        memory, state = self.encode(source, valid)

        def step(loop, _):
            token, state = loop
            logits, _, state = self.step(token, memory, state)
            token = logits.argmax(-1)
            return (token, state), token

        begin = jnp.full(len(source), first), state
        return jax.lax.scan(step, begin, None, length=steps)[1].T
