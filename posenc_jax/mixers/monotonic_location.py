"""Location attention: cross attention of a decoder that steps along the source, whatever stands
there.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.core.registry import Card, Promises, check_choice, register
from posenc_jax.embedding.sinusoidal import sinusoidal_table
from posenc_jax.mixers.gru import GRU, uniform
from posenc_jax.rotation.rope import rope

Location = Literal[
    'onestep', 'relu', 'monoattn', 'softstair', 'free', 'locattn', 'locattn_s', 'locattn_sigmoid'
]
Content = Literal['plain', 'relative', 'rotary']
STEPS = ('onestep', 'relu', 'monoattn', 'softstair', 'free')
GATES = {**dict.fromkeys(STEPS, 1), 'locattn': 3, 'locattn_s': 2, 'locattn_sigmoid': 3}
CONTENTS = ('plain', 'relative', 'rotary')


def key_positions(
    valid: Bool[Array, 'B S'],
) -> tuple[Float[Array, 'B S'], Int[Array, 'B S'], Int[Array, 'B']]:
    """`j / max(1, len - 1)` of every key, its number j among the valid ones, and how many these
    are.

    Example:
      >>> position, number, length = key_positions(jnp.array([[True, True, True, False]]))
      >>> position[0, :3].tolist(), number[0, :3].tolist(), length.tolist()
      ([0.0, 0.5, 1.0], [0, 1, 2], [3])
    """
    number, length = jnp.cumsum(valid, axis=1) - 1, valid.sum(1)
    return number / jnp.maximum(1, length - 1)[:, None], number, length


def reverse_valid(e: Float[Array, 'B S E'], valid: Bool[Array, 'B S']) -> Float[Array, 'B S E']:
    """The rows of real keys, which are contiguous, from last to first; the others are zero where
    they are.

    Example:
      >>> reverse_valid(jnp.array([[[1.0], [2.0], [9.0]]]), jnp.array([[True, True, False]]))[
      ...     0, :, 0
      ... ].tolist()
      [2.0, 1.0, 0.0]
    """
    first, count, place = jnp.argmax(valid, axis=1), valid.sum(1), jnp.arange(valid.shape[1])
    mirrored = jnp.clip((2 * first + count - 1)[:, None] - place, 0, valid.shape[1] - 1)
    return jnp.where(valid[..., None], jnp.take_along_axis(e, mirrored[..., None], axis=1), 0)


def mix_directions(
    e: Float[Array, 'B S E'], valid: Bool[Array, 'B S'], gate: Float[Array, 'B']
) -> Float[Array, 'B S E']:
    """`g e + (1 - g) reverse(e)`, so that stepping forwards may read the source backwards.

    Example:
      >>> mix_directions(jnp.array([[[1.0], [2.0]]]), jnp.array([[True, True]]), jnp.array([0.75]))[
      ...     0, :, 0
      ... ].tolist()
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


def step_size(
    kind: str, r: Float[Array, '...'], share: Float[Array, ''] | float = 1.0
) -> Float[Array, '...']:
    """How many keys a step goes: 'onestep' `sigmoid(5r)`, 'relu' `relu(r)`, 'monoattn' `s relu(r) +
    (1 - s) sigmoid(5r)`, 'softstair' `soft_stair(r)`, 'free' r.

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

    A kind of `step_size`: `step(r) / max(1, len - 1) + past`. 'locattn': `softstair(r0) / max(1,
    len - 1) + sigmoid(r1) past + sigmoid(r2)`; 'locattn_s': `... + past + [t = 0] sigmoid(r1)`;
    'locattn_sigmoid': 'locattn' with `sigmoid(5 r0)`. The last three end in the leaky clamp
    `max(0.01 mu, min(mu, 1 + 0.01 mu))`.

    Args:
      r: the G = `GATES[kind]` projections of a step.
      past: where the step before attended on average.
      length: valid keys.
      first: whether this is step 0.
      share: s of 'monoattn'.

    Example:
      >>> location_centre(
      ...     'onestep', jnp.full((1, 1, 1), 99.0), jnp.full((1, 1), 0.25), jnp.array([5]), False
      ... ).tolist()
      [[0.5]]
    """
    check_choice('location of monotonic_location', kind, tuple(GATES))
    spacing = 1 / jnp.maximum(1, length - 1)[:, None]
    if kind in STEPS:
        return step_size(kind, r[..., 0], share) * spacing + past
    moved = (
        jax.nn.sigmoid(5 * r[..., 0]) if kind == 'locattn_sigmoid' else soft_stair(r[..., 0])
    ) * spacing
    if kind == 'locattn_s':
        mu = moved + past + jnp.where(first, jax.nn.sigmoid(r[..., 1]), 0.0)
    else:
        mu = moved + jax.nn.sigmoid(r[..., 1]) * past + jax.nn.sigmoid(r[..., 2])
    return jnp.maximum(0.01 * mu, jnp.minimum(mu, 1 + 0.01 * mu))


