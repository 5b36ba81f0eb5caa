"""STRING: relative encodings of several coordinates, with a trained basis in which they rotate."""

from typing import Annotated

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.base.rotations import cayley
from posenc_jax.methods.md_lrpe import md_lrpe_angles, md_lrpe_frequencies
from posenc_jax.methods.rope import rotate
from posenc_jax.methods.turned import Turned, has_place, moved_by
from posenc_jax.protocol.bounds import CONTEXT, Base, Ge, Multiple, Size
from posenc_jax.protocol.registry import Card, register


def string_cayley_basis(entries: Float[Array, 'K M'], width: int) -> Float[Array, 'K H H']:
    """`P = (I - S) (I + S)^-1` of the skew S whose upper triangle has these M = H (H-1) / 2 entries
    row by row, float32.

    Example:
      >>> string_cayley_basis(jnp.ones((1, 1)), 2)[0].round(3).tolist()
      [[0.0, -1.0], [1.0, 0.0]]
    """
    upper = jnp.zeros((len(entries), width, width), jnp.float32)
    upper = upper.at[:, *np.triu_indices(width, 1)].set(entries.astype(jnp.float32))
    return cayley(upper - upper.mT)


def string_cayley(
    x: Num[Array, 'B L heads H'],
    pos: Num[Array, '#B L P'],
    basis: Float[Array, 'K H H'],
    base: float = 10000.0,
) -> Num[Array, 'B L heads H']:
    """Queries or keys `RoPE(p) P x`: first the basis P of the key head, then the rotation.

    Each coordinate turns planes (k, k + H/2) of its own, see `md_lrpe_angles`. Tokens that are not
    on the grid are not rotated.
    """
    pairs = x.shape[-1] // 2
    frequencies = md_lrpe_frequencies(pairs, pos.shape[-1], base)
    angles = md_lrpe_angles(pos, frequencies, pairs)
    angles = jnp.where(has_place(pos)[..., None, None], angles, 0.0)
    return rotate(moved_by(x, basis), angles).astype(x.dtype)


