"""The weights of attention types for recurrent decoders: penalised, monotonic and chunkwise.

Reference: Michael, Labahn, Grüning, Zöllner, arXiv 1903.07377, which compares them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_MASKED = -1e30


def additive_energy(
    query: Float[Array, 'B A'], keys: Float[Array, 'B S A'], w: Float[Array, 'A']
) -> Float[Array, 'B S']:
    """`e_j = w . tanh(query + key_j)`."""
    return jnp.tanh(query[:, None] + keys) @ w


def location_features(
    past: Float[Array, 'B S'], filters: Float[Array, 'taps F']
) -> Float[Array, 'B S F']:
    """The weights of the last step, convolved over the keys: the filter is centred on its key, and
    there is nothing beyond the ends.
    """
    return jax.lax.conv_general_dilated(
        past[..., None],
        filters[:, None],
        (1,),
        'SAME',
        dimension_numbers=('NWC', 'WIO', 'NWC'),
        precision=jax.lax.Precision.HIGHEST,
    )


def penalised_weights(
    e: Float[Array, 'B S'],
    total: Float[Array, 'B S'],
    first: Bool[Array, ''] | bool,
    valid: Bool[Array, 'B S'],
) -> tuple[Float[Array, 'B S'], Float[Array, 'B S']]:
    """Softmax of energies that are penalised by those of all earlier steps.

    `e'_tj = exp(e_tj)` at step 0 and `exp(e_tj) / sum_{s<t} exp(e_sj)` later; the weights are e'
    divided by their sum. All of it is computed with logarithms, so no exponential overflows.

    Args:
      e: energies of this step.
      total: `log sum_{s<t} exp(e_sj)`; not read at step 0.
      first: whether this is step 0.
      valid: False for padding, whose weight is 0.

    Returns:
      The weights, and the `total` of the next step.
    """
    logits = jnp.where(first, e, e - total)
    weights = jax.nn.softmax(jnp.where(valid, logits, _MASKED), axis=-1)
    return jnp.where(valid, weights, 0), jnp.where(first, e, jnp.logaddexp(total, e))


def first_key(valid: Bool[Array, 'B S']) -> Float[Array, 'B S']:
    """Where monotonic attention stands before step 0: all weight on the first valid key."""
    return jax.nn.one_hot(jnp.argmax(valid, axis=1), valid.shape[1])


def monotonic_weights(
    p: Float[Array, 'B S'], past: Float[Array, 'B S'], valid: Bool[Array, 'B S']
) -> Float[Array, 'B S']:
    """How likely it is that a walk, which begins where the last step stopped, stops at each key.

    `alpha_tj = p_tj sum_{k<=j} alpha_(t-1)k prod_{l=k..j-1} (1 - p_tl)`. The weights may sum to
    less than 1: the rest has walked beyond the last key. The sum is a linear recurrence,
    `q_j = (1 - p_(j-1)) q_(j-1) + alpha_(t-1)j`, evaluated in O(log S) steps without a division.

    Args:
      p: probability of stopping at each key.
      past: the weights of the last step, `first_key` before step 0.
      valid: False for padding, whose weight is 0.
    """
    walks_on = jnp.pad(1 - p, ((0, 0), (1, 0)))[:, :-1]

    def join(one, other):
        return one[0] * other[0], one[1] * other[0] + other[1]

    _, arrives = jax.lax.associative_scan(join, (walks_on, past), axis=1)
    return jnp.where(valid, p * arrives, 0)


def chunk_weights(
    stops: Float[Array, 'B S'], u: Float[Array, 'B S'], valid: Bool[Array, 'B S'], width: int
) -> Float[Array, 'B S']:
    """Softmax of u over the last `width` keys up to each stop, weighted by the stops.

    `beta_j = sum_{k=j..j+w-1} alpha_k exp(u_j) / sum_{l=k-w+1..k} exp(u_l)`. O(S w) time and
    memory.

    Args:
      stops: alpha, the weights of `monotonic_weights`.
      u: energies within a chunk.
      valid: False for padding, which is in no chunk.
      width: w, keys in a chunk; a chunk at the start has fewer.
    """
    keys, first = u.shape[1], width - 1  # of the keys, behind a padding
    before = jnp.pad(jnp.where(valid, u, _MASKED), ((0, 0), (first, 0)), constant_values=_MASKED)
    at = jnp.arange(keys)[:, None] + jnp.arange(width)  # the keys of the chunk of each stop
    shares = jax.nn.softmax(before[:, at], axis=-1) * stops[..., None]
    weights = jnp.zeros_like(before).at[:, at].add(shares)[:, first:]
    return jnp.where(valid, weights, 0)
