"""PoPE: magnitudes say what, angles say where."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.phases import phase
from posenc_jax.base.products import heads_first, scaled_dot_product
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.bounds import CONTEXT, Base, Gt, Le
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register

_LEAST_DELTA = -2.0 * np.pi


def pope_frequencies(polar_dim: int, base: float) -> np.ndarray:
    """`theta_c = base^(-c / polar_dim)`, one for every feature c, float64, radians per position.

    Raises:
      ValueError: a width below 1, a base below 1 or beyond float32.
    """
    return rope_frequencies(2 * polar_dim, base)


def pope_delta(delta: Float[Array, '...']) -> Float[Array, '...']:
    """`delta` clipped to [-2 pi, 0], with the whole gradient at both ends.

    JAX's minimum and maximum pass half of the gradient at a tie, and training starts at one.
    """
    bound = jnp.where(delta > 0, 0.0, _LEAST_DELTA)
    return jnp.where((delta >= _LEAST_DELTA) & (delta <= 0), delta, bound)


def pope_polar(
    x: Float[Array, '... H'], angles: Float[Array, '... R']
) -> tuple[Float[Array, '... H'], Float[Array, '... R']]:
    """The Cartesian parts of the first R features, whose magnitudes are `softplus(x)`.

    Args:
      x: queries or keys.
      angles: radians, broadcast against the leading axes of `x`.

    Returns:
      `softplus(x) cos(angles)` followed by the features behind R as they are, and `softplus(x)
      sin(angles)`; both in the dtype of `x`.

    Example:
      >>> along, across = pope_polar(jnp.zeros((1, 3)), jnp.array([[0.0, 1.0]]))
      >>> along.round(4).tolist(), across.round(4).tolist()
      ([[0.6931, 0.3745, 0.0]], [[0.0, 0.5833]])
    """
    polar = angles.shape[-1]
    size = jax.nn.softplus(x[..., :polar].astype(jnp.float32))
    cos, sin = jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))
    along, across = ((size * part).astype(x.dtype) for part in (cos, sin))
    return jnp.concatenate([along, x[..., polar:]], axis=-1), across


@register(
    'pope',
    kind='encoding',
    card=Card(
        name='PoPE',
        example='pope()',
        use_when=(
            'You train a new model and want its angles to depend on positions alone, '
            'without the content.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class PoPE(Encoding):
    """Gives every feature a magnitude by its content and an angle by its position.

    `logit_ij = sum_c softplus(q_ic) softplus(k_jc) cos((j - i) theta_c + delta_c) / sqrt(H)`,
    `theta_c = base^(-c/H)`, c = 0 .. H - 1. RoPE turns H/2 pairs of features, so the angle of a
    pair mixes content and position; here content has the magnitudes alone. There are H frequencies.
    The trained delta is added to the angles of keys alone. All magnitudes are positive, so every
    feature favours the distance at which its cosine is 1, which delta moves. A norm of queries and
    keys acts before softplus, and so does what a part in front makes of them. A factor on queries
    (`log_length`, `nope_temperature`) is no factor of the logits there; `ssmax` multiplies logits.

    The products of cosines are those that attention forms of queries and keys; the products of
    sines are added to the logits. So the values keep their width, and kernels that take nothing but
    queries and keys do not serve it.

    Differs from the paper: nothing. Key heads that several query heads share have one delta.

    Args:
      base: of the frequencies.
      start: delta starts at 0 ('zero', better beyond the trained length) or uniform in [-2 pi, 0]
        ('uniform', a little better within it).
      partial: share of the head width that is polar, `R = int(H * partial)` leading features with
        `theta_c = base^(-c/R)`. The others keep their plain products, without softplus.
      cache: a decode cache holds sines and cosines of keys ('polar', 2H numbers), or the keys as
        projected ('raw', H numbers), whose angles every step computes again.
      kv_heads, head_dim: K and H, from the model.
      rngs: draws a uniform delta.

    Raises:
      ValueError: no feature is polar.

    Reference: Gopalakrishnan, Csordás, Schmidhuber, Mozer, arXiv 2509.10534.
    """

    traits = frozenset({'rotates', 'forms_logits', 'reads_own_projections'})

    def __init__(
        self,
        base: Base = 10000.0,
        start: Literal['zero', 'uniform'] = 'zero',
        partial: Annotated[float, Gt(0), Le(1)] = 1.0,
        cache: Literal['polar', 'raw'] = 'polar',
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.base, self.head_dim, self.polar_dim = base, head_dim, int(head_dim * partial)
        if self.polar_dim < 1:
            raise ValueError(
                f'pope: partial={partial} of head_dim={head_dim} are no whole feature, expected at '
                f'least one; the nearest partial is {-(-10_000 // head_dim) / 10_000:g}'
            )
        pope_frequencies(self.polar_dim, base)
        shape = kv_heads, self.polar_dim
        delta = jnp.zeros(shape, jnp.float32)
        if start == 'uniform':
            delta = jax.random.uniform(rngs.params(), shape, minval=_LEAST_DELTA, maxval=0.0)
        self.delta = nnx.Param(delta, axes=('kv_heads', None))

    def angles(self, pos):
        """Angles [#B, L, R] of queries at these positions."""
        if pos.ndim != 2:
            raise ValueError(
                f'pope takes one position per token, got {int(np.prod(pos.shape[2:]))} components'
            )
        return phase(pos, pope_frequencies(self.polar_dim, self.base))

    def check_sizes(self, width: int, kv_heads: int) -> None:
        """Refuses queries and keys of other sizes than those that it was built for."""
        own = self.head_dim, self.delta.shape[0]
        if (width, kv_heads) != own:
            raise ValueError(
                f'pope was built for head_dim={own[0]} and {own[1]} key heads, got vectors of '
                f'width {width} and {kv_heads} key heads'
            )

    def joined(self, cosines, q: Float[Array, 'B N T R'], k: Float[Array, 'B K S R']):
        """The logits: products of cosines, and those of sines, which are R features wide."""
        return cosines + (self.polar_dim / self.head_dim) ** 0.5 * scaled_dot_product(q, k)

    def project(self, q, k, v, tq, tk, x=None):
        self.check_sizes(q.shape[3], k.shape[2])
        q, of_q = pope_polar(q, self.angles(tq.pos)[:, :, None])
        turned = self.angles(tk.pos)[:, :, None] + pope_delta(self.delta[...])
        k, of_k = pope_polar(k, turned)
        return q, k, v, tq.with_feats(pope=of_q), tk.with_feats(pope=of_k)

    def logits(self, s, q, k, tq, tk, seen, carry):
        of_q, of_k = heads_first(tq.feats['pope']), heads_first(tk.feats['pope'])
        return self.joined(s, of_q, of_k), carry


class RawPoPE(PoPE, where=lambda given: given['cache'] == 'raw'):
    """PoPE that leaves keys as projected, and forms the logits of a block from them."""

    project = Encoding.project

    def logits(self, s, q, k, tq, tk, seen, carry):
        self.check_sizes(q.shape[3], k.shape[1])
        q, of_q = pope_polar(q, self.angles(tq.pos)[:, None])
        turned = self.angles(tk.pos)[:, None] + pope_delta(self.delta[...])[:, None]
        k, of_k = pope_polar(k, turned)
        return self.joined(scaled_dot_product(q, k), of_q, of_k), carry
