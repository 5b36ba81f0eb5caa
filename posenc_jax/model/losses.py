"""The loss of next-token prediction."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def target_losses(
    logits: Float[Array, 'B T V'], targets: Int[Array, 'B T']
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
    """Negative log-likelihood in nats and log-partition of every target, float32."""
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_partition - chosen, log_partition
