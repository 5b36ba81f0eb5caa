"""Attention of a recurrent decoder over the features of a text line, with positions inside it."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.methods.sinusoidal import sinusoidal_table
from posenc_jax.mixers.gru import uniform
from posenc_jax.mixers.htr_weights import (
    additive_energy,
    chunk_weights,
    first_key,
    location_features,
    monotonic_weights,
    penalised_weights,
)
from posenc_jax.mixers.location_weights import content_weights, key_positions
from posenc_jax.protocol.bounds import NonNegative, Size
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tables import lookup_rows

Kind = Literal['content', 'location', 'penalised', 'monotonic', 'chunkwise']
Positions = Literal['none', 'sinusoid', 'table']
KINDS, POSITIONS = get_args(Kind), get_args(Positions)
_WALKS = ('monotonic', 'chunkwise')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """The source as attention needs it; it is the same at every step.

    Attributes:
      values: h_j with its position.
      keys: V h_j + b.
      chunk_keys: the same of the energies within a chunk, or None.
      valid: False for padding.
    """

    values: Float[Array, 'B S E']
    keys: Float[Array, 'B S A']
    chunk_keys: Float[Array, 'B S A'] | None
    valid: Bool[Array, 'B S']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Past:
    """The state that one decoder step passes to the next.

    Attributes:
      step: number of the next step.
      weights: the weights of the last step where the kind reads them (of a chunkwise attention,
        those of its stops), or None.
      total: `log sum_{s<t} exp(e_sj)` of penalised attention, or None.
      key: draws the noise of training, or None.
    """

    step: Int[Array, '']
    weights: Float[Array, 'B S'] | None
    total: Float[Array, 'B S'] | None
    key: Array | None


@register(
    'htr_attention',
    kind='mixer',
    card=Card(
        name='seq2seq handwriting recognition: attention types',
        example="HTRAttention(64, 64, kind='location', positions='sinusoid', rngs=rngs)",
        use_when=(
            'You read lines of writing by a recurrent decoder and compare kinds of attention.'
        ),
        promises=Promises(sweep_free=False, blockwise=False, needs_training=True),
    ),
)
class HTRAttention(nnx.Module):
    """Additive attention of a recurrent decoder in five kinds, with positions of the keys or not.

    `e_tj = w . tanh(W s_t + V h_j + b)` with decoder state s_t and encoder features h_j; the
    context is `sum_j alpha_tj h_j`. 'content': alpha is the softmax of e. 'location' adds
    `U conv(alpha_(t-1))_j` inside tanh, of no weights before the first step. 'penalised' divides
    exp(e_tj) by its sum over earlier steps (`penalised_weights`). 'monotonic' walks from where the
    last step stopped, and stops at key j with probability sigmoid(e_tj) (`monotonic_weights`).
    'chunkwise' spreads each stop over the last `width` keys by energies of their own
    (`chunk_weights`). Positions are added to the features first, since content attention confuses
    equal ones. It takes the place of the attention of `EncoderDecoder`. O(S) a step, O(S w) for
    chunks. Differs from the paper, whose code is not public: the features come from a bidirectional
    GRU on symbols, and monotonic attention keeps its expected weights after training. Initial
    weights are Xavier uniform, initial biases 0, and a table is drawn with deviation 0.02.

    Args:
      query_dim, key_dim: widths of s_t and of h_j.
      kind: 'content', 'location', 'penalised', 'monotonic' or 'chunkwise'.
      positions: 'none', 'sinusoid', or 'table' (learned), of the number of a key.
      width_inside: A, the width inside tanh.
      filters, taps: of the convolution of 'location'; taps is odd.
      width: keys in a chunk.
      noise: deviation of the noise on energies of walks in training, where `start` gets a key.
      max_len: rows of a learned table; a source of more keys, padding included, is refused.

    Raises:
      ValueError: an even number of taps; at call, more keys than rows of the table.

    Reference: Michael, Labahn, Grüning, Zöllner, arXiv 1903.07377.

    Example:
      >>> attention = HTRAttention(8, 6, kind='penalised', rngs=nnx.Rngs(0))
      >>> memory = attention.remember(jnp.ones((2, 5, 6)), jnp.ones((2, 5), bool))
      >>> context, weights, past = attention(jnp.ones((2, 8)), memory, attention.start(2, 5))
      >>> context.shape, weights.shape, int(past.step)
      ((2, 6), (2, 1, 5), 1)
    """

    def __init__(
        self,
        query_dim: Size,
        key_dim: Size,
        *,
        kind: Kind = 'content',
        positions: Positions = 'none',
        width_inside: Size = 128,
        filters: Size = 16,
        taps: Size = 15,
        width: Size = 4,
        noise: NonNegative = 1.0,
        max_len: Size = 512,
        rngs: nnx.Rngs,
    ):
        self.kind, self.positions = kind, positions
        if taps % 2 == 0:
            raise ValueError(
                f'htr_attention: taps must be odd, so that a filter has a centre, got {taps}'
            )
        self.noise, self.width = noise, width
        drawn = lambda *shape: uniform(rngs, (6 / sum(shape)) ** 0.5, *shape)
        energy = lambda: nnx.Dict(
            w=drawn(width_inside),
            query=drawn(query_dim, width_inside),
            key=drawn(key_dim, width_inside),
            bias=nnx.Param(jnp.zeros(width_inside, jnp.float32)),
        )
        self.energy = energy()
        self.chunk_energy = energy() if kind == 'chunkwise' else None
        self.conv = drawn(taps, filters) if kind == 'location' else None
        self.u = drawn(filters, width_inside) if kind == 'location' else None
        rows = lambda: 0.02 * jax.random.normal(rngs.params(), (max_len, key_dim), jnp.float32)
        self.table = nnx.Param(rows()) if positions == 'table' else None

    def remember(self, e: Float[Array, 'B S E'], valid: Bool[Array, 'B S']) -> Features:
        """Prepares the features of a source for attention."""
        number = jnp.maximum(key_positions(valid)[1], 0)
        if self.positions == 'sinusoid':
            e = e + sinusoidal_table(number, e.shape[-1])
        if self.table is not None:
            if e.shape[1] > len(self.table[...]):
                raise ValueError(
                    f'htr_attention has a table of {len(self.table[...])} positions, the source '
                    f"has {e.shape[1]} keys; use a larger max_len or positions='sinusoid'"
                )
            e = e + lookup_rows(self.table[...], number)
        e = jnp.where(valid[..., None], e, 0)
        keys = lambda of: None if of is None else e @ of['key'][...] + of['bias'][...]
        return Features(e, keys(self.energy), keys(self.chunk_energy), valid)

    def start(self, batch: int, keys: int, key: Array | None = None) -> Past:
        """The state before the first step over this number of keys; a `key` is given in training
        alone.
        """
        zeros = jnp.zeros((batch, keys), jnp.float32)
        walks = self.kind in _WALKS
        return Past(
            jnp.int32(0),
            zeros if walks or self.kind == 'location' else None,
            zeros if self.kind == 'penalised' else None,
            key if walks else None,
        )

    def __call__(
        self, h: Float[Array, 'B Q'], memory: Features, past: Past
    ) -> tuple[Float[Array, 'B E'], Float[Array, 'B 1 S'], Past]:
        """One step: the context, the weights, and the state for the next step."""
        keys, valid, total = memory.keys, memory.valid, past.total
        if self.conv is not None and self.u is not None:
            keys = keys + location_features(past.weights, self.conv[...]) @ self.u[...]
        e = additive_energy(h @ self.energy['query'][...], keys, self.energy['w'][...])
        if self.kind in _WALKS:
            if past.key is not None:
                drawn = jax.random.normal(jax.random.fold_in(past.key, past.step), e.shape)
                e = e + self.noise * drawn
            before = jnp.where(past.step == 0, first_key(valid), past.weights)
            weights = kept = monotonic_weights(jax.nn.sigmoid(e), before, valid)
            if (of := self.chunk_energy) is not None:
                inside = additive_energy(h @ of['query'][...], memory.chunk_keys, of['w'][...])
                weights = chunk_weights(kept, inside, valid, self.width)
        elif self.kind == 'penalised':
            (weights, total), kept = penalised_weights(e, total, past.step == 0, valid), None
        else:
            weights = content_weights(e[:, None], valid)[:, 0]
            kept = weights if self.kind == 'location' else None
        context = jnp.einsum('bs,bse->be', weights, memory.values)
        return context, weights[:, None], Past(past.step + 1, kept, total, past.key)
