"""Bit planes: whole numbers bit by bit, with the number of the bit as a coordinate."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from posenc_jax.fields.network import FieldNetwork
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.registry import Card, register

MAX_BITS = 16


def bits_of(values: Int[np.ndarray, '*S'], bits: int) -> Int[np.ndarray, '*S K']:
    """The bits of whole numbers, the least significant first.

    Args:
      values: numbers in 0 .. 2^bits - 1.
      bits: how many bits, 1 .. 16.

    Raises:
      ValueError: another number of bits, or a number that does not fit.
    """
    values = np.asarray(values)
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f'bits must lie in 1 .. {MAX_BITS}, got {bits}')
    if values.size and not 0 <= values.min() <= values.max() < 2**bits:
        raise ValueError(
            f'values of {bits} bits lie in 0 .. {2**bits - 1}, got {values.min()} .. {values.max()}'
        )
    return (values[..., None] >> np.arange(bits)) & 1


def from_bits(planes: Int[np.ndarray, '*S K']) -> Int[np.ndarray, '*S']:
    """The whole numbers of bits, the least significant first: `sum_k 2^k bit_k`."""
    planes = np.asarray(planes)
    return (planes.astype(np.int64) << np.arange(planes.shape[-1])).sum(-1)


def bit_coordinates(bits: int) -> Float[np.ndarray, ' K']:
    """The coordinate of every bit, from -1 for the least significant to 1."""
    return np.linspace(-1.0, 1.0, bits)


@register(
    'bit_plane_inr',
    kind='field',
    card=Card(
        name='Bit-plane INR',
        example='bit_plane_inr(siren(width=32, layers=2))',
        needs_training=True,
    ),
)
class BitPlaneInr(FieldNetwork):
    """A network of logits of bits: the last coordinate of a point says which bit of the value it
    asks for, from -1 (the least significant) to 1.

    `v = sum_k 2^k round(sigmoid(f(row, column, k)))`. The task `bit_planes` makes such points of a
    picture; its loss is the binary cross entropy. An error rate of 0 means that whole numbers are
    stored without loss. Differs from the paper: rows and columns are centres of pixels, `-1 + 2 (i
    + 1/2) / n`, where the released code has the n values from -1 to 1 (`bit_planes(grid='ends')`),
    so that pictures of all resolutions show the same square; the axis of bits is as there. The
    network of the paper is `siren(width=512, layers=5)`; any other may be given.

    Args:
      inner: the network that gives the logits.
      components: how many coordinates a point has, the bit included.

    Raises:
      ValueError: points without another coordinate than the bit.

    Reference: Han et al., arXiv 2502.21001.

    Example:
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('bit_plane_inr(siren(width=8, layers=2))', features=3, outputs=1)
      >>> network.whole_numbers(jnp.zeros((4, 4, 2)), bits=8).shape
      (4, 4, 1)
    """

    def __init__(self, inner: FieldNetwork, components: int = CONTEXT):
        if components < 2:
            raise ValueError(
                f'bit_plane_inr reads a bit beside the coordinates of a point, got {components} '
                'coordinate; the task bit_planes adds it'
            )
        self.inner, self.components = inner, components
        self.takes_features = inner.takes_features
        self.inputs = inner.inputs
        self.outputs = inner.outputs

    def values(self, x, *, key=None, progress=None):
        return self.inner.values(x, key=key, progress=progress)

    def whole_numbers(self, coords: Float[Array, '*S d'], bits: int) -> Int[np.ndarray, '*S out']:
        """The whole numbers at points without a bit, from all their bits. For networks of the
        coordinates themselves.

        Args:
          coords: [..., d], d one less than `components`.
          bits: how many bits a number has.
        """
        of_bit = jnp.asarray(bit_coordinates(bits), jnp.float32)[:, None]
        wide = jnp.broadcast_to(coords[..., None, :], (*coords.shape[:-1], bits, coords.shape[-1]))
        column = jnp.broadcast_to(of_bit, (*wide.shape[:-1], 1))
        points = jnp.concatenate([wide, column], axis=-1)
        logits = self(points if self.takes_features else None, points)
        return from_bits(np.moveaxis(np.asarray(logits > 0, np.int64), -2, -1))
