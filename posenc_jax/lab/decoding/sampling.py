"""Choosing the next token from its logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def keep_top_k(logits: Float[Array, '... V'], k: int) -> Float[Array, '... V']:
    """Sets logits below the k-th largest to -inf; logits equal to it stay."""
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, '... V'], p: float) -> Float[Array, '... V']:
    """Keeps the fewest tokens, most probable first, whose probabilities reach `p` (Holtzman et al.,
    arXiv 1904.09751).
    """
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    threshold = jnp.where(before < p, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits < threshold, -jnp.inf, logits)


def sample(
    logits: Float[Array, 'B V'],
    key: Array | None,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Int[Array, 'B']:
    """The next token: the most probable one at temperature 0, else drawn at random from the tokens
    that `top_k` and then `top_p` leave.
    """
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1)
    logits = logits / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return jax.random.categorical(key, logits, axis=-1)
