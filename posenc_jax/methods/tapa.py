"""TAPA: each pair of tokens has its own phase, which is multiplied by the distance."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import TWO_PI
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.protocol.bounds import CONTEXT, Ge, Gt, Lt, Positive
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import signed_distance
from posenc_jax.protocol.registry import Card, register


def tapa_distance(
    q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S'], alpha: float
) -> Float[Array, '#B T S']:
    """`|i - j|^alpha`, and 0 at distance 0, float32."""
    distance = jnp.abs(signed_distance(q_pos, k_pos)).astype(jnp.float32)
    apart = distance > 0  # distance 0 is replaced by 1, since the gradient of the power is infinite
    return jnp.where(apart, jnp.where(apart, distance, 1.0) ** alpha, 0.0)


def tapa_logits(
    q: Float[Array, 'B N T H'],
    k: Float[Array, 'B K S H'],
    distance: Float[Array, '#B T S'],
    amplitude_dim: int,
    phase: float = 1.0,
) -> Float[Array, 'B N T S']:
    """`(q_A . k_A) / sqrt(a) cos(2 pi phase distance (q_P . k_P) / sqrt(H - a))`, float32.

    A are the first a features, P the others.
    Args:
      q, k: queries and keys, key heads shared as in `scaled_dot_product`.
      distance: factor of the phase, in turns, e.g. `tapa_distance`.
      amplitude_dim: a.
      phase: factor of all phases.
    """
    amplitude = scaled_dot_product(q[..., :amplitude_dim], k[..., :amplitude_dim])
    turns = distance[:, None] * scaled_dot_product(q[..., amplitude_dim:], k[..., amplitude_dim:])
    return amplitude * jnp.cos(TWO_PI * phase * turns)


@register(
    'tapa',
    kind='encoding',
    card=Card(
        name='TAPA',
        example='tapa()',
        use_when=(
            'You train a model on short texts and read it at several times the length '
            'without tuning.'
        ),
        share='model',
        relative=True,
    ),
)
class TAPA(Encoding):
    """Logits of some features times the cosine of a phase from the others and the distance.

    `logit_ij = (q_A . k_A) / sqrt(a) cos(2 pi phase |i - j|^alpha (q_P . k_P) / sqrt(H - a))`,
    A the first `a = theta H` features of a head, P the rest, `|0|^alpha = 0`. It takes the place of
    the scaled dot product, has no parameters, and depends on the distance alone, so an encoder sees
    both sides alike. Differs from the paper: the factor `phase`, for which the paper has 1; that
    the amplitude comes first and the values of theta and alpha are ours, as no code was released.

    Args:
      theta: share of the features that make the amplitude; `theta H` must be a whole number from 1
        to H - 1.
      alpha: exponent of the distance, positive; small ones keep far distances close to those seen
        in training.
      phase: factor of all phases, positive. With 1 the phases of a new model differ by about a
        turn, so that cosines have random signs. Small models then learn far more slowly than with
        0.03 (docs/results/pretrained_extension.md, "TAPA with smaller phases").
      head_dim: H, from the model.

    Raises:
      ValueError: a share that does not cut H into two whole parts.

    Reference: Wang, Shen, Munos, Zhan, Tian, arXiv 2509.12635.

    Example:
      >>> import posenc_jax as pj
      >>> pj.make('tapa(theta=0.25)', head_dim=64).amplitude_dim
      16
    """

    traits = frozenset({'forms_logits'})

    def __init__(
        self,
        theta: Annotated[float, Gt(0), Lt(1)] = 0.5,
        alpha: Positive = 0.1,
        phase: Positive = 1.0,
        head_dim: Annotated[int, Ge(2)] = CONTEXT,
    ):
        size = theta * head_dim
        self.amplitude_dim = min(max(round(size), 1), head_dim - 1)
        if abs(self.amplitude_dim - size) > 1e-6:
            raise ValueError(
                f'tapa: theta={theta} of head_dim={head_dim} are {size:g} features, expected a '
                'whole number from 1 to '
                f'{head_dim - 1}; the nearest theta is {self.amplitude_dim / head_dim:g}'
            )
        self.alpha, self.phase = alpha, phase

    def logits(self, s, q, k, tq, tk, seen, carry):
        distance = tapa_distance(tq.pos, tk.pos, self.alpha)
        return tapa_logits(q, k, distance, self.amplitude_dim, self.phase), carry