def string_circulant(
    x: Num[Array, 'B L heads H'], pos: Num[Array, '#B L P'], columns: Float[Array, 'P K H']
) -> Num[Array, 'B L heads H']:
    """Queries or keys `exp(sum_a p_a (C_a - C_a^T)) x` with circulant C_a, in the Fourier basis.

    In the Fourier basis direction j turns by `2 Im(fft(c_a))_j` radians for each unit of p_a. The
    directions 0 and H/2 do not turn. Tokens that are not on the grid are left as they are.

    Args:
      pos: coordinates.
      columns: first columns c_a of the matrices, for each coordinate and key head.
    """
    # XLA forgets a transposition behind a product of constants, so it stands in front of it.
    turns = 2 * _waves(jnp.moveaxis(columns, 0, 1).astype(jnp.float32))[1]
    angles = phase(pos[:, :, None], turns).sum(-2)
    angles = jnp.where(has_place(pos)[..., None, None], angles, 0.0)
    angles = angles.repeat(x.shape[2] // angles.shape[2], axis=2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    real, imaginary = _waves(x.astype(jnp.float32))
    turned = real * cos - imaginary * sin, real * sin + imaginary * cos
    return _of_waves(*turned, x.shape[-1]).astype(x.dtype)


def _waves(x: Array) -> tuple[Array, Array]:
    """Real and imaginary part of the discrete Fourier transform of real numbers, by products with
    its matrix: it is small, and XLA's transform on a CPU refuses arrays in some orders of memory.
    """
    matrix = np.fft.rfft(np.eye(x.shape[-1]))
    parts = jnp.asarray(matrix.real, x.dtype), jnp.asarray(matrix.imag, x.dtype)
    real, imaginary = (jnp.matmul(x, part, precision='highest') for part in parts)
    return real, imaginary


def _of_waves(real: Array, imaginary: Array, width: int) -> Array:
    """The numbers that have these waves."""
    unit = np.eye(width // 2 + 1)
    matrices = np.fft.irfft(unit, width), np.fft.irfft(1j * unit, width)
    parts = zip((real, imaginary), matrices)
    first, second = (
        jnp.matmul(part, jnp.asarray(matrix, part.dtype), precision='highest')
        for part, matrix in parts
    )
    return first + second


def string_circulant_start(
    width: int, components: int = 1, base: float = 10000.0
) -> Float[Array, 'P H']:
    """First columns whose directions turn by the frequencies of `md_lrpe`: each coordinate turns
    directions of its own.
    """
    turning = (width - 1) // 2
    frequencies = md_lrpe_frequencies(turning, components, base)
    one = jnp.eye(components)[None]  # a unit of each coordinate, whose angles are small
    turns = md_lrpe_angles(one, frequencies, turning)[0, :, 0]
    rest = width // 2 - turning
    half = jnp.pad(turns / 2, ((0, 0), (1, rest)))
    return _of_waves(jnp.zeros_like(half), half, width)


@register(
    'string_cayley',
    kind='encoding',
    card=Card(
        name='Cayley-STRING',
        example='string_cayley(components=2)',
        relative=True,
        needs_training=True,
    ),
)
class StringCayley(Turned):
    """Rotates queries and keys in a trained orthogonal basis of each head.

    `q'_i = RoPE(p_i) P q_i`, `k'_j = RoPE(p_j) P k_j`, `P = (I - S) (I + S)^-1` with S skew. Every
    relative encoding whose generators commute is of this form up to a factor on the left, which
    cancels in the logits. So they depend on the differences of all coordinates alone. P acts before
    the rotation; behind it, it would cancel too. S is zero at first, where it is `rope`, and with
    several coordinates `md_lrpe`, whose frequencies it has.

    Whole positions with several components are cells of a grid; a token in front of it, with
    negative ones alone, is not rotated. Fractional positions are points.

    Differs from the paper: the frequencies are fixed and the first S is zero, since the paper gives
    no first values. Key heads that several query heads share have one basis.

    Args:
      components: number of coordinates; positions are [B, L, P], for P = 1 also [B, L].
      base: base of the frequencies.
      head_dim, kv_heads: H and K, from the model.

    Raises:
      ValueError: more components than pairs of features; at call, positions with another number of
        components.

    Reference: Schenck et al., arXiv 2502.02562.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('string_cayley(components=3)', head_dim=6, kv_heads=2)
      >>> part.entries.shape  # of S, above the diagonal
      (2, 15)
    """

    def __init__(
        self,
        components: Size = 1,
        base: Base = 10000.0,
        head_dim: Annotated[int, Multiple(2)] = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        _check_directions('string_cayley', components, head_dim, head_dim // 2)
        self.components, self.base, self.head_dim = components, base, head_dim
        entries = jnp.zeros((kv_heads, head_dim * (head_dim - 1) // 2), jnp.float32)
        self.entries = nnx.Param(entries, axes=('kv_heads', None))

    def _turns(self):
        """The basis is made once, for queries and keys."""
        basis = string_cayley_basis(self.entries[...], self.head_dim)
        return lambda x, tok: string_cayley(x, self.positions(tok), basis, self.base)

    def turned(self, x, tok):
        return self._turns()(x, tok)

    def project(self, q, k, v, tq, tk, x=None):
        self.check_widths(q, k)
        turn = self._turns()
        return turn(q, tq), turn(k, tk), v, tq, tk


@register(
    'string_circulant',
    kind='encoding',
    card=Card(
        name='Circulant-STRING',
        example='string_circulant(components=2)',
        use_when=(
            'You train on images or points and want learned rotations that depend on offsets alone.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class StringCirculant(Turned):
    """Turns queries and keys by exponentials of trained circulant matrices, which commute.

    `q'_i = exp(sum_a p_ia L_a) q_i`, `k'_j = exp(sum_a p_ja L_a) k_j`, `L_a = C_a - C_a^T`. The
    matrices C_a are circulant and trained by their first columns, for each coordinate and head.
    Logits depend on the differences of all coordinates alone. It is `rope` with trained frequencies
    in the Fourier basis, where one direction, and for even H a second one, never turns.

    Whole positions with several components are cells of a grid; a token in front of it, with
    negative ones alone, is not turned. Fractional positions are points.

    Differs from the paper: the first columns give the frequencies of `md_lrpe`, since the paper
    gives no first values. Key heads that several query heads share have one set of columns.

    Args:
      components: number of coordinates; positions are [B, L, P], for P = 1 also [B, L].
      base: base of the first frequencies.
      head_dim, kv_heads: H and K, from the model.

    Raises:
      ValueError: more components than directions that turn; at call, positions with another number
        of components.

    Reference: Schenck et al., arXiv 2502.02562.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('string_circulant(components=2)', head_dim=8, kv_heads=1)
      >>> part.columns.shape, int((jnp.abs(jnp.fft.rfft(part.columns[...]).imag) > 1e-6).sum())
      ((2, 1, 8), 3)
    """

    def __init__(
        self,
        components: Size = 1,
        base: Base = 10000.0,
        head_dim: Annotated[int, Ge(3)] = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        _check_directions('string_circulant', components, head_dim, (head_dim - 1) // 2)
        self.components, self.head_dim = components, head_dim
        first = string_circulant_start(head_dim, components, base)[:, None]
        columns = jnp.broadcast_to(first, (components, kv_heads, head_dim))
        self.columns = nnx.Param(columns, axes=(None, 'kv_heads', None))

    def turned(self, x, tok):
        return string_circulant(x, self.positions(tok), self.columns[...])


def _check_directions(key: str, components: int, head_dim: int, most: int) -> None:
    if components > most:
        raise ValueError(
            f'{key} components must lie in 1 .. {most}, the number of planes of '
            f'head_dim={head_dim} that turn, got {components}'
        )
