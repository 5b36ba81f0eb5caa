"""Point Transformer's relative positions in dot-product attention: a small network of the offset of
two points, in the logits and in the values.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.products import over_batch, weighted_sum
from posenc_jax.protocol.bounds import CONTEXT, Size
from posenc_jax.protocol.encoding import Encoding, drawn_uniform
from posenc_jax.protocol.families import check_heads
from posenc_jax.protocol.registry import Card, register


def point_transformer_bias_units(
    q_pos: Num[Array, '#B T P'],
    k_pos: Num[Array, '#B S P'],
    w1: Float[Array, 'hidden P'],
    b1: Float[Array, 'hidden'],
) -> Float[Array, '#B T S hidden']:
    """`relu(W1 (p_i - p_j) + b1)` of every pair, float32.

    Example:
      >>> here, there = jnp.array([[[3.0, 0.0]]]), jnp.array([[[1.0, 4.0]]])
      >>> point_transformer_bias_units(here, there, jnp.eye(2), jnp.array([0.5, 5.0])).tolist()
      [[[[2.5, 1.0]]]]
    """
    offset = q_pos.astype(jnp.float32)[:, :, None] - k_pos.astype(jnp.float32)[:, None]
    return jax.nn.relu(jnp.matmul(offset, w1.T, precision=jax.lax.Precision.HIGHEST) + b1)


def check_points(user: str, pos: Num[Array, '#B L *P'], components: int) -> None:
    """Raises ValueError unless positions are [B, L, components]."""
    if pos.shape[2:] != (components,):
        raise ValueError(
            f'{user}(components={components}) needs positions [B, L, {components}], got '
            f'{pos.shape}; give them by Tokens.of(positions=...)'
        )


@register(
    'point_transformer_bias',
    kind='encoding',
    card=Card(
        name='Point Transformer bias',
        example='point_transformer_bias()',
        use_when=(
            'You have clouds of points, which may be shifted, and a plain transformer; '
            'the measured claim is open.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class PointTransformerBias(Encoding):
    """Adds a trained function of the offset of two points to the logits, and one to the values.

    `logit_ij = q_i . k_j / sqrt(H) + w2_h . z_ij`, `out_i = sum_j a_ij (v_j + U_h z_ij)`, `z_ij =
    relu(W1 (p_i - p_j) + b1)`. The hidden units z are the same for all heads. Positions are
    coordinates, as they are; shifting all points changes nothing. The units are summed with the
    weights of attention first and then mapped by U, so no pair has an array as wide as a head.

    Differs from the paper, which has vector attention over neighbours (the mixer
    `point_transformer`): this is its position network for the attention of a transformer over all
    points, with a number for each head in the place of a vector. There is no batch norm between W1
    and the ReLU, and no bias behind w2 and U, which the softmax and the biases of a layer have.

    Args:
      components: P, 3 for points in space.
      hidden: units of the network; 3 in the paper.
      values: whether values get a term too.
      heads, head_dim: N and H, from the model.

    Raises:
      ValueError: at call, positions with another number of components, or another number of heads.

    Reference: Zhao, Jiang, Jia, Torr, Koltun, arXiv 2012.09164.
    """

    def __init__(
        self,
        components: Size = 3,
        hidden: Size = 3,
        values: bool = True,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.components = components
        drawn = lambda fan_in, shape, *axes: drawn_uniform(rngs, shape, fan_in**-0.5, axes)
        self.w1 = drawn(components, (hidden, components), None, None)
        self.b1 = drawn(components, (hidden,), None)
        self.w2 = drawn(hidden, (heads, hidden), 'heads', None)
        of_values = lambda: drawn(hidden, (heads, hidden, head_dim), 'heads', None, None)
        self.w_values: Any = of_values() if values else None

    def _units(self, tq, tk):
        for tok in (tq, tk):
            check_points('point_transformer_bias', tok.pos, self.components)
        return point_transformer_bias_units(tq.pos, tk.pos, self.w1[...], self.b1[...])

    def logits(self, s, q, k, tq, tk, seen, carry):
        check_heads('point_transformer_bias', self.w2[...], s)
        exact = jax.lax.Precision.HIGHEST
        bias = jnp.einsum('btsu,nu->bnts', self._units(tq, tk), self.w2[...], precision=exact)
        return s + over_batch(bias, s.shape[0]), carry

    def collect(self, w, v, tq, tk):
        units, exact = self._units(tq, tk), jax.lax.Precision.HIGHEST
        units = jnp.broadcast_to(units, (w.shape[0], *units.shape[1:]))
        sums = jnp.einsum('bnts,btsu->bntu', w, units, precision=exact)
        added = jnp.einsum('bntu,nuh->bnth', sums, self.w_values[...], precision=exact)
        return weighted_sum(w, v) + added


class PointTransformerLogits(PointTransformerBias, where=lambda given: not given['values']):
    """The term of the logits alone."""

    collect = Encoding.collect
