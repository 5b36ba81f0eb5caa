"""Attention over a sequence that is cut along a mesh axis: its keys travel round the devices.

Every device keeps its queries. Keys, values and their tokens are handed to the next device after
each hop, and the state of the sweep is kept between hops, so no device ever holds all keys. In the
backward pass their gradients travel with them.

Without a carry the order of the keys does not matter, and one trip round the ring suffices. With a
carry they must come from near to far. Where no query sees a later key, every device has two halves
of the queries as two nodes of a ring of halves, in which one trip is in this order (`_Trip`).
Otherwise the keys of later devices take a first trip, in which a device passes over its own and
earlier ones, and these are met in a second trip.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.attention.sweep import (
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
from posenc_jax.attention.tiles import Blocks, may_meet
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens, bounds


def _kernel():
    """As in `attention/attend.py`."""
    from posenc_jax.attention.kernels import passes as kernel

    return kernel


def gains_by_halves(encoding: Encoding, tq: Tokens, tk: Tokens) -> bool:
    """Whether devices should exchange halves of their parts, with these tokens, by `deal`.

    Causal queries of the first device see few keys, and those of the last see all. With a carry, no
    half of the keys may be seen that comes later than the half of the queries. This is known where
    both are the same tokens: they share the array of their index.
    """
    causal = 'decides_causality' in encoding.traits and 'sees_later' not in encoding.traits
    ordered = not encoding.opens('first_carry') or tq.index is tk.index
    return causal and ordered and tq.length % 2 == tk.length % 2 == 0


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


def _piece(plan, tree, axis, number):
    """What a node has of arrays of its device."""
    return jax.tree.map(lambda a: jnp.split(a, plan.nodes, axis)[number], tree)


@dataclasses.dataclass(frozen=True)
class _Trip:
    """The hops in which every node meets all keys that it may see.

    A node is a device, or one of the two halves of the queries of a device. Device d of n has the
    nodes d and 2n - 1 - d, so keys that go to the next node go to the next device or to the one
    before, and at both ends they stay and are met by the other node. `step` is 1 where keys go to
    the next node and are met from near to far; it is -1 where they go to the one before, from far
    to near.
    """

    plan: Any
    encoding: Encoding
    step: int

    @property
    def device(self):
        return jax.lax.axis_index(self.plan.ring)

    @property
    def count(self) -> int:
        """The number of devices."""
        return jax.lax.axis_size(self.plan.ring)

    @property
    def slots(self) -> int:
        """For how many pieces of the keys a device stores a carry."""
        return self.count if self.plan.nodes == 1 else 2 * self.count + 1

    def run(self, tq, meet, state, keys, sums):
        """The state and the sums behind all hops.

        Args:
          tq: the tokens of the queries.
          meet: (state, sums, keys, node of this device, slot of these keys) -> state and sums,
            called where a query of the node may see one of the keys.
          keys: what travels, a list with k, v and the tokens for every node of this device.
          sums: what travels with the keys and changes on the way, a list too.
        """
        nodes, count, device, step = self.plan.nodes, self.count, self.device, self.step
        trips = 2 if nodes == 1 and self.encoding.opens('first_carry') else 1
        own = [bounds(_piece(self.plan, tq, 1, n)) for n in range(nodes)]
        # From far to near the own keys of a half come last, at the end of the trip.
        own_last = nodes == 2 and step == -1

        def hop(number, loop):
            state, sums, keys = loop
            if own_last:
                sums, keys = self._onward(sums, keys)
            sums = list(sums)
            for n in range(nodes):
                node = 2 * count - 1 - device if n else device
                source = slot = (node - step * (number + own_last)) % (nodes * count)
                meets = may_meet(self.encoding, own[n], keys[n][-1])
                if nodes == 2:
                    meets &= source <= node
                    slot = node - source + n * (device + 1)
                if trips == 2:
                    meets &= (number < count) == (step * (source - device) > 0)
                state, sums[n] = jax.lax.cond(
                    meets,
                    lambda *now, n=n, slot=slot: meet(*now, keys[n], n, slot),
                    lambda *now: now,
                    *(state, sums[n]),
                )
            if not own_last:
                sums, keys = self._onward(sums, keys)
            return state, sums, keys

        return self.plan.loop(trips * nodes * count, hop, (state, sums, keys))()[:2]

    def _onward(self, *trees):
        """Lists over the nodes of a device, at the next node."""
        name, count, device, step = self.plan.ring, self.count, self.device, self.step
        if self.plan.nodes == 1:
            ways = [(d, (d + step) % count) for d in range(count)]
            return jax.tree.map(lambda a: jax.lax.ppermute(a, name, ways), trees)
        there, back = (
            [(d, d + by) for d in range(count) if 0 <= d + by < count] for by in (step, -step)
        )
        start, end = (0, count - 1)[::step]

        def go(ways, turn):
            return lambda a, other: jnp.where(
                device == turn, other, jax.lax.ppermute(a, name, ways)
            )

        def both(tree):
            first, second = tree
            return [
                jax.tree.map(go(there, start), first, second),
                jax.tree.map(go(back, end), second, first),
            ]

        return tuple(map(both, trees))


def _travelling(plan, k, v, tk) -> list:
    """Keys as a list over the nodes of a device."""
    piece = functools.partial(_piece, plan)
    axis = plan.k.axis
    return [(piece(k, axis, n), piece(v, axis, n), piece(tk, 1, n)) for n in range(plan.nodes)]


def _heads_first(a):
    return jnp.swapaxes(a, 1, 2)


def _read(plan, tree, i):
    """A block of queries of arrays [B, N, T, ...]."""
    return jax.tree.map(lambda a: Blocks(plan.q.size, 2).read(a, i), tree)


def _write(plan, tree, block, i):
    return jax.tree.map(lambda a, b: Blocks(plan.q.size, 2).write(a, b, i), tree, block)


def _write_piece(tree, piece, number):
    """Arrays [B, N, T, ...] of a device with those of a node in their place."""
    write = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, number * b.shape[2], 2)
    return jax.tree.map(write, tree, piece)


def _sweep(plan, store, params, constants, q, k, v, tq, tk):
    """The result and the log-sum-exp; with `store` also the carry in front of each piece of
    the keys.
    """
    encoding = plan.encoding(params, constants)
    trip, blocks = _Trip(plan, encoding, 1), q.shape[1] // plan.q.size // plan.nodes
    begun = begin(encoding, _heads_first(q), tq, v.shape[-1])
    to_store = lambda state, n: _piece(plan, state[-1], 2, n) if store else ()
    room = lambda c: jnp.zeros((trip.slots, *c.shape), c.dtype)
    stored = jax.tree.map(room, to_store(begun, 0))

    def meet(loop, sums, keys, n, slot):
        state, stored = loop
        stored = jax.tree.map(lambda buffer, c: buffer.at[slot].set(c), stored, to_store(state, n))
        k, v, tk = keys
        if plan.target is not None:
            own = _piece(plan, q, 1, n), k, v, _piece(plan, tq, 1, n), tk
            before = _piece(plan, state, 2, n)
            behind = _kernel().advance_all(plan, params, constants, *own, before)
            return (_write_piece(state, behind, n), stored), sums

        def q_block(i, state):
            i = n * blocks + i
            q_i, tq_i = plan.q.read(q, i), plan.q.tokens(tq, i)
            behind = advance(plan, encoding, q_i, k, v, tq_i, tk, _read(plan, state, i))
            return _write(plan, state, behind, i)

        return (plan.loop(blocks, q_block, state)(), stored), sums

    keys, nothing = _travelling(plan, k, v, tk), [()] * plan.nodes
    (state, stored), _ = trip.run(tq, meet, (begun, stored), keys, nothing)
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
    encoding, blocks = plan.encoding(params, constants), q.shape[1] // plan.q.size // plan.nodes
    tq_floats, tq_others = partition(tq)
    carry, pull_begin = jax.vjp(
        functools.partial(begin_carry, plan, constants, tq_others),
        *(params, _heads_first(q), tq_floats),
    )

    def meet(own, d_keys, keys, n, slot):
        k, v, tk = keys
        if plan.target is not None and not jax.tree.leaves(carry):
            here = params, constants, q, k, v, tq, tk, out, lse
            (g_params, *g_keys), g_q, g_tq = _kernel().pull(plan, here, cotangents)
            return add(own, (g_params, g_q, g_tq, carry)), add(d_keys, tuple(g_keys))
        entered = jax.tree.map(lambda buffer: buffer[slot], stored)

        def q_block(i, loop):
            (d_params, d_q, d_tq, d_carry), d_keys = loop
            entered_i, i = _read(plan, entered, i), n * blocks + i
            rows = Rows.read(plan, i, q, tq, out, lse, *cotangents)
            (d_params, *d_keys), g_q, g_tq, g_carry = retreat(
                plan, params, constants, rows, k, v, tk,
                (entered_i, _read(plan, d_carry, i)), (d_params, *d_keys),
            )  # fmt: skip
            add_tokens = lambda d, g: plan.q.add_tokens(d, g, i)
            d_q, d_tq = plan.q.add(d_q, g_q, i), jax.tree.map(add_tokens, d_tq, g_tq)
            return (d_params, d_q, d_tq, _write(plan, d_carry, g_carry, i)), tuple(d_keys)

        return plan.loop(blocks, q_block, (own, d_keys))()

    own = *zeros((params, q, tq_floats)), jax.tree.map(jnp.zeros_like, carry)
    keys = _travelling(plan, k, v, tk)
    sums = [zeros((k, v, partition(tk)[0])) for k, v, tk in keys]
    trip = _Trip(plan, encoding, -1)
    (d_params, d_q, d_tq, d_carry), sums = trip.run(tq, meet, own, keys, sums)
    axis = plan.k.axis
    d_keys = [
        jax.tree.map(lambda *a, axis=axis: jnp.concatenate(a, axis), *pieces)
        for axis, *pieces in zip((axis, axis, 1), *sums)
    ]
    h_params, h_q, h_tq = pull_begin(d_carry)
    d_params, d_q, d_tq = add(d_params, h_params), add(d_q, _heads_first(h_q)), add(d_tq, h_tq)
    return gradients(residuals, (d_params, *d_keys), d_q, d_tq)


tiles.defvjp(_fwd, _bwd)
