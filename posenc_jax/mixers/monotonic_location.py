"""Location attention: cross attention of a decoder that steps along the source, whatever stands there."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.core.numerics import phase
from posenc_jax.core.registry import Card, Promises, check_choice, register
from posenc_jax.embedding.sinusoidal import sinusoidal_frequencies

Location = Literal['onestep', 'relu', 'monoattn', 'softstair', 'free', 'locattn', 'locattn_s', 'locattn_sigmoid']
Content = Literal['plain', 'relative']
STEPS = ('onestep', 'relu', 'monoattn', 'softstair', 'free')
GATES = {**dict.fromkeys(STEPS, 1), 'locattn': 3, 'locattn_s': 2, 'locattn_sigmoid': 3}
CONTENTS = ('plain', 'relative')


def key_positions(valid: Bool[Array, 'B S']) -> tuple[Float[Array, 'B S'], Int[Array, 'B S'], Int[Array, 'B']]:
    """`j / max(1, len - 1)` of every key, its number j among the valid ones, and how many these are.

    Example:
      >>> position, number, length = key_positions(jnp.array([[True, True, True, False]]))
      >>> position[0, :3].tolist(), number[0, :3].tolist(), length.tolist()
      ([0.0, 0.5, 1.0], [0, 1, 2], [3])
    """
    number, length = jnp.cumsum(valid, axis=1) - 1, valid.sum(1)
    return number / jnp.maximum(1, length - 1)[:, None], number, length


def reverse_valid(e: Float[Array, 'B S E'], valid: Bool[Array, 'B S']) -> Float[Array, 'B S E']:
    """The rows of real keys, which are contiguous, from last to first; the others are zero where they are.

    Example:
      >>> reverse_valid(jnp.array([[[1.0], [2.0], [9.0]]]), jnp.array([[True, True, False]]))[0, :, 0].tolist()
      [2.0, 1.0, 0.0]
    """
    first, count, place = jnp.argmax(valid, axis=1), valid.sum(1), jnp.arange(valid.shape[1])
    mirrored = jnp.clip((2 * first + count - 1)[:, None] - place, 0, valid.shape[1] - 1)
    return jnp.where(valid[..., None], jnp.take_along_axis(e, mirrored[..., None], axis=1), 0)


def mix_directions(e: Float[Array, 'B S E'], valid: Bool[Array, 'B S'], gate: Float[Array, 'B']) -> Float[Array, 'B S E']:
    """`g e + (1 - g) reverse(e)`, so that stepping forwards may read the source backwards.

    Example:
      >>> mix_directions(jnp.array([[[1.0], [2.0]]]), jnp.array([[True, True]]), jnp.array([0.75]))[0, :, 0].tolist()
      [1.25, 1.75]
    """
    gate = gate[:, None, None]
    return gate * jnp.where(valid[..., None], e, 0) + (1 - gate) * reverse_valid(e, valid)


def soft_stair(r: Float[Array, '...']) -> Float[Array, '...']:
    """`floor(r) + sigmoid(20 (r - floor(r) - 0.5))`: near whole numbers nearly everywhere.

    Example:
      >>> soft_stair(jnp.array([0.5, -0.3, 2.2])).round(3).tolist()
      [0.5, -0.018, 2.002]
    """
    low = jnp.floor(r)
    return low + jax.nn.sigmoid(20 * (r - low - 0.5))


def step_size(kind: str, r: Float[Array, '...'], share: Float[Array, ''] | float = 1.0) -> Float[Array, '...']:
    """How many keys a step goes: 'onestep' `sigmoid(5r)`, 'relu' `relu(r)`, 'monoattn' `s relu(r) + (1 - s) sigmoid(5r)`,
    'softstair' `soft_stair(r)`, 'free' r.

    Example:
      >>> [round(float(step_size(kind, jnp.float32(0.4), 0.5)), 3) for kind in STEPS]
      [0.881, 0.4, 0.64, 0.119, 0.4]
    """
    check_choice('a step of monotonic_location', kind, STEPS)
    if kind == 'onestep':
        return jax.nn.sigmoid(5 * r)
    if kind == 'relu':
        return jax.nn.relu(r)
    if kind == 'monoattn':
        return share * jax.nn.relu(r) + (1 - share) * jax.nn.sigmoid(5 * r)
    return soft_stair(r) if kind == 'softstair' else r


def location_centre(
    kind: Location,
    r: Float[Array, 'B H G'],
    past: Float[Array, 'B H'],
    length: Int[Array, 'B'],
    first: Bool[Array, ''] | bool,
    share: Float[Array, ''] | float = 1.0,
) -> Float[Array, 'B H']:
    """mu_t: where a step attends, 0 the first key and 1 the last.

    A kind of `step_size`: `step(r) / max(1, len - 1) + past`. 'locattn': `softstair(r0) / max(1, len - 1) + sigmoid(r1) past
    + sigmoid(r2)`; 'locattn_s': `... + past + [t = 0] sigmoid(r1)`; 'locattn_sigmoid': 'locattn' with `sigmoid(5 r0)`. The last
    three end in the leaky clamp `max(0.01 mu, min(mu, 1 + 0.01 mu))`.

    Args:
      r: the G = `GATES[kind]` projections of a step.
      past: where the step before attended on average.
      length: valid keys.
      first: whether this is step 0.
      share: s of 'monoattn'.

    Example:
      >>> location_centre('onestep', jnp.full((1, 1, 1), 99.0), jnp.full((1, 1), 0.25), jnp.array([5]), False).tolist()
      [[0.5]]
    """
    check_choice('location of monotonic_location', kind, tuple(GATES))
    spacing = 1 / jnp.maximum(1, length - 1)[:, None]
    if kind in STEPS:
        return step_size(kind, r[..., 0], share) * spacing + past
    moved = (jax.nn.sigmoid(5 * r[..., 0]) if kind == 'locattn_sigmoid' else soft_stair(r[..., 0])) * spacing
    if kind == 'locattn_s':
        mu = moved + past + jnp.where(first, jax.nn.sigmoid(r[..., 1]), 0.0)
    else:
        mu = moved + jax.nn.sigmoid(r[..., 1]) * past + jax.nn.sigmoid(r[..., 2])
    return jnp.maximum(0.01 * mu, jnp.minimum(mu, 1 + 0.01 * mu))


def location_weights(
    mu: Float[Array, 'B H'], sigma: Float[Array, 'B H'], position: Float[Array, 'B S'], valid: Bool[Array, 'B S']
) -> Float[Array, 'B H S']:
    """`exp(-(pos_j - mu)^2 / (2 sigma^2))` over its sum, to which 1e-20 is added per valid key; 0 for the others.

    Where the centre is so far from all keys that every weight is lost in float32, all are 0.

    Example:
      >>> weights = location_weights(jnp.zeros((1, 1)), jnp.full((1, 1), 0.5), jnp.array([[0.0, 1.0]]), jnp.ones((1, 2), bool))
      >>> weights.round(3).tolist()
      [[[0.881, 0.119]]]
    """
    apart = (position[:, None] - mu[..., None]) / sigma[..., None]
    logits = jnp.where(valid[:, None], -0.5 * apart * apart, -1e30)
    # The 1e-20 as one more logit: the quotient itself has gradients of 0 / 0 where all weights are lost.
    rest = jnp.log(1e-20 * jnp.maximum(valid.sum(-1), 1))[:, None, None]
    w = jax.nn.softmax(jnp.concatenate([logits, jnp.broadcast_to(rest, (*logits.shape[:2], 1))], axis=-1), axis=-1)
    return jnp.where(valid[:, None], w[..., :-1], 0.0)


def content_weights(logits: Float[Array, 'B H S'], valid: Bool[Array, 'B S']) -> Float[Array, 'B H S']:
    """Softmax over the valid keys; 0 for the others.

    Example:
      >>> content_weights(jnp.zeros((1, 1, 3)), jnp.array([[True, True, False]])).tolist()
      [[[0.5, 0.5, 0.0]]]
    """
    w = jax.nn.softmax(jnp.where(valid[:, None], logits.astype(jnp.float32), -1e30), axis=-1)
    return jnp.where(valid[:, None], w, 0.0)


def relative_logits(
    q: Float[Array, 'B H D'],
    k: Float[Array, 'B S H D'],
    r: Float[Array, 'B S H D'],
    u: Float[Array, 'H D'],
    v: Float[Array, 'H D'],
) -> Float[Array, 'B H S']:
    """`[(q_t + u) . k_j + (q_t + v) . r_{j-t}] / sqrt(D)`, r the projected code of the distance.

    Example:
      >>> one = jnp.ones((1, 1, 1, 1)); relative_logits(one[0], 2 * one, 3 * one, jnp.zeros((1, 1)), jnp.ones((1, 1))).item()
      8.0
    """
    logits = jnp.einsum('bhd,bshd->bhs', q + u, k) + jnp.einsum('bhd,bshd->bhs', q + v, r)
    return logits * q.shape[-1] ** -0.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What cross attention keeps of a source: nothing in it changes from step to step.

    Attributes:
      values: what is summed; keys: for content, or None.
      position, number, length, valid: of the keys, see `key_positions`.
    """

    values: Float[Array, 'B S H D']
    keys: Float[Array, 'B S H D'] | None
    position: Float[Array, 'B S']
    number: Int[Array, 'B S']
    length: Int[Array, 'B']
    valid: Bool[Array, 'B S']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """What one decoder step leaves for the next: where it attended, the number of the next step, the state of the GRU."""

    past: Float[Array, 'B H']
    step: Int[Array, '']
    hidden: Float[Array, 'B H D'] | None


