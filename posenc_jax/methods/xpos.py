"""xPos: rotary positions with a decay of each plane over the distance."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.base.products import scaled_dot_product
from posenc_jax.methods.rope import Layout, Rotary
from posenc_jax.protocol.bounds import CONTEXT, Base, Positive
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register


def xpos_decay(rotary_dim: int, gamma: float = 0.4) -> np.ndarray:
    """`zeta_t = (2t/D + gamma) / (1 + gamma)`: decay of plane t at `scale_base`, float64."""
    return (np.arange(0, rotary_dim, 2) / rotary_dim + gamma) / (1.0 + gamma)


def xpos_scale(
    x: Num[Array, 'B N L H'],
    offset: Num[Array, '#B L'],
    zeta: np.ndarray,
    scale_base: float,
    *,
    layout: Layout = 'half',
) -> Float[Array, 'B N L H']:
    """Both features of plane t times `zeta_t^(offset / scale_base)`, float32."""
    log_zeta = np.log(zeta).astype(np.float32)
    factor = jnp.exp(offset.astype(jnp.float32)[:, None, :, None] / scale_base * log_zeta)
    half = layout == 'half'  # the kernels of a GPU have no jnp.tile
    twice = jnp.concatenate([factor] * 2, -1) if half else jnp.repeat(factor, 2, axis=-1)
    return x.astype(jnp.float32) * twice


def _card(name, example, use_when):
    return Card(
        name=name,
        door='project, logits',
        example=example,
        use_when=use_when,
        share='model',
        causal_only=True,
        relative=True,
    )


@register(
    'xpos',
    kind='encoding',
    card=_card(
        'xPos',
        'xpos()',
        ('You want rotary positions whose far keys count less, in a new model of text.'),
    ),
)
class XPos(Encoding):
    """Rotates queries and keys and damps plane t by `zeta_t^((i-j)/S)`, high frequencies most.

    `logit_ij = sum_t zeta_t^((i-j)/S) [R(i theta) q]_t . [R(j theta) k]_t / sqrt(H)`, `zeta_t =
    (2t/H + gamma) / (1 + gamma)`. Differs from the released code: the factor is split between query
    and key around a position inside the current tile, not around half the sequence. So it does not
    change when a sequence grows, and does not overflow at any length. The exception is a tile of a
    few hundred tokens that spans some 70 S positions, which gives NaN. The default layout is
    'half'. For the paper's blockwise causal attention in evaluation, chain the mask
    `window(size=BLOCK, aligned=True)`.

    Args:
      base: base of the frequencies.
      gamma: g.
      scale_base: S, in tokens.
      layout: 'half' or 'interleaved'.
      head_dim: H, from the model.

    Raises:
      ValueError: an odd width.

    Reference: Sun, Dong, Patra, Ma, Huang, Benhaim et al., arXiv 2212.10554.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('xpos()', head_dim=64).zeta[[0, 31]].round(4).tolist()
      [0.2857, 0.9777]
    """

    traits = frozenset({'rotates', 'forms_logits'})

    def __init__(
        self,
        base: Base = 10000.0,
        gamma: Positive = 0.4,
        scale_base: Positive = 512.0,
        layout: Layout = 'half',
        head_dim: int = CONTEXT,
    ):
        self.rotary = Rotary(base, layout, head_dim=head_dim)
        self.gamma, self.scale_base = gamma, scale_base

    @property
    def zeta(self) -> np.ndarray:
        return xpos_decay(self.rotary.head_dim, self.gamma)

    def project(self, q, k, v, tq, tk, x=None):
        return self.rotary.project(q, k, v, tq, tk)

    def logits(self, s, q, k, tq, tk, seen, carry):
        # Both factors are at most one, except for keys after the first query of their own tile.
        centre = tq.pos.min(axis=1, keepdims=True)
        scale = lambda a, offset: xpos_scale(
            a, offset, self.zeta, self.scale_base, layout=self.rotary.layout
        )
        return scaled_dot_product(scale(q, tq.pos - centre), scale(k, centre - tk.pos)), carry


@register(
    'xpos_abf',
    kind='encoding',
    card=_card(
        'xPos-ABF', 'xpos_abf()', 'You want xPos with a larger base, for a model of longer texts.'
    ),
)
class XPosABF(XPos):
    """xPos with the adjusted base frequency, 500000; the damping stays as it is.

    `logit_ij = sum_t zeta_t^((i-j)/S) [R(i theta) q]_t . [R(j theta) k]_t / sqrt(H)`, `zeta_t =
    (2t/H + gamma) / (1 + gamma)`. Differs from the paper: nothing that the paper says; see `XPos`
    for where the factor is applied.

    Args:
      base, gamma, scale_base, layout, head_dim: as for `xpos`.

    Reference: Xiong, Liu, Molybog, Zhang, Bhargava, Hou et al., arXiv 2309.16039.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('xpos_abf()', head_dim=64).rotary.base
      500000.0
    """

    def __init__(
        self,
        base: float = 500000.0,
        gamma: float = 0.4,
        scale_base: float = 512.0,
        layout: Layout = 'half',
        head_dim: int = CONTEXT,
    ):
        super().__init__(base, gamma, scale_base, layout, head_dim)
