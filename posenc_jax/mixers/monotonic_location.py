"""Location attention: cross attention of a decoder that moves along the source in steps."""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.methods.rope import rope
from posenc_jax.methods.sinusoidal import sinusoidal_table
from posenc_jax.mixers.gru import GRU, uniform
from posenc_jax.mixers.location_weights import (
    GATES,
    Location,
    content_weights,
    key_positions,
    location_centre,
    location_weights,
    relative_query,
)
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.registry import Card, Promises, register

Content = Literal['plain', 'relative', 'rotary']


def reverse_valid(e: Float[Array, 'B S E'], valid: Bool[Array, 'B S']) -> Float[Array, 'B S E']:
    """Reverses the order of the valid rows, which are contiguous; all other rows are zero."""
    first, count, place = jnp.argmax(valid, axis=1), valid.sum(1), jnp.arange(valid.shape[1])
    mirrored = jnp.clip((2 * first + count - 1)[:, None] - place, 0, valid.shape[1] - 1)
    return jnp.where(valid[..., None], jnp.take_along_axis(e, mirrored[..., None], axis=1), 0)


def monotonic_location_mix(
    e: Float[Array, 'B S E'], valid: Bool[Array, 'B S'], gate: Float[Array, 'B']
) -> Float[Array, 'B S E']:
    """`g e + (1 - g) reverse(e)`, so that steps forwards can read the source backwards."""
    gate = gate[:, None, None]
    return gate * jnp.where(valid[..., None], e, 0) + (1 - gate) * reverse_valid(e, valid)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """The source as cross attention needs it; it is the same at every step.

    Attributes:
      values: values of each head.
      keys: keys for attention by content, with the encoding of their numbers; None without it.
      position, length: position of each key and number of valid keys, see `key_positions`.
      valid: False for padding.
    """

    values: Float[Array, 'B S H Q']
    keys: Float[Array, 'B S H K'] | None
    position: Float[Array, 'B S']
    length: Int[Array, 'B']
    valid: Bool[Array, 'B S']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """The state that one decoder step passes to the next.

    Attributes:
      past: the mean position that the step attended to.
      step: number of the next step.
      hidden: state of the GRU, or None.
    """

    past: Float[Array, 'B H']
    step: Int[Array, '']
    hidden: Float[Array, 'B H D'] | None


