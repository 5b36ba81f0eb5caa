"""The blocks of keys that every block of queries meets in a kernel, and their order.

They are computed before the kernel, as tables of numbers: the order, how many blocks are met, and
how many of them, the first ones, need a mask or look-ups. The tiles of the others are full: every
query sees every key. With look-ups they are uniform too: all pairs find the same entry.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from posenc_jax.attention.tiles import sweep_order
from posenc_jax.protocol.tokens import Tokens, bounds


@dataclasses.dataclass(frozen=True)
class Visits:
    """Which blocks of others an own block meets. The tables are those of `visits_of_queries`, flat.

    Attributes:
      rows: of the tables; one if all rows of the batch have the same.
      own, others: how many blocks there are.
      back: the visits are in the opposite order.
    """

    rows: int
    own: int
    others: int
    back: bool

    def total(self, b, i, count):
        return count[self._line(b, i)]

    def masked(self, b, i, masked):
        """How many visits need a mask."""
        return masked[self._line(b, i)]

    def block(self, b, i, visit, order, count):
        """The block of a visit."""
        return self._block(b, i, visit, order, self.total(b, i, count))

    def block_of_step(self, b, i, step, order, count, masked):
        """The block of a step of the grid. Behind the last visit it is that of the last one, so
        that nothing is copied.
        """
        total = jnp.maximum(self.total(b, i, count), 1)
        return self._block(b, i, jnp.minimum(step, total - 1), order, total)

    def _block(self, b, i, visit, order, total):
        return order[self._line(b, i) * self.others + (total - 1 - visit if self.back else visit)]

    def _line(self, b, i):
        return i + (b * self.own if self.rows > 1 else 0)


def plan_apart(plan, encoding, tq: Tokens, tk: Tokens) -> Any:
    """The plan of full tiles, which are computed without a mask; None if the encoding cannot say
    which tiles these are. If it can also say which tiles are uniform, the plan is that of tiles
    that are full and uniform. It cannot for positions that are no whole numbers, since these may
    have gradients.
    """
    own, other = bounds(tq.without_feats()), bounds(tk.without_feats())
    if encoding.sees_all(own, other) is False:
        return None
    whole = all(jnp.issubdtype(tok.pos.dtype, jnp.integer) for tok in (tq, tk))
    uniform = whole and not isinstance(encoding.uniform(own, other), bool)
    return dataclasses.replace(plan, full=True, uniform=uniform)


def visits_of_queries(
    plan, encoding, tq: Tokens, tk: Tokens, together: bool = False, apart: Any = None
):
    """The order in which every block of queries meets blocks of keys, how many it meets, and how
    many of these need a mask, for every row of the batch, or once if all rows share their tokens or
    go `together`. Blocks go from near to far. The tiles of the plan `apart`, if there is one, are
    full, and uniform if it says so; they follow the others.
    """
    tq, tk = tq.without_feats(), tk.without_feats()

    def of_block(tq, tk):
        order, count = sweep_order(plan, encoding, tq, tk)
        if apart is None:
            return order, count, count

        def full(number):
            block = plan.k.tokens(tk, number)
            seen = jnp.asarray(encoding.sees_all(bounds(tq), bounds(block))) & _valid(block)
            if not apart.uniform:
                return seen
            return seen & _valid(tq) & encoding.uniform(bounds(tq), bounds(block))

        last = jnp.arange(len(order)) >= count
        later = jax.vmap(full)(order) | last
        place = later.astype(jnp.int32) + last
        return order[jnp.argsort(place)], count, (~later).sum()

    def of_rows(tq, tk):
        blocks = jnp.arange(tq.length // plan.q.size)
        return jax.vmap(lambda i: of_block(plan.q.tokens(tq, i), tk))(blocks)

    rows = max(a.shape[0] for a in jax.tree.leaves((tq, tk)))
    parts = 1 if together else rows
    cut = lambda a: jnp.broadcast_to(a, (rows, *a.shape[1:])).reshape(parts, -1, *a.shape[1:])
    return jax.vmap(of_rows)(*jax.tree.map(cut, (tq, tk)))


def _valid(tok: Tokens):
    return True if tok.valid is None else tok.valid.all()


def visits_of_keys(visits):
    """The same for every block of keys, which meets blocks of queries."""
    order, count, masked = visits
    place = jnp.argsort(order, -1)
    meets = jnp.swapaxes(place < count[..., None], 1, 2)
    first = jnp.swapaxes(place < masked[..., None], 1, 2)
    return jnp.argsort(2 - meets - first, -1), meets.sum(-1), first.sum(-1)
