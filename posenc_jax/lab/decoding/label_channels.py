"""Double Sparsity's choice of keys: a few channels of queries and keys approximate the logits."""

import numbers

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.base.products import scaled_dot_product, weighted_sum
from posenc_jax.protocol.tables import known_range


def channel_scores(
    q: Float[Array, 'B T N H'], k: Float[Array, 'B T K H'], valid: Bool[Array, '#B T'] | None = None
) -> Float[Array, 'N H']:
    """`mean |q_c k_c|` over tokens for every channel c of a query head, in float32. Query and key
    are of the same token.

    Args:
      q, k: projected and encoded (rotated) queries and keys.
      valid: False for padding; None where there is none.
    """
    group = q.shape[2] // k.shape[2]
    products = jnp.abs(q.astype(jnp.float32) * jnp.repeat(k.astype(jnp.float32), group, axis=2))
    real = (
        jnp.ones(q.shape[:2], jnp.float32)
        if valid is None
        else jnp.broadcast_to(valid, q.shape[:2]).astype(jnp.float32)
    )
    return jnp.einsum('btnh,bt->nh', products, real) / jnp.maximum(real.sum(), 1.0)


def label_channels(scores: Float[Array, '... H'], groups: int = 16) -> Int[Array, '... r']:
    """The `r = H / groups` channels of the highest scores, in descending order of score. Among
    equal scores the channel with the lower number comes first.

    Raises:
      ValueError: groups do not divide the head width; the message gives the nearest divisor.
    """
    width = scores.shape[-1]
    if not isinstance(groups, numbers.Integral) or groups < 1 or width % groups:
        fitting = sorted(
            (n for n in range(1, width + 1) if width % n == 0), key=lambda n: (abs(n - groups), n)
        )
        raise ValueError(
            f'double_sparsity: groups must divide the head width {width}, got {groups}; nearest: '
            f'{fitting[0]}'
        )
    return jnp.argsort(-scores, axis=-1, stable=True)[..., : width // groups]


def key_labels(k: Float[Array, 'B K S H'], channels: Int[Array, 'N r']) -> Float[Array, 'B N S r']:
    """The label channels of every key for every query head.

    Raises:
      ValueError: channels (that are not traced) outside 0 .. H - 1, or a number of query heads N
        that is not a multiple of K.
    """
    low, high = known_range(channels, None) or (0, 0)
    if low < 0 or high >= k.shape[-1] or channels.shape[0] % k.shape[1]:
        found = f'{low} .. {high} for {channels.shape[0]} heads'
        raise ValueError(
            f'double_sparsity: expected channels 0 .. {k.shape[-1] - 1} of a multiple of '
            f'{k.shape[1]} heads, got {found}'
        )
    repeated = jnp.repeat(k, channels.shape[0] // k.shape[1], axis=1)
    return jnp.take_along_axis(repeated, channels[None, :, None], axis=-1)


def label_logits(
    q: Float[Array, 'B N T H'], labels: Float[Array, 'B N S r'], channels: Int[Array, 'N r']
) -> Float[Array, 'B N T S']:
    """The approximate logits `q_r . k_r / sqrt(r)`, float32."""
    return scaled_dot_product(jnp.take_along_axis(q, channels[None, :, None], axis=-1), labels)


def top_keys(
    s: Float[Array, 'B N T S'], seen: Bool[Array, '#B #N T S'], keep: int
) -> Bool[Array, 'B N T S']:
    """Whether a key is among the `keep` visible keys with the highest logits of a query. If a query
    sees fewer keys, all of them are chosen.

    Raises:
      ValueError: keep below 1.
    """
    check_keep(keep)
    chosen = jax.lax.top_k(jnp.where(seen, s, -jnp.inf), min(keep, s.shape[-1]))[1]
    return jnp.put_along_axis(jnp.zeros(s.shape, bool), chosen, True, axis=-1, inplace=False) & seen


def double_sparsity_attention(
    q: Float[Array, 'B N T H'],
    k: Float[Array, 'B K S H'],
    v: Float[Array, 'B K S H'],
    seen: Bool[Array, '#B #N T S'],
    channels: Int[Array, 'N r'],
    keep: int,
) -> Float[Array, 'B N T H']:
    """Exact attention over the `top_keys` that `label_logits` choose. It computes all pairs, and
    serves whole sequences and tests.
    """
    kept = top_keys(label_logits(q, key_labels(k, channels), channels), seen, keep)
    s = jnp.where(kept, scaled_dot_product(q, k), -1e30)
    weights = jnp.where(kept, jax.nn.softmax(s, axis=-1), 0.0)
    return weighted_sum(weights, v).astype(v.dtype)


def check_keep(keep):
    if not isinstance(keep, numbers.Integral) or keep < 1:
        raise ValueError(
            f'double_sparsity: a query needs at least 1 key, got keep={keep!r}; nearest: 1'
        )
