"""PSC: a learned gain on queries and keys before they are rotated."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.protocol.bounds import CONTEXT
from posenc_jax.protocol.encoding import Encoding, drawn_uniform
from posenc_jax.protocol.registry import Card, register


def psc_calibrate(
    x: Float[Array, '... heads H'], up: Float[Array, 'heads H H'], down: Float[Array, 'heads H H']
) -> Float[Array, '... heads H']:
    """`x (1 + tanh(SiLU(x U_h) V_h) / 2)` per head, computed in float32, in the dtype of `x`.

    Args:
      x: queries or keys, not rotated.
      up, down: U and V of every head.

    Example:
      >>> one = jnp.ones((1, 1, 1))
      >>> round(float(psc_calibrate(jnp.ones((1, 1)), one, one)[0, 0]), 6)
      1.311856
    """
    wide = x.astype(jnp.float32)
    by_head = lambda a, kernel: jnp.einsum('...nh,nhd->...nd', a, kernel)
    return (wide * (1.0 + 0.5 * jnp.tanh(by_head(jax.nn.silu(by_head(wide, up)), down)))).astype(
        x.dtype
    )


@register(
    'psc',
    kind='encoding',
    card=Card(
        name='PSC',
        example='psc() | rope(freqs=pi(factor=4.0))',
        use_when=(
            'You tune a rotary model to a longer length with few parameters; the measured '
            'claim is open.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class PSC(Encoding):
    """Multiplies features of queries and keys by gains in (1/2, 3/2), computed from each vector.

    `q'_i = R(A_i) [q_i * (1 + tanh(SiLU(q_i U_h) V_h) / 2)]`; keys likewise. U_h and V_h are
    matrices [H, H] of head h, separate ones for queries and keys. It comes before a rotary encoding
    in the chain, `psc() | rope(freqs=...)`, and does not change its frequency rule. After the
    rotary encoding the gain would act on rotated vectors, and logits would no longer depend on
    position differences alone. U starts at zero, where psc changes nothing; then only U has a
    gradient, as SiLU(0) = 0. Keys are calibrated before they are cached. In the paper it is trained
    with low-rank adapters beside a frozen model: `model.lora_rank=8`, `train.tune='adapters'`.

    Differs from the paper: it speaks of a shift of phases, but what is released, and done here, is
    this gain. V starts kaiming-uniform, a = sqrt 5, with the fan-in H of one head's matrix, bound
    1/sqrt(H); the release draws all heads as one tensor, whose fan-in PyTorch takes as H^2.

    Args:
      heads, kv_heads, head_dim, rngs: from the model.

    Raises:
      ValueError: at call, other numbers of heads.

    Reference: Zhu, Xu, Wang, Wu, arXiv 2505.12423.
    """

    traits = frozenset({'reads_unrotated'})

    def __init__(
        self,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        def matrices(count, role):
            shape, bound, axes = (count, head_dim, head_dim), head_dim**-0.5, (role, None, None)
            up = nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes)
            return up, drawn_uniform(rngs, shape, bound, axes)

        self.q_up, self.q_down = matrices(heads, 'heads')
        self.k_up, self.k_down = matrices(kv_heads, 'kv_heads')

    def project(self, q, k, v, tq, tk, x=None):
        for name, a, kernel in (('query', q, self.q_up), ('key', k, self.k_up)):
            if a.shape[2:] != kernel.shape[:2]:
                built, got = (
                    f'{count} {name} heads of width {width}'
                    for count, width in (kernel.shape[:2], a.shape[2:])
                )
                raise ValueError(f'psc was built for {built}, got {got}')
        q = psc_calibrate(q, self.q_up[...], self.q_down[...])
        return q, psc_calibrate(k, self.k_up[...], self.k_down[...]), v, tq, tk
