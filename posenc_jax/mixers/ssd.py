"""State-space duality: one recurrence as a scan over tokens, and as matrix products over chunks.

`S_t = a_t S_{t-1} + B_t (dt_t u_t)^T`, `y_t = S_t^T C_t`, with `a_t = exp(A dt_t)`, for each head.
Both functions take `rate = A dt`, the logarithm of a_t, and `u = dt u`, so that the same code
serves any step and any decay.

Reference: Dao, Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through
Structured State Space Duality", arXiv 2405.21060.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from posenc_jax.base.double import Double


def ssd_scan(
    u: Float[Array, 'B T H P'],
    rate: Float[Array, 'B T H'],
    b: Float[Array, 'B T H N'],
    c: Float[Array, 'B T H N'],
    starts: Bool[Array, 'B T'],
    state: Float[Array, 'B H N P'],
) -> tuple[Float[Array, 'B T H P'], Float[Array, 'B H N P']]:
    """The recurrence, token by token, in float32.

    Args:
      u: inputs times their step, `dt u`; zero leaves the state as it is, apart from its decay.
      rate: logarithm of the decay, at most 0; zero keeps the state.
      b, c: what writes to the state and what reads it.
      starts: True at the first token of a document, before which the state is forgotten.
      state: S before the first token.

    Returns:
      y, and S behind the last token.
    """

    def step(state, token):
        u, rate, b, c, starts = token
        decay = jnp.where(starts[:, None], 0, jnp.exp(rate))[..., None, None]
        state = decay * state + b[..., :, None] * u[..., None, :]
        return state, jnp.einsum('bhnp,bhn->bhp', state, c)

    along = [jnp.moveaxis(a.astype(jnp.float32), 1, 0) for a in (u, rate, b, c)]
    state, y = jax.lax.scan(step, state.astype(jnp.float32), (*along, starts.T))
    return jnp.moveaxis(y, 0, 1), state


def ssd_chunks(
    u: Float[Array, 'B T H P'],
    rate: Float[Array, 'B T H'],
    b: Float[Array, 'B T H N'],
    c: Float[Array, 'B T H N'],
    starts: Bool[Array, 'B T'],
    state: Float[Array, 'B H N P'],
    *,
    chunk: int = 256,
) -> tuple[Float[Array, 'B T H P'], Float[Array, 'B H N P']]:
    """`ssd_scan` by matrix products: inside a chunk every pair of tokens, and from chunk to chunk
    the state.

    The T tokens are cut into the fewest chunks of equal length that have at most `chunk` tokens.
    The cost is `T (chunk (N + P) + 2 N P)` products for each head. The backward pass keeps the
    state in front of every chunk and computes the pairs again, so its memory is linear in T. A
    symbolic T, as in `jax.export`, is scanned token by token.

    Args:
      u, rate, b, c, starts, state: as for `ssd_scan`.
      chunk: the most tokens of a chunk, at least 1.

    Returns:
      y, and S behind the last token, float32.

    Raises:
      ValueError: a chunk below 1.
    """
    if chunk < 1:
        raise ValueError(f'a chunk holds at least 1 token, got {chunk}')
    tokens, state = (u, rate, b, c, starts), state.astype(jnp.float32)
    length = u.shape[1]
    if not isinstance(length, int):
        return ssd_scan(u, rate, b, c, starts, state)
    count = -(-length // chunk)
    if count == 1:
        return _one_chunk(state, tokens)
    size = -(-length // count)

    def cut(a):
        # Filled with tokens that write nothing and forget nothing.
        a = jnp.pad(a, [(0, count * size - length if i == 1 else 0) for i in range(a.ndim)])
        return jnp.moveaxis(a.reshape(a.shape[0], count, size, *a.shape[2:]), 1, 0)

    def step(state, tokens):
        y, state = _one_chunk(state, tokens)
        return state, y

    step = jax.checkpoint(step, prevent_cse=False)
    state, y = jax.lax.scan(step, state, jax.tree.map(cut, tokens))
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :length], state


def _one_chunk(state, tokens):
    u, rate, b, c = (jnp.swapaxes(a.astype(jnp.float32), 1, 2) for a in tokens[:4])
    number = jnp.cumsum(tokens[4], axis=1)[:, None]  # documents that have begun in this chunk
    high, low = running_sum(rate, jnp.broadcast_to(tokens[4][:, None], rate.shape))
    between = lambda later, earlier: sum(later(a) - earlier(a) for a in (high, low))
    seen = number[..., :, None] == number[..., None, :]
    seen &= jnp.arange(u.shape[2])[:, None] >= jnp.arange(u.shape[2])
    # The exponent is masked, not the result, since that of a later token may overflow.
    decay = jnp.exp(
        jnp.where(seen, between(lambda a: a[..., :, None], lambda a: a[..., None, :]), -jnp.inf)
    )
    y = (jnp.einsum('bhtn,bhsn->bhts', c, b) * decay) @ u
    from_state = jnp.exp(jnp.where(number == 0, high + low, -jnp.inf))
    y += (from_state[..., None] * c) @ state
    to_end = jnp.exp(
        jnp.where(number == number[..., -1:], between(lambda a: a[..., -1:], lambda a: a), -jnp.inf)
    )
    state = from_state[..., -1, None, None] * state
    state += jnp.einsum('bhsn,bhsp->bhnp', to_end[..., None] * b, u)
    return jnp.swapaxes(y, 1, 2), state


@jax.custom_jvp
def running_sum(
    x: Float[Array, '... T'], starts: Bool[Array, '... T']
) -> tuple[Float[Array, '... T'], Float[Array, '... T']]:
    """The running sum along the last axis, from the last start on, as `high + low` with the
    precision of a `Double`.

    The difference of two running sums then has the relative precision of float32, also where a
    steep decay has made both of them large.
    """
    total = _restarted(Double.of(x), starts)
    return total.high, total.low


@running_sum.defjvp
def _running_sum_jvp(primals, tangents):
    # The gradient is summed within documents too, so that none of its rounding leaves them.
    return running_sum(*primals), (_restarted(tangents[0], primals[1]), jnp.zeros_like(tangents[0]))


def _restarted(x, starts):
    """The running sum of an array or a `Double` along the last axis, from the last start on."""

    def add(one, other):
        (x, starts), (y, fresh) = one, other
        return jax.tree.map(lambda a, b: jnp.where(fresh, a, b), y, x + y), starts | fresh

    return jax.lax.associative_scan(add, (x, starts), axis=starts.ndim - 1)[0]
