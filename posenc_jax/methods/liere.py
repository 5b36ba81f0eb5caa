"""LieRE: rotations that are exponentials of trained skew matrices, which need not commute."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.rotations import exponential_less_one, skew
from posenc_jax.methods.turned import NormalisedGrid
from posenc_jax.protocol.bounds import CONTEXT, Entries, Ge, Le, Size
from posenc_jax.protocol.registry import Card, register


def liere_coordinates(
    cells: Float[Array, '#B L P'],
    size: Float[Array, '#B #L P'],
    trained: tuple[int, ...] | None = None,
) -> Float[Array, '#B L P']:
    """The coordinates of cells, `p (n/N) / (n - 1)`: from 0 to n/N, or to 1 where N is None.

    Args:
      cells: indices of cells along each axis.
      size: n, the number of cells along each axis.
      trained: N, the same of the grids of training.
    """
    last = 1.0 if trained is None else size / jnp.array(trained, jnp.float32)
    return cells * last / jnp.maximum(size - 1, 1)


def liere(
    x: Num[Array, 'B L heads H'],
    coords: Float[Array, '#B L P'],
    raw: Float[Array, 'P K blocks g g'],
) -> Num[Array, 'B L heads H']:
    """Queries or keys whose blocks of g features are multiplied by `exp(sum_a p_a A_a)`, in
    float32. Features behind the last block are left as they are.

    An exponential is computed for each token of `coords`, so once for all rows of a batch that
    share them, and again in the backward pass instead of being kept.

    Args:
      x: vectors; the number of heads is a multiple of K.
      coords: coordinates p.
      raw: their upper triangles minus the transposed ones are the generators A, for each
        coordinate, key head (or one for all) and block.
    """
    return _multiplied((x,), coords, raw)[0]


@jax.checkpoint
def _multiplied(
    vectors: tuple[Num[Array, 'B L _ H'], ...],
    coords: Float[Array, '#B L P'],
    raw: Float[Array, 'P K blocks g g'],
) -> tuple[Num[Array, 'B L _ H'], ...]:
    """`liere` of several vectors at the same coordinates, whose exponentials are made once."""
    generators = jnp.einsum(
        'blp,pkmgh->blkmgh', coords.astype(jnp.float32), skew(raw), precision='highest'
    )
    less_one = exponential_less_one(generators)[:, :, :, None]
    blocks, width = raw.shape[2:4]

    def turned(x):
        own, rest = x[..., : blocks * width], x[..., blocks * width :]
        split = own.astype(jnp.float32).reshape(*x.shape[:2], raw.shape[1], -1, blocks, width, 1)
        moved = split + jnp.matmul(less_one, split, precision='highest')
        return jnp.concatenate([moved.reshape(own.shape).astype(x.dtype), rest], axis=-1)

    return tuple(map(turned, vectors))


@register(
    'liere',
    kind='encoding',
    card=Card(
        name='LieRE',
        example='liere(block=4, size=(8, 64))',
        use_when=(
            'You train on images and want rotations of blocks that are learned; to '
            'compare with axial RoPE, since a measured claim is contrary.'
        ),
        share='model',
        needs_training=True,
    ),
)
class LieRE(NormalisedGrid):
    """Multiplies blocks of queries and keys by trained rotations of their position.

    `q'_i = exp(sum_a p_ia A_a) q_i`, `k'_j = exp(sum_a p_ja A_a) k_j`, `A = triu(P, 1) - triu(P,
    1)^T`. P is a trained matrix for each axis of the grid and each block. Where the generators of
    the axes commute, as in blocks of two, logits depend on the differences of positions alone;
    otherwise they also depend on the positions. `place` puts coordinates in the place of cells: an
    axis of n cells, trained with N of them, runs from 0 to n/N. So no part that reads cells may
    stand beside it. A token that is not on the grid, such as a class token, gets the origin, where
    nothing turns.

    Differs from the paper: nothing; the 1/2 that its code subtracts from P cancels.

    Args:
      block: width g of a block; None is the whole head (64 in the paper; LieRE_8 has 8). Features
        behind the last whole block are not turned.
      components: number of axes of the grid.
      size: cells along each axis of the grid on which the tokens stand; cells beyond it go on
        outwards. None takes the largest position of the valid tokens of a sequence, or of a packed
        document, plus one. A new token then changes all others, so no decode cache can serve it.
      trained: cells along each axis of the grids of training; None is the same number.
      per_head: whether each key head has matrices of its own. The code shares them over heads and
        layers.
      head_dim, kv_heads: H and K, from the model.
      rngs: draws P, uniform in 0 .. 2 pi.

    Raises:
      ValueError: at call, positions that are not [B, L, components], or that are fractions while
        size is None.

    Reference: Ostmeier et al., arXiv 2406.10322.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('liere(block=4)', head_dim=8, kv_heads=2, rngs=nnx.Rngs(0))
      >>> part.raw.shape, part.place(pj.Tokens.on_grid(1, 3)).pos[0].tolist()
      ((2, 1, 2, 4, 4), [[0.0, 0.0], [0.0, 0.5], [0.0, 1.0]])
    """

    def __init__(
        self,
        block: Annotated[int, Ge(2), Le('head_dim')] | None = None,
        components: Annotated[int, Ge(1), Le(16)] = 2,
        size: Annotated[tuple[Size, ...], Entries('components')] | None = None,
        trained: Annotated[tuple[Size, ...], Entries('components')] | None = None,
        per_head: bool = False,
        head_dim: Annotated[int, Ge(2)] = CONTEXT,
        kv_heads: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.components, self.size, self.trained = components, size, trained
        self.head_dim = head_dim
        width, own = head_dim if block is None else block, kv_heads if per_head else 1
        shape = components, own, head_dim // width, width, width
        drawn = jax.random.uniform(rngs.params(), shape, jnp.float32, 0.0, 2 * jnp.pi)
        role = 'kv_heads' if per_head else None
        self.raw = nnx.Param(drawn, axes=(None, role, None, None, None))

    def coordinates(self, cells, size, key):
        return liere_coordinates(cells, size, self.trained)

    def turned(self, x, tok):
        return liere(x, self.placed(tok), self.raw[...])

    def project(self, q, k, v, tq, tk, x=None):
        if tq.pos is not tk.pos:
            return super().project(q, k, v, tq, tk, x)
        self.check_widths(q, k)
        q, k = _multiplied((q, k), self.placed(tq), self.raw[...])
        return q, k, v, tq, tk
