"""ROPE: codes of the reading order among the neighbours of a word in a graph of words. It has
nothing to do with rotary embeddings.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.methods.sinusoidal import sinusoidal_table
from posenc_jax.protocol.checks import is_size
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register

Origin = Literal['first', 'self']
Feature = Literal['sinusoid', 'code', 'both', 'none']


@register(
    'rope_reading_order',
    kind='graph',
    card=Card(
        name='ROPE',
        example='reading_order_codes(order, adjacency)',
        use_when=('You have words on forms or pages, whose neighbours have an order of reading.'),
        share='model',
        relative=True,
    ),
)
def reading_order_codes(
    order: Num[Array, 'n'], adjacency: Bool[Array, 'n n'], origin: Origin = 'first'
) -> Int[Array, 'n n']:
    """The rank of every neighbour of a word in the reading order of its neighbourhood.

    `c(i, n) = |{m in N(i): r(m) < r(n)}|` is how many words of N(i) are read before n, and N(i)
    holds i itself. It only depends on the order within N(i): more words elsewhere change nothing,
    and codes are bounded by the degree. Differs from the paper: whether the paper counts from the
    first neighbour or from the word itself is not certain, so both are offered.

    Args:
      order: r, the place of each word in the reading order of the document; ties are broken by the
        index.
      adjacency: row i marks the neighbours of word i; i is added to them.
      origin: 'first' counts 0, 1, ... from the first of N(i); 'self' is negative before i, 0 at i,
        and positive after it.

    Returns:
      Codes, 0 where n is no neighbour of i.

    Raises:
      ValueError: another number of words in `order` than in `adjacency`.

    Reference: Lee et al., arXiv 2106.10786.

    Example:
      >>> near = jnp.zeros((4, 4), bool).at[1].set(jnp.array([True, True, True, False]))
      >>> reading_order_codes(jnp.array([5, 2, 9, 0]), near)[1].tolist()
      [1, 0, 2, 0]
    """
    n = adjacency.shape[0]
    if order.shape != (n,):
        raise ValueError(
            f'reading_order_codes takes the order of {n} words, [{n}], got {order.shape}'
        )
    near = adjacency | jnp.eye(n, dtype=bool)
    read = jnp.argsort(order, stable=True)
    sorted_near = near[:, read].astype(jnp.int32)
    before = jnp.cumsum(sorted_near, axis=1) - sorted_near
    codes = jnp.zeros((n, n), jnp.int32).at[:, read].set(before)
    if origin == 'self':
        codes = codes - jnp.diagonal(codes)[:, None]
    return jnp.where(near, codes, 0)


def reading_order_features(
    codes: Int[Array, 'n m'], width: int = 8, feature: Feature = 'sinusoid'
) -> Float[Array, 'n m F']:
    """The codes as features: interleaved sines and cosines of `width`, the code itself, both, or
    none of them (F = 0).

    Raises:
      SpecError, ValueError: an unknown feature; a width below 2.
    """
    check_choice('reading_order_features feature', feature, get_args(Feature))
    parts = [jnp.zeros((*codes.shape, 0))]
    if feature in ('sinusoid', 'both'):
        parts.append(sinusoidal_table(codes, width))
    if feature in ('code', 'both'):
        parts.append(codes[..., None].astype(jnp.float32))
    return jnp.concatenate(parts, axis=-1)


def gabriel_graph(
    points: Num[np.ndarray, 'n d'], tolerance: float = 1e-9
) -> Bool[np.ndarray, 'n n']:
    """The beta-skeleton for beta = 1: two points are joined if no other point lies inside the ball
    that has them at the ends of a diameter.

    A point on its surface, up to `tolerance` of the squared distance, does not keep them apart. It
    runs on the host, in O(n^3) time and O(n^2) memory.
    """
    points = np.asarray(points, np.float64)
    square = ((points[:, None] - points) ** 2).sum(-1)
    joined = np.zeros(square.shape, bool)
    for i, own in enumerate(square):
        inside = own + square < (own * (1 - tolerance))[:, None]  # of the ball of i and each row
        joined[i] = ~inside.any(1)
    np.fill_diagonal(joined, False)
    return joined


def word_graph(boxes: Num[np.ndarray, 'n 4'], points: int = 1) -> Bool[np.ndarray, 'n n']:
    """Which words are neighbours: a `gabriel_graph` of points in their boxes. Two words are
    neighbours if any of their points are joined.

    Args:
      boxes: left, top, right and bottom of the box of each word.
      points: how many points a word has, evenly spaced along the middle line of its box; 1 is the
        centre. Long words need more, or they only have neighbours near their centres.

    Raises:
      ValueError: points below 1, or boxes that end before they begin.
    """
    boxes = np.asarray(boxes, np.float64)
    if points < 1:
        raise ValueError(f'word_graph needs at least 1 point in a box, got {points}')
    if wrong := [b.tolist() for b in boxes if not (b[0] <= b[2] and b[1] <= b[3])][:1]:
        raise ValueError(f'word_graph: a box is left, top, right, bottom, got {wrong[0]}')
    share = (np.arange(points) + 0.5) / points
    x = boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * share
    y = np.broadcast_to(boxes[:, 1:2] / 2 + boxes[:, 3:] / 2, x.shape)
    n = len(boxes)
    joined = gabriel_graph(np.stack([x, y], axis=-1).reshape(n * points, 2))
    joined = joined.reshape(n, points, n, points).any((1, 3))
    np.fill_diagonal(joined, False)
    return joined


class ReadingOrderConvolution(nnx.Module):
    """A graph convolution whose messages carry the code of their sender.

    `h'_i = W_s h_i + mean over n in N(i) of relu(W_m [h_n | f(c(i, n))] + b)`. The relu stands
    inside the mean, since otherwise the code could not act together with h_n.

    Args:
      width: of h, the same before and after.
      code_width: of the sines and cosines of a code.
      feature, origin: see `reading_order_features` and `reading_order_codes`; 'none' is the plain
        convolution.

    Raises:
      SpecError, ValueError: an unknown feature or origin; a width below 1, a code_width below 2.
    """

    def __init__(
        self,
        width: int,
        code_width: int = 8,
        *,
        feature: Feature = 'sinusoid',
        origin: Origin = 'first',
        rngs: nnx.Rngs,
    ):
        self.feature = check_choice('ReadingOrderConvolution feature', feature, get_args(Feature))
        self.origin = check_choice('ReadingOrderConvolution origin', origin, get_args(Origin))
        if not is_size(width) or code_width < 2:
            raise ValueError(
                'ReadingOrderConvolution needs a width of at least 1 and a code_width of at least '
                f'2, got {width} and {code_width}'
            )
        self.code_width = code_width
        codes = {'none': 0, 'code': 1, 'sinusoid': code_width, 'both': code_width + 1}[feature]
        normal = lambda rows: jax.random.normal(rngs.params(), (rows, width)) * rows**-0.5
        self.w_self = nnx.Param(normal(width), axes=('width', None))
        self.w_message = nnx.Param(normal(width + codes), axes=(None, 'width'))
        self.b = nnx.Param(jnp.zeros(width, jnp.float32), axes=('width',))

    def __call__(
        self, h: Float[Array, 'n D'], order: Num[Array, 'n'], adjacency: Bool[Array, 'n n']
    ) -> Float[Array, 'n D']:
        """The new vectors of the words; arguments as for `reading_order_codes`."""
        codes = reading_order_codes(order, adjacency, self.origin)
        features = reading_order_features(codes, self.code_width, self.feature)
        near = (adjacency | jnp.eye(len(codes), dtype=bool))[..., None]
        w_h, w_f = jnp.split(self.w_message[...], [h.shape[1]])
        message = jax.nn.relu((h @ w_h)[None] + features @ w_f + self.b[...])
        mean = jnp.where(near, message, 0).sum(1) / near.sum(1)
        return h @ self.w_self[...] + mean