def location_weights(
    mu: Float[Array, 'B H'],
    sigma: Float[Array, 'B H'],
    position: Float[Array, 'B S'],
    valid: Bool[Array, 'B S'],
) -> Float[Array, 'B H S']:
    """`exp(-(pos_j - mu)^2 / (2 sigma^2))` over its sum, to which 1e-20 is added per valid key; 0
    for the others.

    Where the centre is so far from all keys that every weight is lost in float32, all are 0.

    Example:
      >>> weights = location_weights(
      ...     jnp.zeros((1, 1)),
      ...     jnp.full((1, 1), 0.5),
      ...     jnp.array([[0.0, 1.0]]),
      ...     jnp.ones((1, 2), bool),
      ... )
      >>> weights.round(3).tolist()
      [[[0.881, 0.119]]]
    """
    apart = (position[:, None] - mu[..., None]) / sigma[..., None]
    logits = jnp.where(valid[:, None], -0.5 * apart * apart, -1e30)
    # The 1e-20 as one more logit: the quotient itself has gradients of 0 / 0 where all weights are
    # lost.
    rest = jnp.log(1e-20 * jnp.maximum(valid.sum(-1), 1))[:, None, None]
    w = jax.nn.softmax(
        jnp.concatenate([logits, jnp.broadcast_to(rest, (*logits.shape[:2], 1))], axis=-1), axis=-1
    )
    return jnp.where(valid[:, None], w[..., :-1], 0.0)


def content_weights(
    logits: Float[Array, 'B H S'], valid: Bool[Array, 'B S']
) -> Float[Array, 'B H S']:
    """Softmax over the valid keys; 0 for the others.

    Example:
      >>> content_weights(jnp.zeros((1, 1, 3)), jnp.array([[True, True, False]])).tolist()
      [[[0.5, 0.5, 0.0]]]
    """
    w = jax.nn.softmax(jnp.where(valid[:, None], logits.astype(jnp.float32), -1e30), axis=-1)
    return jnp.where(valid[:, None], w, 0.0)


