"""Biases of the distance whose exponentials have a finite sum, and two that diverge."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from posenc_jax.methods.alibi import alibi_slopes
from posenc_jax.protocol.bounds import CONTEXT, PerHead
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.families import Bias, check_heads, signed_distance
from posenc_jax.protocol.registry import Card, register

# The bias r(y) of each kernel. The paper's criterion is about the sum of exp(r).
KERNELS: dict[str, Callable[[Array], Array]] = {
    'type1': lambda y: -jnp.log1p(y * y),
    'type2': lambda y: -(jnp.log(3.0 + y) ** 2),
    'linear': lambda y: -y,
    'square': lambda y: -(y**2),
    'fourth': lambda y: -(y**4),
    'root': lambda y: -jnp.sqrt(y),
    'half_three_quarters': lambda y: -0.5 * y**0.75,
    'five_quarters': lambda y: -(y**1.25),
    'log_over_square': lambda y: jnp.log1p(jnp.log1p(y)) - 2.0 * jnp.log1p(y),
    'harmonic': lambda y: -jnp.log1p(y),
    'log_harmonic': lambda y: -(jnp.log(3.0 + y) + jnp.log(jnp.log(3.0 + y))),
}
Kernel = Literal[*KERNELS]
DIVERGENT = ('harmonic', 'log_harmonic')


def rpe_convergent_bias(
    kernel: str, slopes: Float[Array, 'N'], q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S']
) -> Float[Array, '#B N T S']:
    """`r(k_h |p_i - p_j|)` of one of `KERNELS`, float32.

    Raises:
      ValueError: an unknown kernel; names the nearest.

    Example:
      >>> rpe_convergent_bias('type1', jnp.array([0.5]), jnp.array([[2]]), jnp.array([[0, 1, 2]]))[
      ...     0, 0, 0
      ... ].round(4).tolist()
      [-0.6931, -0.2231, -0.0]
    """
    check_choice('rpe_convergent kernel', kernel, KERNELS)
    distance = jnp.abs(signed_distance(q_pos, k_pos)).astype(jnp.float32)
    return KERNELS[kernel](slopes.astype(jnp.float32)[:, None, None] * distance[:, None])


@register(
    'rpe_convergent',
    kind='encoding',
    card=Card(
        name='convergent RPE',
        example='rpe_convergent()',
        use_when=(
            'You train a bias of the distance whose far part should stay bounded, so that '
            'longer texts do no harm.'
        ),
        share='model',
        relative=True,
    ),
)
class ConvergentRPE(Bias):
    """Adds a bias of the distance whose exponentials have a finite sum; acts on the logits.

    `logit_ij = q_i . k_j / sqrt(H) + r(y)`, `y = k_h |i - j|`, k_h ALiBi's slopes. The paper claims
    that causal attention extrapolates if `sum_(d >= 0) exp(r(d))` converges, since far keys then
    add little. `python -m posenc_jax.lab.analyse receptive_field` measures it.

        type1                `-ln(1 + y^2)`            type2                `-ln(3 + y)^2`
        linear (ALiBi)       `-y`                      square               `-y^2`
        fourth               `-y^4`                    root                 `-y^(1/2)`
        half_three_quarters  `-y^(3/4) / 2`            five_quarters        `-y^(5/4)`
        log_over_square      `ln(1 + ln(1 + y)) - 2 ln(1 + y)`
        harmonic             `-ln(1 + y)`, diverges
        log_harmonic         `-ln(3 + y) - ln ln(3 + y)`, diverges

    Differs from the paper: without a causal mask the distance is |i - j|. Types 1 and 2 are
    numbered as in the paper; the authors' code numbers them differently. The other names are ours.

    Args:
      kernel: name of r.
      slopes: k_h, one per head, positive, in place of ALiBi's.
      heads: N, from the model.

    Raises:
      ValueError: when used, queries of another number of heads.

    Reference: Qin, Zhong, Deng, arXiv 2307.10156.
    """

    def __init__(
        self, kernel: Kernel = 'type1', slopes: PerHead | None = None, heads: int = CONTEXT
    ):
        self.kernel = kernel
        self.slopes = Constant(
            jnp.asarray(alibi_slopes(heads) if slopes is None else slopes, jnp.float32),
            axes=('heads',),
        )

    def bias(self, q_pos, k_pos):
        return rpe_convergent_bias(self.kernel, self.slopes[...], q_pos, k_pos)

    def logits(self, s, q, k, tq, tk, seen, carry):
        check_heads('rpe_convergent', self.slopes[...], s)
        return super().logits(s, q, k, tq, tk, seen, carry)
