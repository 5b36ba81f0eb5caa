"""The losses of predictions: classes (tokens among them), values, and bits."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PEAK = 2.0  # of values, whose targets lie in [-1, 1]


def target_losses(
    logits: Float[Array, '*B V'], targets: Int[Array, '*B']
) -> tuple[Float[Array, '*B'], Float[Array, '*B']]:
    """Negative log-likelihood in nats and log-partition of every target, float32."""
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_partition - chosen, log_partition


def value_losses(
    values: Float[Array, '*B O'], targets: Float[Array, '*B O']
) -> tuple[Float[Array, '*B'], Float[Array, '*B']]:
    """Squared error of every target, the mean over its components; and zeros, since values have no
    log-partition.

    Example:
      >>> value_losses(jnp.array([[1.0, 3.0]]), jnp.zeros((1, 2)))[0].tolist()
      [5.0]
    """
    losses = jnp.square(values - targets).mean(axis=-1)
    return losses, jnp.zeros_like(losses)


def bit_losses(
    logits: Float[Array, '*B O'], targets: Float[Array, '*B O']
) -> tuple[Float[Array, '*B'], Float[Array, '*B']]:
    """Binary cross entropy in nats, the mean over the bits of a point; and zeros.

    Example:
      >>> bit_losses(jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]]))[0].round(4).tolist()
      [0.6931]
    """
    losses = (jax.nn.softplus(logits) - targets * logits).mean(axis=-1)
    return losses, jnp.zeros_like(losses)


LOSSES = {'value': value_losses, 'bits': bit_losses, 'class': target_losses}  # of fields


def wrong_bits(
    outputs: Float[Array, '*B'], targets: Float[Array, '*B'], whole: int = 0
) -> Float[Array, '*B']:
    """How many bits of every output are wrong.

    Args:
      outputs: logits of bits, or values.
      targets: bits, or values in [-1, 1].
      whole: bits of the whole numbers that values are rounded to; 0 for logits of single bits.

    Example:
      >>> wrong_bits(jnp.array([1.0, 0.99, -1.0]), jnp.ones(3), whole=8).tolist()
      [0.0, 1.0, 8.0]
    """
    if not whole:
        return ((outputs > 0) != (targets > 0.5)).astype(jnp.float32)
    largest = 2**whole - 1
    rounded = lambda a: jnp.clip(jnp.round((a + 1) / 2 * largest), 0, largest).astype(jnp.uint32)
    return jax.lax.population_count(rounded(outputs) ^ rounded(targets)).astype(jnp.float32)


def psnr(mean_square: float, peak: float = PEAK) -> float:
    """The ratio of peak and error in decibels, `10 log10(peak^2 / mean_square)`; infinite without
    an error.

    Example:
      >>> psnr(0.04), psnr(0.0)
      (20.0, inf)
    """
    return math.inf if mean_square <= 0 else 10 * math.log10(peak**2 / mean_square)
