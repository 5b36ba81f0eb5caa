"""Transformer-XL: sinusoids of the distance, and two trained vectors u and v for all queries."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.base.products import heads_first
from posenc_jax.protocol.bounds import CONTEXT, Count, NonNegative
from posenc_jax.protocol.encoding import Encoding, drawn_normal
from posenc_jax.protocol.errors import check_number
from posenc_jax.protocol.families import check_heads, signed_distance
from posenc_jax.protocol.registry import Card, register


def transformer_xl_frequencies(model_dim: int, base: float = 10000.0) -> np.ndarray:
    """`w_t = base^(-2t / D)`, t = 0 .. D/2 - 1, float64, radians per position.

    Raises:
      ValueError: an odd model width, or a base that is not positive.
    """
    if model_dim % 2:
        raise ValueError(
            'transformer_xl has a sine and a cosine per frequency and needs an even model_dim, '
            f'got {model_dim}'
        )
    check_number('transformer_xl base', base, above=0)
    return base ** (-np.arange(0, model_dim, 2) / model_dim)


def transformer_xl_table(
    pos: Num[Array, '#B L'], frequencies: np.ndarray
) -> Float[Array, '#B L D']:
    """`R_p = [sin(p w), cos(p w)]`, all sines first."""
    angle = phase(pos, frequencies)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def transformer_xl_turned(
    a: Float[Array, 'B T N D'], pos: Num[Array, '#B T'], frequencies: np.ndarray
) -> Float[Array, 'B T N D']:
    """The vector b with `b . R_q = a . R_(p - q)` for every position q; p is the token's position.

    Example:
      >>> w = transformer_xl_frequencies(2)
      >>> b = transformer_xl_turned(jnp.array([[[[1.0, 0.0]]]]), jnp.array([[3]]), w)
      >>> (
      ...     (b @ transformer_xl_table(jnp.array([[1]]), w)[0, 0]).ravel().round(4).tolist(),
      ...     round(float(jnp.sin(2.0)), 4),
      ... )
      ([0.9093], 0.9093)
    """
    sin, cos = jnp.split(transformer_xl_table(pos, frequencies)[:, :, None], 2, axis=-1)
    of_sin, of_cos = jnp.split(a, 2, axis=-1)
    return jnp.concatenate([of_cos * sin - of_sin * cos, of_sin * sin + of_cos * cos], axis=-1)


@register(
    'transformer_xl',
    kind='encoding',
    card=Card(
        name='Transformer-XL',
        example='transformer_xl(clamp_len=11)',
        use_when=(
            'You want learned terms of the distance that depend on the content, as a baseline.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class TransformerXL(Encoding):
    """Adds query-distance products and trained vectors u, v to the logits; makes the logits.

    `logit_ij = ((q_i + u) . k_j + (q_i + v) . W_r R_d) / sqrt(H)`, `d = p_i - p_j`, `R_d = [sin(d
    w), cos(d w)]` of model width D with `w_t = base^(-2t/D)`, `W_r` of shape D x N H without bias;
    later keys have negative d. u and v do not depend on the query.

    Differs from the paper: every layer has its own u, v and W_r (the code's `untie_r`). The paper
    shares u and v among all layers, but not W_r; here an encoding is shared as a whole
    (`share='model'` shares all three). The paper shifts a table of distances; here
    `a . R_(i-j) = b_i . R_j`, where b_i is the vector `a = W_r (q_i + v)` rotated by the angles of
    position i. So a block needs one more inner product, of width D, for any positions in any order.
    Segment memory is in `posenc_jax.lab.decoding.recurrence`; `train.segment` and `train.memory` of
    a config train with it.

    Args:
      clamp_len: larger distances are replaced by it; None leaves them.
      base: base of the frequencies.
      std: standard deviation of the initial u, v and W_r.
      heads, head_dim, model_dim: from the model.

    Raises:
      ValueError: an odd model width, a base that is not positive.

    Reference: Dai, Yang, Yang, Carbonell, Le, Salakhutdinov, arXiv 1901.02860.
    """

    traits = frozenset({'reads_unrotated'})

    def __init__(
        self,
        clamp_len: Count | None = None,
        base: float = 10000.0,
        std: NonNegative = 0.02,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        transformer_xl_frequencies(model_dim, base)  # checks both
        self.base, self.clamp_len = base, clamp_len
        self.u = drawn_normal(rngs, (heads, head_dim), std, ('heads', None))
        self.v = drawn_normal(rngs, (heads, head_dim), std, ('heads', None))
        size = model_dim, heads, head_dim
        self.kernel = drawn_normal(rngs, size, std, ('width', 'heads', None))

    @property
    def frequencies(self) -> np.ndarray:
        return transformer_xl_frequencies(self.kernel.shape[0], self.base)

    def project(self, q, k, v, tq, tk, x=None):
        check_heads('transformer_xl', self.u[...], heads_first(q))
        wide = q.astype(jnp.float32)
        a = jnp.einsum(
            'btnh,dnh->btnd', (wide + self.v[...]) * q.shape[-1] ** -0.5, self.kernel[...]
        )
        feature = {'turned': transformer_xl_turned(a, tq.pos, self.frequencies)}
        if self.clamp_len is not None:
            end = transformer_xl_table(jnp.full((1, 1), self.clamp_len), self.frequencies)
            feature['clamped'] = (a @ end[0, 0])[..., None]
        return (wide + self.u[...]).astype(q.dtype), k, v, tq.with_feats(transformer_xl=feature), tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        feature, table = tq.feats['transformer_xl'], transformer_xl_table(tk.pos, self.frequencies)
        turned = heads_first(feature['turned'])
        if len(table) == 1:  # positions shared by the batch: one product for all rows and heads
            term = jnp.einsum('bntd,sd->bnts', turned, table[0])
        else:
            term = jnp.einsum('bntd,bsd->bnts', turned, table)
        if self.clamp_len is not None:
            beyond = signed_distance(tq.pos, tk.pos)[:, None] > self.clamp_len
            term = jnp.where(beyond, heads_first(feature['clamped']), term)
        return s + term, carry
