"""The functions of location attention: the size of a step, the centre of attention, and the weights
of the keys by location and by content.

Reference: Ray Chowdhury, Caragea, arXiv 2305.20019; Dubois et al., arXiv 1911.03872, for 'locattn'.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.methods.rope import rope
from posenc_jax.protocol.errors import check_choice

Location = Literal[
    'onestep', 'relu', 'monoattn', 'softstair', 'free', 'locattn', 'locattn_s', 'locattn_sigmoid'
]
STEPS = ('onestep', 'relu', 'monoattn', 'softstair', 'free')
GATES = {**dict.fromkeys(STEPS, 1), 'locattn': 3, 'locattn_s': 2, 'locattn_sigmoid': 3}


def key_positions(
    valid: Bool[Array, 'B S'],
) -> tuple[Float[Array, 'B S'], Int[Array, 'B S'], Int[Array, 'B']]:
    """The position `j / max(1, len - 1)` of every key, its number j among the valid keys, and len,
    the number of valid keys.
    """
    number, length = jnp.cumsum(valid, axis=1) - 1, valid.sum(1)
    return number / jnp.maximum(1, length - 1)[:, None], number, length


def soft_stair(r: Float[Array, '...']) -> Float[Array, '...']:
    """`floor(r) + sigmoid(20 (r - floor(r) - 0.5))`: a smooth staircase with integer levels."""
    low = jnp.floor(r)
    return low + jax.nn.sigmoid(20 * (r - low - 0.5))


def step_size(
    kind: str, r: Float[Array, '...'], share: Float[Array, ''] | float = 1.0
) -> Float[Array, '...']:
    """The size of a step in keys: 'onestep' `sigmoid(5r)`, 'relu' `relu(r)`, 'monoattn' `s relu(r)
    + (1 - s) sigmoid(5r)`, 'softstair' `soft_stair(r)`, 'free' r; s is `share`.
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
    """mu_t, the centre of attention of step t: 0 is the first key and 1 the last.

    With d = max(1, len - 1), the kinds of `step_size` have `mu = step(r) / d + past`. 'locattn' is
    `softstair(r0) / d + sigmoid(r1) past + sigmoid(r2)`. 'locattn_s' is `softstair(r0) / d + past +
    [t = 0] sigmoid(r1)`. 'locattn_sigmoid' is 'locattn' with `sigmoid(5 r0)` for `softstair(r0)`.
    These three end in the leaky clamp `max(0.01 mu, min(mu, 1 + 0.01 mu))`.

    Args:
      r: the G = `GATES[kind]` projections of a step.
      past: the mean position that the previous step attended to.
      length: len, the number of valid keys.
      first: whether this is step 0.
      share: s of 'monoattn'.
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
    """`exp(-(pos_j - mu)^2 / (2 sigma^2))`, divided by its sum over the valid keys plus 1e-20 for
    each of them; 0 at other keys.

    If the centre is so far from all keys that every weight underflows in float32, all are 0.
    """
    apart = (position[:, None] - mu[..., None]) / sigma[..., None]
    logits = jnp.where(valid[:, None], -0.5 * apart * apart, -1e30)
    # The 1e-20 enters the softmax as one more logit: the quotient itself would have the gradient
    # 0 / 0 where all weights underflow.
    rest = jnp.log(1e-20 * jnp.maximum(valid.sum(-1), 1))[:, None, None]
    w = jax.nn.softmax(
        jnp.concatenate([logits, jnp.broadcast_to(rest, (*logits.shape[:2], 1))], axis=-1), axis=-1
    )
    return jnp.where(valid[:, None], w[..., :-1], 0.0)


def content_weights(
    logits: Float[Array, 'B H S'], valid: Bool[Array, 'B S']
) -> Float[Array, 'B H S']:
    """Softmax over the valid keys; 0 at other keys."""
    w = jax.nn.softmax(jnp.where(valid[:, None], logits.astype(jnp.float32), -1e30), axis=-1)
    return jnp.where(valid[:, None], w, 0.0)


def relative_query(
    q: Float[Array, 'B H D'],
    w: Float[Array, 'Q H D'],
    u: Float[Array, 'H D'],
    v: Float[Array, 'H D'],
    step: int | Int[Array, ''],
) -> Float[Array, 'B H D+Q']:
    """`[q + u ; (q + v) W rotated by -t]`, whose product with `[k_j ; R_j]` is `(q + u) . k_j +
    (q + v) . W R_{j-t}`.

    R_j holds sin and cos of j, interleaved, over Q features. Because the query is rotated, the keys
    stay the same at every step.
    """
    turned = rope(
        jnp.einsum('bhd,qhd->bhq', q + v, w)[:, None],
        jnp.reshape(-step, (1, 1)),
        layout='interleaved',
    )
    return jnp.concatenate([q + u, turned[:, 0]], axis=-1)
