"""Attention over keys that are cut along a mesh axis, with all queries on every device, as in
decoding with a long cache.

No key travels, only the state of the sweep does, which is as small as the queries. Without a carry
every device sweeps over its own keys and the states are merged by their sums of exponentials. A
carry must meet the keys from near to far, so its state visits the devices one after the other, the
last one first.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posenc_jax.attention.arguments import check_arrays
from posenc_jax.attention.sweep import advance, begin, finish
from posenc_jax.attention.tiles import Blocks, Plan
from posenc_jax.base.derivatives import by_jax
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens


def attend_parts(
    encoding: Encoding,
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B K S H'],
    v: Float[Array, 'B K S V'],
    tq: Tokens,
    tk: Tokens,
    axis_name: str,
) -> tuple[Float[Array, 'B T N V'], Float[Array, 'B T N']]:
    """`attend` inside `jax.shard_map`, over keys that are cut into contiguous parts of one length.
    Each device evaluates one tile of logits.

    Args:
      encoding: its doors of the token stage have been called.
      q, tq: all queries.
      k, v, tk: the keys of this device; ascending in `index` from device to device.
      axis_name: the mesh axis.

    Returns:
      The result and the log-sum-exp, the same on all devices.
    """
    check_arrays(q, k, v, tq, tk, 2)
    queries, keys = Blocks(tq.length, 1), Blocks(tk.length, 2)
    plan = Plan(None, queries, keys, keys, ())
    q = queries.swap(q)
    with by_jax():
        state = begin(encoding, q, tq, v.shape[-1])
        meet = lambda state: advance(plan, encoding, q, k, v, tq, tk, state)
        carries = bool(jax.tree.leaves(state[-1]))
        state = _visited(meet, state, axis_name) if carries else _merged(meet(state), axis_name)
        out, lse = finish(state)
    return queries.swap(out).astype(v.dtype), jnp.swapaxes(lse, 1, 2)


def _merged(state, axis_name: str):
    """The state after the keys of all devices, from the state of each device after its own keys."""
    high, total, out, carry = state
    highest = jax.lax.pmax(jax.lax.stop_gradient(high), axis_name)
    share = jnp.exp(high - highest)
    total, out = jax.lax.psum((total * share, out * share[..., None]), axis_name)
    return highest, total, out, carry


def _visited(meet, state, axis_name: str):
    """The same for a state that visits the devices, from the last to the first."""
    device, count = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    ways = [(d, (d - 1) % count) for d in range(count)]

    def visit(number, state):
        # All devices pass on a state. The one that began on the last device visits them in order.
        state = jax.lax.cond(number + device == count - 1, meet, lambda state: state, state)
        return jax.tree.map(lambda a: jax.lax.ppermute(a, axis_name, ways), state)

    state = jax.lax.fori_loop(0, count, visit, state)  # and it is back on the last device
    keep = lambda a: jnp.where(device == count - 1, a, jnp.zeros_like(a))
    return jax.tree.map(lambda a: jax.lax.psum(keep(a), axis_name), state)
