"""Attention over a sequence that is cut along a mesh axis: its keys travel round the devices.

Every device keeps its queries. Keys, values and their tokens are handed to the next device after
each hop, and the state of the sweep is kept between hops, so no device ever holds all keys. In the
backward pass their gradients travel with them.

Without a carry the order of the keys does not matter, and one trip round the ring suffices. With a
carry they must come from near to far. The keys of later devices then take a first trip, in which a
device passes over its own and earlier ones, and these are met in a second trip.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.core.encoding import Encoding
from posenc_jax.core.sweep import (
    Rows,
    add,
    advance,
    begin,
    begin_carry,
    finish,
    gradients,
    partition,
    retreat,
    zeros,
)
from posenc_jax.core.tiles import Blocks, may_meet
from posenc_jax.core.tokens import bounds


def _kernel():
    """As in `core/attention.py`."""
    from posenc_jax.core import kernel

    return kernel


def gains_by_halves(encoding: Encoding, queries: int, keys: int) -> bool:
    """Whether devices should exchange halves of their parts, of these lengths, by `deal`.

    Causal queries of the first device see few keys, and those of the last see all. A carry needs
    parts in their order.
    """
    causal = 'decides_causality' in encoding.traits and 'sees_later' not in encoding.traits
    return causal and not encoding.opens('init_carry') and queries % 2 == keys % 2 == 0


def holder(half: int, devices: int) -> int:
    """The device to which a half is dealt, of twice as many halves as devices: device d gets the
    halves d and 2 devices - 1 - d.
    """
    return min(half, 2 * devices - 1 - half)


def deal(tree: Any, axis_name: str, axis: int, *, back: bool = False) -> Any:
    """Arrays that are cut into contiguous parts along a mesh axis, with their halves dealt anew by
    `holder`. The halves of a device keep their order; `back` undoes it.
    """
    count = jax.lax.axis_size(axis_name)
    odd_device = jax.lax.axis_index(axis_name) % 2 == 1

    def send(a, parity):
        ways = [(d, holder(2 * d + parity, count)) for d in range(count)]
        return jax.lax.ppermute(a, axis_name, [way[::-1] for way in ways] if back else ways)

    def one(a):
        # An even device gets an even half from the front of the sequence and an odd one from its
        # back, an odd device the other way round.
        first, second = jnp.split(a, 2, axis)
        if not back:
            first, second = send(first, 0), send(second, 1)
        first, second = jnp.where(odd_device, second, first), jnp.where(odd_device, first, second)
        if back:
            first, second = send(first, 0), send(second, 1)
        return jnp.concatenate([first, second], axis)

    return jax.tree.map(one, tree)


@dataclasses.dataclass(frozen=True)
class _Trip:
    """The hops in which every device meets all keys. `step` is 1 where keys go to the next device
    and are met from near to far; it is -1 where they go to the one before, from far to near.
    """

    plan: Any
    encoding: Encoding
    step: int

    def run(self, tq, meet, state, keys, sums):
        """The state and the sums behind all hops.

        Args:
          tq: the tokens of the queries.
          meet: (state, sums, keys, number of their device) -> state and sums, called where a query
            may see one of the keys.
          keys: what travels: k, v, and the tokens.
          sums: what travels with the keys and changes on the way.
        """
        name = self.plan.ring
        device, count = jax.lax.axis_index(name), jax.lax.axis_size(name)
        ways = [(d, (d + self.step) % count) for d in range(count)]
        trips, own = 2 if self.encoding.opens('init_carry') else 1, bounds(tq)

        def hop(number, loop):
            state, sums, keys = loop
            source = (device - self.step * number) % count
            meets = may_meet(self.encoding, own, keys[-1])
            if trips == 2:
                meets &= (number < count) == (self.step * (source - device) > 0)
            state, sums = jax.lax.cond(
                meets, lambda *now: meet(*now, keys, source), lambda *now: now, state, sums
            )
            onward = lambda a: jax.lax.ppermute(a, name, ways)
            return state, *jax.tree.map(onward, (sums, keys))

        return self.plan.fold(trips * count, hop, (state, sums, keys))[:2]


def _heads_first(a):
    return jnp.swapaxes(a, 1, 2)


def _read(plan, tree, i):
    """A block of queries of arrays [B, N, T, ...]."""
    return jax.tree.map(lambda a: Blocks(plan.q.size, 2).read(a, i), tree)


def _write(plan, tree, block, i):
    return jax.tree.map(lambda a, b: Blocks(plan.q.size, 2).write(a, b, i), tree, block)


def _sweep(plan, store, params, constants, q, k, v, tq, tk):
    """The result and the log-sum-exp; with `store` also the carry in front of the keys of each
    device.
    """
    encoding = plan.encoding(params, constants)
    count, blocks = jax.lax.axis_size(plan.ring), q.shape[1] // plan.q.size
    begun = begin(encoding, _heads_first(q), tq, v.shape[-1])
    to_store = lambda state: state[-1] if store else ()
    stored = jax.tree.map(lambda c: jnp.zeros((count, *c.shape), c.dtype), to_store(begun))

    def meet(loop, sums, keys, source):
        state, stored = loop
        stored = jax.tree.map(lambda buffer, c: buffer.at[source].set(c), stored, to_store(state))
        k, v, tk = keys
        if plan.target is not None:
            state = _kernel().advance_all(plan, params, constants, q, k, v, tq, tk, state)
            return (state, stored), sums

        def q_block(i, state):
            q_i, tq_i = plan.q.read(q, i), plan.q.tokens(tq, i)
            behind = advance(plan, encoding, q_i, k, v, tq_i, tk, _read(plan, state, i))
            return _write(plan, state, behind, i)

        return (plan.fold(blocks, q_block, state), stored), sums

    trip = _Trip(plan, encoding, 1)
    (state, stored), _ = trip.run(tq, meet, (begun, stored), (k, v, tk), ())
    out, lse = finish(state)
    return (_heads_first(out).astype(v.dtype), lse), stored


def forward(plan, params, constants, q, k, v, tq, tk):
    """The result in the layout of `q`, and the logarithm of each row's sum of exponentials, [B, N,
    T], of the parts of this device.
    """
    return _sweep(plan, False, params, constants, q, k, v, tq, tk)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tiles(plan, params, constants, q, k, v, tq, tk):
    """As `forward`, with a gradient that recomputes tiles."""
    return forward(plan, params, constants, q, k, v, tq, tk)


def _fwd(plan, *arrays):
    results, stored = _sweep(plan, True, *arrays)
    return results, (*arrays, *results, stored)


def _bwd(plan, residuals, cotangents):
    params, constants, q, k, v, tq, tk, out, lse, stored = residuals
    plan = dataclasses.replace(plan, k=plan.k_backward)
    encoding, blocks = plan.encoding(params, constants), q.shape[1] // plan.q.size
    tq_floats, tq_others = partition(tq)
    carry, pull_begin = jax.vjp(
        functools.partial(begin_carry, plan, constants, tq_others),
        *(params, _heads_first(q), tq_floats),
    )

    def meet(own, d_keys, keys, source):
        k, v, tk = keys
        if plan.target is not None and not jax.tree.leaves(carry):
            here = params, constants, q, k, v, tq, tk, out, lse
            (g_params, *g_keys), g_q, g_tq = _kernel().pull(plan, here, cotangents)
            return add(own, (g_params, g_q, g_tq, carry)), add(d_keys, tuple(g_keys))
        entered = jax.tree.map(lambda buffer: buffer[source], stored)

        def q_block(i, loop):
            (d_params, d_q, d_tq, d_carry), d_keys = loop
            rows = Rows.read(plan, i, q, tq, out, lse, *cotangents)
            (d_params, *d_keys), g_q, g_tq, g_carry = retreat(
                plan, params, constants, rows, k, v, tk,
                _read(plan, (entered, d_carry), i), (d_params, *d_keys),
            )  # fmt: skip
            add_tokens = lambda d, g: plan.q.add_tokens(d, g, i)
            d_q, d_tq = plan.q.add(d_q, g_q, i), jax.tree.map(add_tokens, d_tq, g_tq)
            return (d_params, d_q, d_tq, _write(plan, d_carry, g_carry, i)), tuple(d_keys)

        return plan.fold(blocks, q_block, (own, d_keys))

    own = *zeros((params, q, tq_floats)), jax.tree.map(jnp.zeros_like, carry)
    d_keys = zeros((k, v, partition(tk)[0]))
    trip = _Trip(plan, encoding, -1)
    (d_params, d_q, d_tq, d_carry), d_keys = trip.run(tq, meet, own, (k, v, tk), d_keys)
    h_params, h_q, h_tq = pull_begin(d_carry)
    d_params, d_q, d_tq = add(d_params, h_params), add(d_q, _heads_first(h_q)), add(d_tq, h_tq)
    return gradients(residuals, (d_params, *d_keys), d_q, d_tq)


tiles.defvjp(_fwd, _bwd)
