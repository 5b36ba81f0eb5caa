"""Sorted random magnitudes in place of distances, shared by two variants of randomized PE."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Num, UInt32

from posenc_jax.methods.randomized_pe import drawn_count, evaluation_key, randomized_pe_ids
from posenc_jax.protocol.bounds import Ge, Le
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import signed_distance, whole_distance
from posenc_jax.protocol.tokens import Tokens

Range = Annotated[int, Ge(1), Le(2**24)]  # the last whole number of float32


def random_magnitudes(
    seed: UInt32[Array, '2'], count: Int[Array, 'B'], max_len: int
) -> Int[Array, 'B max_len']:
    """`0, a_1 < ... < a_(n-1)` for n = `count`, then max_len for the remaining entries.

    The a are drawn without replacement from 1 .. max_len-1.

    Args:
      seed: seed of the draw, which all rows share.
      count: n, at most max_len.
      max_len: size of the range.
    """
    key = jax.random.wrap_key_data(seed, impl='threefry2x32')
    if max_len == 1:
        return jnp.zeros((len(count), 1), jnp.int32)
    # Sequences with more positions get NaN when the magnitudes are used.
    drawn = randomized_pe_ids(key, jnp.minimum(count, max_len) - 1, max_len - 1) + 1
    return jnp.pad(drawn, ((0, 0), (1, 0)))


class RandomOffsets(Encoding):
    """Base class: `place` draws a seed, and `offsets` computes random distances from it.

    `place` does not change positions. The magnitudes are computed again from the seed and the
    number of positions wherever they are used. A table indexed by distance is not a feature of a
    token, so it cannot be stored with the tokens.

    Attributes:
      max_len: range of the magnitudes.
      random: False leaves distances as they are.
      both_sides: later keys have a draw of their own.
      eval_len: number of positions assumed in evaluation; None takes those of the row.
      draw: see `randomized_pe`.
    """

    traits = frozenset({'reads_other_tokens'})

    def _configure(
        self, max_len: int, random: bool, both_sides: bool, eval_len: int | None, draw: int
    ):
        self.max_len, self.random, self.both_sides = max_len, random, both_sides
        self.eval_len, self.draw = eval_len, draw

    def place(self, tok: Tokens, *, key=None) -> Tokens:
        if not self.random:
            return tok
        fixed = self.eval_len if key is None else None
        count = drawn_count(self.card.key, tok, self.max_len, fixed).astype(jnp.int32)
        key_of_draw = evaluation_key(self.draw) if key is None else key
        seeds = jax.random.bits(key_of_draw, (2, 2), jnp.uint32)
        spread = lambda a: jnp.broadcast_to(a[:, None, None], (len(a), tok.length, 1, *a.shape[1:]))
        drawn = {'seeds': spread(seeds.reshape(1, 4)), 'count': spread(count)}
        return tok.with_feats(**{self.card.key: drawn})

    def offsets(self, tq: Tokens, tk: Tokens) -> Num[Array, '#B T S']:
        """`a_(j-i)` for later keys, `-a_(i-j)` for earlier ones, 0 for the token itself.

        It is NaN for distances beyond the drawn magnitudes.

        Raises:
          ValueError: positions that are not whole numbers.
        """
        if not self.random:
            return -signed_distance(tq.pos, tk.pos)
        remedy = '; it draws one magnitude for each whole distance'
        apart = -whole_distance(self.card.key, tq.pos, tk.pos, remedy)
        feature = tq.feats[self.card.key]
        seeds = feature['seeds'][0, 0, 0].reshape(2, 2)
        sides = [
            random_magnitudes(seed, feature['count'][:, 0, 0], self.max_len)
            for seed in seeds[: 1 + self.both_sides]
        ]
        rows = max(len(sides[0]), len(apart))
        at = jnp.broadcast_to(jnp.abs(apart), (rows, *apart.shape[1:])).reshape(rows, -1)
        whole = lambda table: jnp.broadcast_to(table, (rows, self.max_len)).astype(jnp.float32)
        earlier, later = (
            jnp.take_along_axis(whole(table), at, axis=1, mode='fill')
            for table in (sides[0], sides[-1])
        )
        found = jnp.where(apart.reshape(len(apart), -1) < 0, -earlier, later)
        return found.reshape(rows, *apart.shape[1:])
