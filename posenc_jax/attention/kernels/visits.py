"""Which blocks of keys every block of queries meets in a kernel, and in which order.

They are computed before the kernel, as tables of numbers: the order, how many blocks are met, and
how many of them, the first ones, need a mask. The tiles of the others are full: every query sees
every key.
"""

import dataclasses

import jax
import jax.numpy as jnp

from posenc_jax.attention.tiles import sweep_order
from posenc_jax.base import targets
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

    def block_of_step(self, b, i, step, order, count):
        """The block of a step of the grid. Behind the last visit it is that of the last one, so
        that nothing is copied.
        """
        total = jnp.maximum(self.total(b, i, count), 1)
        return self._block(b, i, jnp.minimum(step, total - 1), order, total)

    def _block(self, b, i, visit, order, total):
        return order[self._line(b, i) * self.others + (total - 1 - visit if self.back else visit)]

    def _line(self, b, i):
        return i + (b * self.own if self.rows > 1 else 0)


def knows_full_tiles(plan, encoding, tq: Tokens, tk: Tokens) -> bool:
    """Whether kernels for this target compute full tiles without a mask, and the encoding can say
    which tiles these are.
    """
    own, other = bounds(tq.without_feats()), bounds(tk.without_feats())
    return not targets.of_tpu(plan.target) and encoding.sees_all(own, other) is not False


def visits_of_queries(
    plan, encoding, tq: Tokens, tk: Tokens, together: bool = False, apart: bool = False
):
    """The order in which every block of queries meets blocks of keys, how many it meets, and how
    many of these need a mask, for every row of the batch, or once if all rows share their tokens or
    go `together`. Blocks go from near to far; if full tiles go `apart`, they follow the others.
    """
    tq, tk = tq.without_feats(), tk.without_feats()

    def of_block(tq, tk):
        order, count = sweep_order(plan, encoding, tq, tk)
        if not apart:
            return order, count, count

        def full(number):
            block = plan.k.tokens(tk, number)
            valid = True if block.valid is None else block.valid.all()
            return jnp.asarray(encoding.sees_all(bounds(tq), bounds(block))) & valid

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


def visits_of_keys(visits):
    """The same for every block of keys, which meets blocks of queries."""
    order, count, masked = visits
    place = jnp.argsort(order, -1)
    meets = jnp.swapaxes(place < count[..., None], 1, 2)
    first = jnp.swapaxes(place < masked[..., None], 1, 2)
    return jnp.argsort(2 - meets - first, -1), meets.sum(-1), first.sum(-1)