def relative_query(
    q: Float[Array, 'B H D'],
    w: Float[Array, 'Q H D'],
    u: Float[Array, 'H D'],
    v: Float[Array, 'H D'],
    step: Int[Array, ''],
) -> Float[Array, 'B H D+Q']:
    """`[q + u ; (q + v) W turned back by t]`, whose product with `[k_j ; R_j]` is `(q + u) . k_j +
    (q + v) . W R_{j-t}`.

    R_j holds sin and cos of j, interleaved, over Q features. Turning the query leaves the keys as
    they are from step to step.

    Example:
      >>> one = jnp.ones((1, 1, 1))
      >>> asked = relative_query(one, jnp.ones((2, 1, 1)), 0 * one[0], 2 * one[0], 1)
      >>> at = lambda j: jnp.array([5.0, jnp.sin(j), jnp.cos(j)])
      >>> (
      ...     (asked @ at(1.0)).item(),
      ...     round((asked @ at(3.0)).item(), 3),
      ...     round(5 + 3 * float(jnp.sin(2.0) + jnp.cos(2.0)), 3),
      ... )
      (8.0, 6.479, 6.479)
    """
    turned = rope(
        jnp.einsum('bhd,qhd->bhq', q + v, w)[:, None],
        jnp.reshape(-step, (1, 1)),
        layout='interleaved',
    )
    return jnp.concatenate([q + u, turned[:, 0]], axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What cross attention keeps of a source: nothing in it changes from step to step.

    Attributes:
      values: what is summed; keys: for content, with what it takes of their number, or None.
      position, length, valid: of the keys, see `key_positions`.
    """

    values: Float[Array, 'B S H Q']
    keys: Float[Array, 'B S H K'] | None
    position: Float[Array, 'B S']
    length: Int[Array, 'B']
    valid: Bool[Array, 'B S']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """What one decoder step leaves for the next: where it attended, the number of the next step,
    the state of the GRU.
    """

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
        equation='a_j ~ exp(-(pos_j - mu_t)^2 / (2 sigma_t^2)), mu_t = step(r_t) / (len - 1) + '
        'sum_j a_(t-1)j pos_j',
        source='JRC1995/MonotonicLocationAttention',
        authors='Ray Chowdhury, Jishnu and Caragea, Cornelia',
        year=2023,
        example="MonotonicLocation(64, 64, location='monoattn', rngs=rngs)",
        promises=Promises(sweep_free=False, blockwise=False, needs_training=True),
    ),
)
class MonotonicLocation(nnx.Module):
    """Cross attention by location, by content or both, one decoder step at a time; it takes the
    place of softmax attention.

    `a_j ~ exp(-(pos_j - mu_t)^2 / (2 sigma^2))`, `pos_j = j / max(1, len - 1)`, `sigma = (relu(z .
    w_sigma) + 0.27) / len`, mu_t from `location_centre` with `r = z . w_rho`, `z = W h_t + b` per
    head. A step is counted in keys, so one key per step stays one key per step at any length. With
    `content` as well, `a = m a_location + (1 - m) a_content`, `m = sigmoid(w_m . h_t + b_m)`. What
    is summed is `W_v leaky_relu(W_e e + b_e)` per head, as wide as h_t; W_o joins the heads to a
    context of that width. Weights are drawn after Xavier, biases from `U(-1/sqrt(inputs),
    1/sqrt(inputs))`. Differs from the paper: the first step starts at 0 and adds its step, as in
    the code; the 1e-20 is added per valid key, so that padding changes nothing.

    Args:
      query_dim, key_dim: widths of h_t and of the encodings.
      heads, head_dim: H, D.
      location: how mu moves; None attends by content alone.
      content: queries W_q h_t and keys W_k e per head, 'plain', 'relative' (`relative_query`) or
        'rotary' (both turned, by t and j); None for location alone.
      position_past: with both, the next step counts from where location alone attended.
      gru: z passes `GRU(relu(z), z before)`, one cell and one trained initial state for all heads.
      rngs: draws the parameters.

    Raises:
      ValueError: neither location nor content, unknown names, `position_past` or `gru` without what
        they change, an odd width that is to be turned.

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
        for name, number in dict(
            query_dim=query_dim, key_dim=key_dim, heads=heads, head_dim=head_dim
        ).items():
            if number < 1:
                raise ValueError(f'monotonic_location: {name} must be at least 1, got {number}')
        if location is None and content is None:
            kinds = f'location ({", ".join(GATES)}), content ({", ".join(CONTENTS)})'
            raise ValueError(f'monotonic_location attends by {kinds} or both, got neither')
        if location is not None:
            check_choice('location of monotonic_location', location, tuple(GATES))
        if content is not None:
            check_choice('content of monotonic_location', content, CONTENTS)
        if position_past and (location is None or content is None):
            raise ValueError(
                'monotonic_location position_past chooses between two weights: it needs location '
                'and content'
            )
        if gru and location is None:
            raise ValueError(
                'monotonic_location gru changes how location moves: it needs a location'
            )
        for name, number, turned in (
            ('query_dim', query_dim, 'relative'),
            ('head_dim', head_dim, 'rotary'),
        ):
            if content == turned and number % 2:
                raise ValueError(
                    f'monotonic_location: content {turned} turns pairs: {name} must be even, got '
                    f'{number}'
                )
        self.location, self.content, self.position_past = location, content, position_past
        self.heads, self.head_dim = heads, head_dim
        weights = lambda *shape: uniform(rngs, (6 / sum(shape)) ** 0.5, *shape)
        bias = lambda width: uniform(rngs, query_dim**-0.5, width)
        zeros = lambda *shape: nnx.Param(jnp.zeros(shape, jnp.float32))
        self.w_value, self.b_value = (
            weights(key_dim, query_dim),
            uniform(rngs, key_dim**-0.5, query_dim),
        )
        self.w_head, self.w_out = (
            weights(query_dim, heads * query_dim),
            weights(heads * query_dim, query_dim),
        )
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
            self.w_query, self.w_key = (
                weights(query_dim, heads * head_dim),
                weights(key_dim, heads * head_dim),
            )
        if content == 'relative':
            bound = (6 / (query_dim + heads * head_dim)) ** 0.5
            self.w_distance = uniform(rngs, bound, query_dim, heads, head_dim)
            self.u, self.v = zeros(heads, head_dim), zeros(heads, head_dim)
        if location is not None and content is not None:
            self.w_mix, self.b_mix = weights(query_dim, 1), bias(1)

    def _heads(self, a):
        return a.reshape(*a.shape[:-1], self.heads, -1)

    def remember(self, e: Float[Array, 'B S E'], valid: Bool[Array, 'B S']) -> Memory:
        """What is kept of the encodings of a source."""
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

    def start(self, batch: int) -> Progress:
        """Before the first step."""
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