@register(
    'monotonic_location',
    kind='mixer',
    card=Card(
        name='monotonic location attention',
        title='Monotonic Location Attention for Length Generalization',
        arxiv='2305.20019',
        door='none',
        equation='a_j ~ exp(-(pos_j - mu_t)^2 / (2 sigma_t^2)), mu_t = step(r_t) / (len - 1) + sum_j a_(t-1)j pos_j',
        source='JRC1995/MonotonicLocationAttention',
        authors='Ray Chowdhury, Jishnu and Caragea, Cornelia',
        year=2023,
        example="MonotonicLocation(64, 64, location='monoattn', rngs=rngs)",
        promises=Promises(sweep_free=False, blockwise=False, needs_training=True),
    ),
)
class MonotonicLocation(nnx.Module):
    """Cross attention by location, by content or both, one decoder step at a time; it takes the place of softmax attention.

    `a_j ~ exp(-(pos_j - mu_t)^2 / (2 sigma^2))`, `pos_j = j / max(1, len - 1)`, `sigma = (relu(z . w_sigma) + 0.27) / len`,
    mu_t from `location_centre` with `r = z . w_rho`, `z = W h_t + b` per head. A step is counted in keys, so one key per
    step stays one key per step at any length. With `content` as well, `a = m a_location + (1 - m) a_content`,
    `m = sigmoid(w_m . h_t + b_m)`. Differs from the paper: the first step starts at 0 and adds its step, as in the code; the
    1e-20 is added per valid key, so that padding changes nothing; content has projections W_q and W_k per head.

    Args:
      query_dim, key_dim: widths of h_t and of the encodings.
      heads, head_dim: H, D.
      location: how mu moves; None attends by content alone.
      content: 'plain', 'relative' (`relative_logits`), or None for location alone.
      position_past: with both, the next step counts from where location alone attended.
      gru: z passes `GRUCell(relu(z), z before)`, one cell and one trained initial state for all heads.
      rngs: draws the parameters.

    Raises:
      ValueError: neither location nor content, unknown names, `position_past` or `gru` without what they change.

    Reference: Ray Chowdhury, Caragea, arXiv 2305.20019; Dubois et al., arXiv 1911.03872, for 'locattn'.

    Example:
      >>> attention = MonotonicLocation(8, 8, head_dim=4, location='onestep', rngs=nnx.Rngs(0))
      >>> memory = attention.remember(jnp.ones((2, 5, 8)), jnp.ones((2, 5), bool))
      >>> context, weights, progress = attention(jnp.ones((2, 8)), memory, attention.start(2))
      >>> context.shape, weights.shape, int(progress.step)
      ((2, 4), (2, 1, 5), 1)
    """

    def __init__(
        self,
        query_dim: int,
        key_dim: int,
        *,
        heads: int = 1,
        head_dim: int = 128,
        location: Location | None = 'monoattn',
        content: Content | None = None,
        position_past: bool = False,
        gru: bool = False,
        rngs: nnx.Rngs,
    ):
        for name, number in dict(query_dim=query_dim, key_dim=key_dim, heads=heads, head_dim=head_dim).items():
            if number < 1:
                raise ValueError(f'monotonic_location: {name} must be at least 1, got {number}')
        if location is None and content is None:
            kinds = f"location ({', '.join(GATES)}), content ('plain', 'relative')"
            raise ValueError(f'monotonic_location attends by {kinds} or both, got neither')
        if location is not None:
            check_choice('location of monotonic_location', location, tuple(GATES))
        if content is not None:
            check_choice('content of monotonic_location', content, CONTENTS)
        if position_past and (location is None or content is None):
            raise ValueError('monotonic_location position_past chooses between two weights: it needs location and content')
        if gru and location is None:
            raise ValueError('monotonic_location gru changes how location moves: it needs a location')
        self.location, self.content, self.position_past = location, content, position_past
        self.heads, self.head_dim = heads, head_dim
        draw = nnx.initializers.xavier_uniform()
        weights = lambda *shape: nnx.Param(draw(rngs.params(), shape, jnp.float32))
        zeros = lambda *shape: nnx.Param(jnp.zeros(shape, jnp.float32))
        self.w_value = weights(key_dim, heads * head_dim)
        if location is not None:
            self.w_z, self.b_z = weights(query_dim, heads * head_dim), zeros(heads * head_dim)
            self.w_sigma, self.w_rho = weights(heads, head_dim), weights(heads, head_dim, GATES[location])
        self.theta = nnx.Param(jnp.float32(20.0)) if location == 'monoattn' else None
        self.cell = nnx.GRUCell(head_dim, head_dim, rngs=rngs) if gru else None
        self.first = zeros(head_dim) if gru else None
        if content is not None:
            self.w_query, self.w_key = weights(query_dim, heads * head_dim), weights(key_dim, heads * head_dim)
        if content == 'relative':
            self.w_distance = weights(query_dim, heads * head_dim)
            self.u, self.v = zeros(heads, head_dim), zeros(heads, head_dim)
        if location is not None and content is not None:
            self.w_mix, self.b_mix = weights(query_dim, 1), zeros(1)

    def _heads(self, a):
        return a.reshape(*a.shape[:-1], self.heads, self.head_dim)

    def remember(self, e: Float[Array, 'B S E'], valid: Bool[Array, 'B S']) -> Memory:
        """What is kept of the encodings of a source; values are `leaky_relu(W_value e)`."""
        values = self._heads(jax.nn.leaky_relu(e @ self.w_value[...]))
        keys = None if self.content is None else self._heads(e @ self.w_key[...])
        return Memory(values, keys, *key_positions(valid), valid)

    def start(self, batch: int) -> Progress:
        """Before the first step."""
        shape = batch, self.heads
        hidden = None if self.cell is None else jnp.broadcast_to(self.first[...], (*shape, self.head_dim))
        return Progress(jnp.zeros(shape, jnp.float32), jnp.int32(0), hidden)

    def __call__(
        self, h: Float[Array, 'B Q'], memory: Memory, progress: Progress
    ) -> tuple[Float[Array, 'B HD'], Float[Array, 'B H S'], Progress]:
        """One step: the context, the weights, and the progress for the next step."""
        hidden, located, past_of = progress.hidden, None, None
        if self.location is not None:
            z = self._heads(h @ self.w_z[...] + self.b_z[...])
            if self.cell is not None:
                z = hidden = self.cell(hidden, jax.nn.relu(z))[0]
            located = past_of = self._located(z, memory, progress)
        weights = located
        if self.content is not None:
            weights = content_weights(self._logits(h, memory, progress.step), memory.valid)
            if located is not None:
                share = jax.nn.sigmoid(h @ self.w_mix[...] + self.b_mix[...])[..., None]
                weights = share * located + (1 - share) * weights
        past = jnp.einsum('bhs,bs->bh', past_of if self.position_past else weights, memory.position)
        context = jnp.einsum('bhs,bshd->bhd', weights, memory.values)
        return context.reshape(len(h), -1), weights, Progress(past, progress.step + 1, hidden)

    def _located(self, z, memory, progress):
        sigma = (jax.nn.relu((z * self.w_sigma[...]).sum(-1)) + 0.27) / memory.length[:, None]
        r = jnp.einsum('bhd,hdg->bhg', z, self.w_rho[...])
        share = 1.0 if self.theta is None else jax.nn.sigmoid(self.theta[...])
        mu = location_centre(self.location, r, progress.past, memory.length, progress.step == 0, share)
        return location_weights(mu, sigma, memory.position, memory.valid)

    def _logits(self, h, memory, step):
        q = self._heads(h @ self.w_query[...])
        if self.content == 'plain':
            return jnp.einsum('bhd,bshd->bhs', q, memory.keys) * self.head_dim**-0.5
        width = self.w_distance.shape[0]
        angle = phase(memory.number - step, sinusoidal_frequencies(width // 2))
        code = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*angle.shape[:2], -1)
        code = jnp.pad(code, ((0, 0), (0, 0), (0, width % 2)))
        return relative_logits(q, memory.keys, self._heads(code @ self.w_distance[...]), self.u[...], self.v[...])
