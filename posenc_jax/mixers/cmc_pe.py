"""CMC-PE: the features of another stream at the same time, added as a positional encoding is."""

from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.checks import is_size
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register

Align = Literal['linear', 'nearest']


def aligned(
    other: Float[Array, '... S D'], length: int, align: Align = 'linear'
) -> Float[Array, '... length D']:
    """The features of a stream at the times `(t + 1/2) / length` of the tokens of another.

    Both streams cover the same span of time, and token s of S has the time `(s + 1/2) / S`. Before
    the first and after the last of these times the features stay the same.

    Args:
      other: the stream that is read.
      length: how many tokens the other stream has.
      align: 'linear' interpolates between the two tokens around a time; 'nearest' takes the token
        whose interval holds it.

    Raises:
      SpecError, ValueError: an unknown alignment; a length below 1.
    """
    check_choice('aligned align', align, get_args(Align))
    if not is_size(length):
        raise ValueError(f'aligned needs a length of at least 1, got {length}')
    size = other.shape[-2]
    twice = (2 * np.arange(length) + 1) * size  # 2 length times a time in tokens of `other`
    if align == 'nearest':
        return other[..., twice // (2 * length), :]
    place = np.clip(twice / (2 * length) - 0.5, 0, size - 1)
    before = np.floor(place).astype(int)
    share = jnp.asarray(place - before, jnp.float32)[:, None].astype(other.dtype)
    after = np.minimum(before + 1, size - 1)
    return (1 - share) * other[..., before, :] + share * other[..., after, :]


def normalized(x: Float[Array, '... D'], epsilon: float = 1e-6) -> Float[Array, '... D']:
    """Every vector less its mean, divided by its standard deviation, in float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def conditioned(
    x: Float[Array, '... T D'],
    other: Float[Array, '... S E'],
    w: Float[Array, 'E D'],
    align: Align = 'linear',
) -> Float[Array, '... T D']:
    """`x_t + align(norm(other))_t W`, in the dtype of x."""
    read = aligned(normalized(other), x.shape[-2], align)
    return x + (read @ w.astype(jnp.float32)).astype(x.dtype)


@register(
    'cmc_pe',
    kind='mixer',
    card=Card(
        name='CMC-PE',
        example='CrossModalConditioning(64, 32)',
        use_when=(
            'You have two streams at the same times and want to join them without cross '
            'attention; the measured claim is mixed.'
        ),
        door='embed',
        needs_training=True,
    ),
)
class CrossModalConditioning(nnx.Module):
    """Adds to the tokens of two streams what the other one has at the same time, in place of cross
    attention.

    `a_t + align(norm(b))_t W_ba` and `b_s + align(norm(a))_s W_ab`. Both read the streams as they
    were before. The projections are zero at first, so that the streams are not conditioned until
    they are trained. The streams keep positional encodings of their own. To decode a token of a, b
    is needed up to the first token behind its time ('linear'), or to the one whose interval holds
    it ('nearest'). Differs from the paper: the alignment, the norm and the projections are our
    interpretation.

    Args:
      width_a, width_b: of the token vectors.
      align: how features of other times are found, see `aligned`.

    Raises:
      ValueError: at call, streams of other widths or batches.

    Reference: Ishii, Hayakawa, Shibuya, Mitsufuji, arXiv 2409.17550.

    Example:
      >>> layer = CrossModalConditioning(4, 2)
      >>> a, b = layer(jnp.ones((1, 6, 4)), jnp.ones((1, 3, 2)))
      >>> a.shape, b.shape, float(a.sum())
      ((1, 6, 4), (1, 3, 2), 24.0)
    """

    def __init__(self, width_a: Size, width_b: Size, align: Align = 'linear'):
        self.align = align
        self.w_ba = nnx.Param(jnp.zeros((width_b, width_a), jnp.float32), axes=(None, 'width'))
        self.w_ab = nnx.Param(jnp.zeros((width_a, width_b), jnp.float32), axes=(None, 'width'))

    def __call__(
        self, a: Float[Array, 'B T D'], b: Float[Array, 'B S E']
    ) -> tuple[Float[Array, 'B T D'], Float[Array, 'B S E']]:
        """Both streams, each conditioned by the other."""
        expected = self.w_ab.shape
        if (a.shape[-1], b.shape[-1]) != expected or a.shape[0] != b.shape[0]:
            raise ValueError(
                f'cmc_pe joins streams [B, T, {expected[0]}] and [B, S, {expected[1]}], got '
                f'{a.shape} and {b.shape}'
            )
        return (
            conditioned(a, b, self.w_ba[...], self.align),
            conditioned(b, a, self.w_ab[...], self.align),
        )
