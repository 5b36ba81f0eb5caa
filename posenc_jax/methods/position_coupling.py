"""Position coupling: related tokens share a position id, which has a learned vector."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from posenc_jax.protocol.bounds import CONTEXT, Size
from posenc_jax.protocol.encoding import Encoding, PositionRange, drawn_normal
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import (
    NOWHERE,
    check_integers,
    check_range,
    known_range,
    lookup_rows,
)


def position_coupling_start(
    key: Array,
    ids: Int[Array, 'B L *P'],
    max_position: int,
    valid: Bool[Array, '#B L'] | None = None,
) -> Int[Array, 'B L *P']:
    """Adds one random offset per row and component to all non-zero ids, up to max_position.

    Args:
      key: random key.
      ids: coupled ids with start 1; 0 is the boundary token and padding.
      max_position: the largest id allowed.
      valid: False for padding, whose ids are ignored.

    Raises:
      ValueError: known ids outside 0 .. max_position; traced ones beyond it stay as they are.
    """
    low, high = known_range(ids, valid) or (0, 0)
    if low < 0 or high > max_position:
        raise ValueError(
            f'position_coupling_start: ids lie in 0 .. {max_position}, '
            f'got {low if low < 0 else high}'
        )
    real = (
        ids
        if valid is None
        else jnp.where(valid.reshape(*valid.shape, *[1] * (ids.ndim - 2)), ids, 0)
    )
    largest = real.max(axis=1, keepdims=True)
    offset = jax.random.randint(key, largest.shape, 0, jnp.maximum(max_position - largest, 0) + 1)
    return jnp.where(ids > 0, ids + offset.astype(ids.dtype), ids)


@register(
    'position_coupling',
    kind='encoding',
    card=Card(
        name='position coupling',
        example='position_coupling(max_position=128)',
        use_when=(
            'You train on sums or other tasks with digits whose places are known; a '
            'measured claim about very long sums is contrary.'
        ),
        share='model',
        needs_training=True,
    ),
)
class PositionCoupling(Encoding):
    """Uses the task's coupled ids as positions, with a random start; adds a learned vector per id.

    `x_t + P[p_t]`; the ids come from the task with start 1 (`ids='coupled'`, for example of
    addition; pure functions in posenc_jax.lab.tasks.coupling), and id 0 stays with the boundary
    token and padding. With a key a row's ids are shifted so that its start is uniform in 1 .. M -
    (largest id - 1). Ids with several components (2-D tasks) have one table each, or share one; the
    vectors are summed and the starts are independent. With `ids='plain'` this is the paper's
    baseline, an absolute encoding with random start. Differs from the paper: the range of starts
    follows from the row's own largest id, so no id exceeds M, which the official range for
    multiplication lets happen.

    Args:
      max_position: M, the largest id.
      components: P, how many ids a token has.
      table: False adds no vectors and leaves the ids to another encoding of the chain.
      shared: one table for all components.

    Raises:
      ValueError: at call, ids of another shape, fractional ids, or ids beyond M (where ids are
        traced, such an id gets NaN from the table, and without it becomes `NOWHERE`).

    Reference: Cho et al., arXiv 2405.20671.

    Example:
      >>> import jax, posenc_jax as pj
      >>> encoding = pj.make('position_coupling(max_position=20)', model_dim=4)
      >>> tok = pj.Tokens.of(positions=[[0, 2, 1, 2, 0]])
      >>> encoding.place(tok, key=jax.random.key(1)).pos[0, [0, 4]].tolist()
      [0, 0]
    """

    traits = frozenset({'reads_other_tokens'})

    def __init__(
        self,
        max_position: Size,
        components: Size = 1,
        table: bool = True,
        shared: bool = False,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.max_position, self.components = max_position, components
        shape = (1 if shared else components, max_position + 1, model_dim)
        vectors = lambda: drawn_normal(rngs, shape, 1.0, (None, 'positions', 'width'))
        self.tables = vectors() if table else None

    @property
    def position_range(self):
        rows = self.max_position + 1
        return PositionRange(assigns=rows) if self.tables is None else PositionRange(accepts=rows)

    def place(self, tok, *, key=None):
        expected = () if self.components == 1 else (self.components,)
        wanted = '[B, L]' if self.components == 1 else f'[B, L, {self.components}]'
        check_integers(f'position_coupling needs integer ids {wanted}', tok.pos, expected)
        if not isinstance(tok.pos, jax.core.Tracer):
            check_range('position_coupling', tok, self.max_position + 1, 'shorter inputs')
        elif self.tables is None:
            inside = jnp.where(tok.pos > self.max_position, NOWHERE, tok.pos)
            tok = dataclasses.replace(tok, pos=inside)
        if key is None:
            return tok
        pos = position_coupling_start(key, tok.pos, self.max_position, tok.valid)
        return dataclasses.replace(tok, pos=pos)

    def embed(self, x, tok):
        if self.tables is None:
            return x
        ids, last = tok.pos if self.components > 1 else tok.pos[..., None], self.tables.shape[0] - 1
        added = sum(
            lookup_rows(self.tables[min(p, last)], ids[..., p]) for p in range(self.components)
        ).astype(x.dtype)
        return x + (added if tok.valid is None else jnp.where(tok.valid[..., None], added, 0))