@register(
    'monotonic_location',
    kind='mixer',
    card=Card(
        name='monotonic location attention',
        example="MonotonicLocation(64, 64, location='monoattn', rngs=rngs)",
        use_when=(
            'You copy or read long lists from left to right by a recurrent decoder; a '
            'measured claim about mixed attention is contrary.'
        ),
        promises=Promises(sweep_free=False, blockwise=False, needs_training=True),
    ),
)
class MonotonicLocation(nnx.Module):
    """Cross attention by location, content or both, one decoder step at a time.

    `a_j ~ exp(-(pos_j - mu_t)^2 / (2 sigma^2))` takes the place of softmax attention, for each
    head, with `pos_j = j / max(1, len - 1)`, `sigma = (relu(z . w_sigma) + 0.27) / len`, `z = W h_t
    + b`, and the `location_centre` mu_t of `r = z . w_rho`. Steps are counted in keys, so a step of
    one key stays one key at any length. With `content` as well, `a = m a_location + (1 - m)
    a_content`, `m = sigmoid(w_m . h_t + b_m)`. The values of a head are `W_v leaky_relu(W_e e +
    b_e)`, as wide as h_t, and W_o joins the weighted sums of all heads to a context of the same
    width. Initial weights are Xavier uniform, and initial biases are drawn from `U(-1/sqrt(inputs),
    1/sqrt(inputs))`. Differs from the paper: the first step starts at 0 and adds its step, as in
    the official code; 1e-20 is added to the sum of the weights for each valid key instead of each
    key, so that padding changes nothing.

    Args:
      query_dim, key_dim: widths of h_t and of the encodings.
      heads, head_dim: H, D.
      location: how mu_t moves, a kind of `location_centre`; None attends by content alone.
      content: how queries W_q h_t meet keys W_k e: 'plain', 'relative' (`relative_query`) or
        'rotary' (rotated by t and j); None attends by location alone.
      position_past: with location and content, the next step counts from the mean position of the
        weights by location alone.
      gru: replace z by `GRU(relu(z), z of the previous step)`; all heads share the cell and its
        trained initial state.

    Raises:
      ValueError: neither location nor content; `position_past` without both, or `gru` without
        location; an odd width for rotations.

    Reference: Ray Chowdhury, Caragea, arXiv 2305.20019; Dubois et al., arXiv 1911.03872, for
    'locattn'.

    Example:
      >>> attention = MonotonicLocation(8, 8, head_dim=4, location='onestep', rngs=nnx.Rngs(0))
      >>> memory = attention.remember(jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool))
      >>> context, weights, progress = attention(jnp.ones((2, 8)), memory, attention.start(2))
      >>> context.shape, weights.shape, int(progress.step)
      ((2, 8), (2, 1, 5), 1)
    """

    def __init__(
        self,
        query_dim: Size,
        key_dim: Size,
        *,
        heads: Size = 1,
        head_dim: Size = 128,
        location: Location | None = 'monoattn',
        content: Content | None = None,
        position_past: bool = False,
        gru: bool = False,
        rngs: nnx.Rngs,
    ):
        if location is None and content is None:
            kinds = f'location ({", ".join(GATES)}), content ({", ".join(get_args(Content))})'
            raise ValueError(f'monotonic_location attends by {kinds} or both, got neither')
        if position_past and (location is None or content is None):
            raise ValueError(
                'monotonic_location position_past chooses between two kinds of weights, so it '
                'needs location and content'
            )
        if gru and location is None:
            raise ValueError(
                'monotonic_location gru changes how the location moves, so it needs a location'
            )
        for name, number, turned in (
            ('query_dim', query_dim, 'relative'),
            ('head_dim', head_dim, 'rotary'),
        ):
            if content == turned and number % 2:
                raise ValueError(
                    f'monotonic_location: content {turned!r} rotates pairs of features, so {name} '
                    f'must be even, got {number}'
                )
        self.location, self.content, self.position_past = location, content, position_past
        self.heads, self.head_dim = heads, head_dim
        weights = lambda *shape: uniform(rngs, (6 / sum(shape)) ** 0.5, *shape)
        bias = lambda width: uniform(rngs, query_dim**-0.5, width)
        zeros = lambda *shape: nnx.Param(jnp.zeros(shape, jnp.float32))
        self.w_value = weights(key_dim, query_dim)
        self.b_value = uniform(rngs, key_dim**-0.5, query_dim)
        self.w_head = weights(query_dim, heads * query_dim)
        self.w_out = weights(heads * query_dim, query_dim)
        if location is not None:
            self.w_z, self.b_z = weights(query_dim, heads * head_dim), bias(heads * head_dim)
            gates = GATES[location]
            self.w_sigma = weights(heads, head_dim)
            self.w_rho = uniform(
                rngs, (6 / (gates * (heads + head_dim))) ** 0.5, heads, head_dim, gates
            )
        self.theta = nnx.Param(jnp.float32(20.0)) if location == 'monoattn' else None
        self.cell = GRU(head_dim, head_dim, rngs=rngs) if gru else None
        self.first = zeros(head_dim) if gru else None
        if content is not None:
            self.w_query = weights(query_dim, heads * head_dim)
            self.w_key = weights(key_dim, heads * head_dim)
        if content == 'relative':
            bound = (6 / (query_dim + heads * head_dim)) ** 0.5
            self.w_distance = uniform(rngs, bound, query_dim, heads, head_dim)
            self.u, self.v = zeros(heads, head_dim), zeros(heads, head_dim)
        if location is not None and content is not None:
            self.w_mix, self.b_mix = weights(query_dim, 1), bias(1)

    def _heads(self, a):
        return a.reshape(*a.shape[:-1], self.heads, -1)

    def remember(self, e: Float[Array, 'B S E'], valid: Bool[Array, 'B S']) -> Memory:
        """Prepares the encodings of a source for attention."""
        values = self._heads(
            jax.nn.leaky_relu(e @ self.w_value[...] + self.b_value[...]) @ self.w_head[...]
        )
        position, number, length = key_positions(valid)
        keys = None if self.content is None else self._heads(e @ self.w_key[...])
        if self.content == 'rotary':
            keys = rope(keys, number, layout='interleaved')
        if self.content == 'relative':
            code = sinusoidal_table(number, self.w_distance.shape[0])[:, :, None]
            keys = jnp.concatenate(
                [keys, jnp.broadcast_to(code, (*keys.shape[:3], code.shape[-1]))], axis=-1
            )
        return Memory(values, keys, position, length, valid)

    def start(self, batch: int, keys: int | None = None, key: Array | None = None) -> Progress:
        """The progress before the first step. Other attentions in the same place need the number
        of keys and a random key; this one reads neither.
        """
        shape = batch, self.heads
        hidden = (
            None
            if self.cell is None
            else jnp.broadcast_to(self.first[...], (*shape, self.head_dim))
        )
        return Progress(jnp.zeros(shape, jnp.float32), jnp.int32(0), hidden)

    def __call__(
        self, h: Float[Array, 'B Q'], memory: Memory, progress: Progress
    ) -> tuple[Float[Array, 'B Q'], Float[Array, 'B H S'], Progress]:
        """One step: the context, the weights, and the progress for the next step."""
        hidden, located, past_of = progress.hidden, None, None
        if self.location is not None:
            z = self._heads(h @ self.w_z[...] + self.b_z[...])
            if self.cell is not None:
                z = hidden = self.cell(hidden, jax.nn.relu(z))
            located = past_of = self._located(z, memory, progress)
        weights = located
        if self.content is not None:
            weights = content_weights(self._logits(h, memory, progress.step), memory.valid)
            if located is not None:
                share = jax.nn.sigmoid(h @ self.w_mix[...] + self.b_mix[...])[..., None]
                weights = share * located + (1 - share) * weights
        past = jnp.einsum('bhs,bs->bh', past_of if self.position_past else weights, memory.position)
        context = jnp.einsum('bhs,bshd->bhd', weights, memory.values)
        return (
            context.reshape(len(h), -1) @ self.w_out[...],
            weights,
            Progress(past, progress.step + 1, hidden),
        )

    def _located(self, z, memory, progress):
        sigma = (jax.nn.relu((z * self.w_sigma[...]).sum(-1)) + 0.27) / memory.length[:, None]
        r = jnp.einsum('bhd,hdg->bhg', z, self.w_rho[...])
        share = 1.0 if self.theta is None else jax.nn.sigmoid(self.theta[...])
        mu = location_centre(
            self.location, r, progress.past, memory.length, progress.step == 0, share
        )
        return location_weights(mu, sigma, memory.position, memory.valid)

    def _logits(self, h, memory, step):
        q = self._heads(h @ self.w_query[...])
        if self.content == 'relative':
            q = relative_query(q, self.w_distance[...], self.u[...], self.v[...], step)
        if self.content == 'rotary':
            q = rope(q[:, None], jnp.reshape(step, (1, 1)), layout='interleaved')[:, 0]
        return jnp.einsum('bhk,bshk->bhs', q, memory.keys) * self.head_dim**-0.5
