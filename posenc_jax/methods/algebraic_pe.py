"""Algebraic positional encodings: powers of trained rotations along sequences and grids."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Num

from posenc_jax.base.rotations import exponential_less_one, powers_less_one
from posenc_jax.methods.turned import Turned, has_place, moved_by
from posenc_jax.protocol.bounds import CONTEXT, Ge, Gt, Le, Multiple
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

Decay = Annotated[float, Gt(0), Le(1)] | None
Length = Annotated[int, Ge(2), Le(2**24)]
Side = Annotated[int, Ge(2), Le(2**15)]  # of a grid, whose squared distances are int32


def algebraic_pe_start(width: int) -> Float[Array, 'H H']:
    """The first B, for which `exp(B - B^T)` has blocks `[[cos a, sin a], [-sin a, cos a]]` with
    `a_j = 10000^(-2 floor(j/2) / (H/2))`: rotary frequencies, each of them twice.

    Example:
      >>> algebraic_pe_start(2).tolist()
      [[0.0, 0.5], [-0.5, 0.0]]
    """
    pairs = width // 2
    j = jnp.arange(pairs)
    angles = 10000.0 ** (-2.0 * (j // 2) / pairs)
    upper = jnp.zeros((width, width), jnp.float32).at[2 * j, 2 * j + 1].set(angles / 2)
    return upper - upper.T


def branch_less_one(b: Float[Array, '... H H']) -> Float[Array, '... H H']:
    """`W - I` for `W = exp(B - B^T)`, float32."""
    return exponential_less_one(b - b.mT)


def algebraic_pe(
    x: Num[Array, 'B L heads H'], count: Int[Array, '#B L'], b: Float[Array, 'K H H'], most: int
) -> Float[Array, 'B L heads H']:
    """`W^p x` with `W = exp(B - B^T)` of the key head, float32.

    The powers `W^1, W^2, W^4, ...` are made by squaring, and each token is multiplied by those of
    its binary digits. So there is no matrix for each token. The angles have the relative error of a
    float32 product.

    Args:
      count: p, from 0 to below `most`; 0 leaves x as it is.
    """
    bits = max(1, (most - 1).bit_length())

    @jax.checkpoint
    def turned(x, b):
        def digit(x, power):
            bit, u = power
            on = (count >> bit & 1).astype(jnp.float32)[..., None, None]
            return x + on * moved_by(x, u), None

        powers = jnp.arange(bits), powers_less_one(branch_less_one(b), bits)
        return jax.lax.scan(digit, x, powers)[0]

    return turned(x.astype(jnp.float32), b)


def algebraic_grid(
    x: Num[Array, 'B L heads H'], count: Int[Array, '#B L P'], b: Float[Array, 'P K W W'], most: int
) -> Float[Array, 'B L heads H']:
    """`[W_1^(p_1) | W_2^(p_2)] x`: each coordinate turns its share of the head as `algebraic_pe`
    does, float32.

    Args:
      count: the coordinates p of the cells, from 0 to below `most`. The encoding `algebraic_grid()`
        puts the column in front of the row.
      b: B of every coordinate and key head, of the width H / P.

    Reference: Kogkalidis, Bernardy, Garg, arXiv 2312.16045.

    Example:
      >>> b = jnp.stack([algebraic_pe_start(2)] * 2)[:, None]
      >>> x = jnp.ones((1, 1, 1, 4))
      >>> algebraic_grid(x, jnp.array([[[1, 0]]]), b, 2).ravel().round(2).tolist()
      [1.38, -0.3, 1.0, 1.0]
    """
    parts = jnp.split(x, len(b), axis=-1)
    found = [algebraic_pe(part, count[..., n], b[n], most) for n, part in enumerate(parts)]
    return jnp.concatenate(found, axis=-1)


def whole_length(apart: Int[Array, '... P']) -> Int[Array, '...']:
    """Euclidean lengths, rounded down.

    They are exact, where a rounded root, or a rounded sum of squares, may reach the next number.

    Args:
      apart: whole numbers whose squares have a sum below 2^31.

    Example:
      >>> whole_length(jnp.array([[3, 4], [1, 1], [5, 5]])).tolist()
      [5, 1, 7]
    """
    square = (apart.astype(jnp.int32) ** 2).sum(-1)
    nearest = jnp.round(jnp.sqrt(square.astype(jnp.float32))).astype(jnp.int32)
    return nearest - (nearest * nearest > square)


def decayed(self, s, q, k, tq, tk, seen, carry):
    """Every logit times decay^(number of steps)."""
    return s * (self.decay ** self.steps(tq, tk).astype(jnp.float32))[:, None], carry


class _Powers(Turned):
    """Base class: each coordinate turns its share of the head by a power."""

    def _configure(self, max_len, decay, head_dim, kv_heads):
        self.max_len, self.decay, self.head_dim = max_len, decay, head_dim
        width = head_dim // self.components
        first = jnp.broadcast_to(
            algebraic_pe_start(width), (self.components, kv_heads, width, width)
        )
        self.b = nnx.Param(first, axes=(None, 'kv_heads', None, None))

    def counts(self, tok: Tokens) -> Int[Array, '#B L P']:
        """The coordinates, zeros for tokens in front of a grid.

        Raises:
          ValueError: positions of another shape or that are no integers; where they are known,
            beyond 0 .. max_len - 1.
        """
        pos, key = self.positions(tok), self.card.key
        if not jnp.issubdtype(pos.dtype, jnp.integer):
            raise ValueError(f'{key} needs integer positions, got {pos.dtype}')
        return jnp.where(has_place(pos)[..., None], pos, 0)

    def turned(self, x, tok):
        count, key = self.counts(tok), self.card.key
        known = ((count >= 0) & (count < self.max_len)).all(-1)
        known = known if tok.valid is None else known | ~tok.valid
        if not isinstance(known, Tracer) and not np.asarray(known).all():
            pos = np.broadcast_to(self.positions(tok), (*known.shape, self.components))
            wrong = pos[~np.asarray(known)]
            raise ValueError(
                f'{key}: position {wrong[0].tolist()} is not in 0 .. {self.max_len - 1}; use a '
                'larger max_len or shorter inputs'
            )
        whole = algebraic_grid(x, count, self.b[...], self.max_len)
        return jnp.where(known[..., None, None], whole, jnp.nan).astype(x.dtype)


@register(
    'algebraic_pe',
    kind='encoding',
    card=Card(
        name='Algebraic PE, sequences',
        example='algebraic_pe()',
        use_when=(
            'You train on copies or reversals of strings, where its learned rotations '
            'were ahead of RoPE.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class AlgebraicPE(_Powers):
    """Multiplies queries and keys by powers of a trained rotation of each head.

    `q'_i = W^i q_i`, `k'_j = W^j k_j`, `W = exp(B - B^T)`. So logits have `W^(j-i)`, and depend on
    position differences alone. With the first B it is RoPE whose frequencies occur twice each, and
    which turns the other way; that mirrors offsets. See `algebraic_grid` and `algebraic_tree` for
    grids and trees.

    Differs from the paper: the first B is half the logarithm of that W; the released code fits it
    to the logarithm. Key heads that several query heads share have one W.

    Args:
      max_len: positions lie below it.
      decay: multiplies each logit by decay^|i - j|, 0.98 in the released code; None does not.
      head_dim, kv_heads: H and K, from the model.

    Raises:
      ValueError: at call, positions that are not integers [B, L] or, where they are known, outside
        0 .. max_len - 1; those that are traced give NaN.

    Reference: Kogkalidis, Bernardy, Garg, arXiv 2312.16045.

    Example:
      >>> import posenc_jax as pj
      >>> part, tok = pj.make('algebraic_pe()', head_dim=2, kv_heads=1), pj.Tokens.of(length=3)
      >>> part.turned(jnp.eye(2)[None, :1].repeat(3, 1)[:, :, None], tok)[0, :, 0].round(2).tolist()
      [[1.0, 0.0], [0.54, -0.84], [-0.42, -0.91]]
    """

    components = 1

    def __init__(
        self,
        max_len: Length = 32768,
        decay: Decay = None,
        head_dim: Annotated[int, Multiple(2)] = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        self._configure(max_len, decay, head_dim, kv_heads)

    def steps(self, tq, tk) -> Num[Array, '#B T S']:
        """Distances `|i - j|`."""
        q, k = self.counts(tq)[..., 0], self.counts(tk)[..., 0]
        return jnp.abs(q[:, :, None] - k[:, None])


class DecayedSequence(AlgebraicPE, where=lambda given: given['decay'] is not None):
    """With `decay`, which changes the logits."""

    logits = decayed


@register(
    'algebraic_grid',
    kind='encoding',
    card=Card(
        name='Algebraic PE, grids',
        example='algebraic_grid()',
        use_when=(
            'You train a model on a grid and want rotations that are learned; the '
            'measured claim about images is mixed.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class AlgebraicGrid(_Powers):
    """Multiplies the halves of queries and keys by powers of two trained rotations of each head.

    `q'_i = [W_x^x | W_y^y] q_i`, `k'_j = [W_x^x | W_y^y] k_j`, `W = exp(B - B^T)` with x the column
    and y the row of the token. Positions are (row, column). Logits depend on their differences
    alone. A token that is not on the grid, such as a class token at (-1, -1), is not turned. Each W
    starts as that of `algebraic_pe`.

    Differs from the paper: its code turns keys with the matrices of the queries, which are the same
    in self-attention alone. As `algebraic_pe`.

    Args:
      max_len: rows and columns lie below it.
      decay: multiplies each logit by decay^d, d the Euclidean distance rounded down, 0.98 in the
        released code; None does not. A token that is not on the grid counts as (0, 0).
      head_dim, kv_heads: H and K, from the model.

    Raises:
      ValueError: at call, positions that are not integers [B, L, 2] or, where they are known,
        outside 0 .. max_len - 1; those that are traced give NaN.

    Reference: Kogkalidis, Bernardy, Garg, arXiv 2312.16045.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('algebraic_grid()', head_dim=4, kv_heads=1)
      >>> cell = pj.Tokens.of(positions=[[[0, 1]]])
      >>> part.turned(jnp.ones((1, 1, 1, 4)), cell).ravel().round(2).tolist()
      [1.38, -0.3, 1.0, 1.0]
    """

    components = 2

    def __init__(
        self,
        max_len: Side = 4096,
        decay: Decay = None,
        head_dim: Annotated[int, Multiple(4)] = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        self._configure(max_len, decay, head_dim, kv_heads)

    def counts(self, tok):
        return super().counts(tok)[..., ::-1]  # columns first

    def steps(self, tq, tk) -> Num[Array, '#B T S']:
        """Euclidean distances of cells, rounded down."""
        return whole_length(self.counts(tq)[:, :, None] - self.counts(tk)[:, None])


class DecayedGrid(AlgebraicGrid, where=lambda given: given['decay'] is not None):
    """With `decay`, which changes the logits."""

    logits = decayed
