"""Learnable Fourier features: a small network of trained waves of a position with components."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.protocol.bounds import CONTEXT, Divides, Ge, Multiple, Positive, Size
from posenc_jax.protocol.errors import check_number
from posenc_jax.protocol.families import Embedding, check_token_width
from posenc_jax.protocol.registry import Card, register


def learnable_fourier_features(
    pos: Num[Array, '... M'], w_r: Float[Array, 'waves M']
) -> Float[Array, '... F']:
    """`[cos(x W_r^T) | sin(x W_r^T)] / sqrt(F)` with F = 2 waves, float32; its norm is sqrt(1/2).

    The inner product of two of them is the mean of `cos(w_m . (a - b)) / 2` over the waves, so it
    depends on the difference of the positions only. Phases are exact at every integer position.

    Example:
      >>> learnable_fourier_features(jnp.array([0]), jnp.ones((2, 1))).tolist()
      [0.5, 0.5, 0.0, 0.0]
    """
    angle = phase(pos, w_r.astype(jnp.float32).T).sum(-2)
    features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return features * (2 * w_r.shape[0]) ** -0.5


def learnable_fourier_network(
    features: Float[Array, '... F'],
    w1: Float[Array, 'hidden F'],
    b1: Float[Array, 'hidden'],
    w2: Float[Array, 'out hidden'],
    b2: Float[Array, 'out'],
) -> Float[Array, '... out']:
    """`GELU(r W1^T + b1) W2^T + b2` in float32, with the exact GELU."""
    dot = lambda a, w: jnp.matmul(a, w.T, precision=jax.lax.Precision.HIGHEST)
    return dot(jax.nn.gelu(dot(features, w1) + b1, approximate=False), w2) + b2


def learnable_fourier_start(
    rngs: nnx.Rngs, inputs: int, features: int, hidden: int, out: int, gamma: float
) -> dict[str, Array]:
    """The first values of `w_r`, `w1`, `b1`, `w2` and `b2`: N(0, gamma^-2) for W_r, uniform values
    within fan_in^-0.5 for the network.

    Raises:
      ValueError: features that are odd or below 2, hidden below 1, a gamma that is not positive.
    """
    if hidden < 1:
        raise ValueError(f'learnable_fourier hidden must be at least 1, got {hidden}')
    if features < 2 or features % 2:
        raise ValueError(f'learnable_fourier features must be even and at least 2, got {features}')
    check_number('learnable_fourier gamma', gamma, above=0)
    uniform = lambda fan_in, *shape: jax.random.uniform(
        rngs.params(), shape, jnp.float32, -(fan_in**-0.5), fan_in**-0.5
    )
    return {
        'w_r': jax.random.normal(rngs.params(), (features // 2, inputs), jnp.float32) / gamma,
        'w1': uniform(features, hidden, features),
        'b1': uniform(features, hidden),
        'w2': uniform(hidden, out, hidden),
        'b2': uniform(hidden, out),
    }


@register(
    'learnable_fourier',
    kind='encoding',
    card=Card(
        name='Learnable Fourier Features',
        example='learnable_fourier(features=64, hidden=16)',
        use_when=('You train on pixels or boxes and have to read places that training left out.'),
        share='model',
        needs_training=True,
    ),
)
class LearnableFourier(Embedding):
    """Adds a trained function of the position, which may have components, to the token vectors.

    `x_p + GELU(r W1^T + b1) W2^T + b2`, `r = [cos(p W_r^T) | sin(p W_r^T)] / sqrt(F)`. W_r starts
    as N(0, gamma^-2), so that at first `r(a) . r(b)` is about `exp(-|a - b|^2 / (2 gamma^2)) / 2`.
    With G groups, each group of M = P / G components (a corner of a box, for example) gives D / G
    features by the same weights, and these are concatenated. Differs from the paper: PE is always
    added, and not concatenated with the token vectors; `make_features` gives it as features that
    can be concatenated. The network starts with uniform values within fan_in^-0.5, as in the public
    code that `source` names; the standard deviation 1 / gamma of W_r is the paper's (that code has
    gamma^-2).

    Args:
      components: P; positions are [B, L, P], for P = 1 also [B, L].
      groups: G, divides P and D. The first M components are the first group.
      features: F, even: half of them cosines, half sines.
      hidden: units of the network.
      gamma: 1 / gamma is the standard deviation of the first W_r. 10 suits whole numbers (tokens,
        pixels), 1 suits coordinates in [0, 1].
      model_dim: D, from the model.

    Raises:
      ValueError: at call, positions with another number of components, or token vectors that are
        not D wide.

    Reference: Li et al., arXiv 2106.02795.
    """

    def __init__(
        self,
        components: Size = 1,
        groups: Annotated[int, Ge(1), Divides('components'), Divides('model_dim')] = 1,
        features: Annotated[int, Ge(2), Multiple(2)] = 768,
        hidden: Size = 32,
        gamma: Positive = 10.0,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.components, self.groups = components, groups
        inputs, out = components // groups, model_dim // groups
        first = learnable_fourier_start(rngs, inputs, features, hidden, out, gamma)
        self.w_r = nnx.Param(first['w_r'], axes=(None, None))
        self.w1 = nnx.Param(first['w1'], axes=(None, None))
        self.b1 = nnx.Param(first['b1'], axes=(None,))
        # The D / G outputs of one of several groups need not be divisible where D is.
        role = 'width' if groups == 1 else None
        self.w2 = nnx.Param(first['w2'], axes=(role, None))
        self.b2 = nnx.Param(first['b2'], axes=(role,))

    def table(self, tok, width):
        pos = tok.pos[..., None] if tok.pos.ndim == 2 else tok.pos
        if pos.shape[2:] != (self.components,):
            raise ValueError(
                f'learnable_fourier(components={self.components}) needs positions [B, L, '
                f'{self.components}], got {tok.pos.shape}'
            )
        check_token_width('learnable_fourier', self.groups * self.b2.shape[0], width)
        groups = pos.reshape(*pos.shape[:2], self.groups, -1)
        features = learnable_fourier_features(groups, self.w_r[...])
        weights = (a[...] for a in (self.w1, self.b1, self.w2, self.b2))
        return learnable_fourier_network(features, *weights).reshape(*pos.shape[:2], width)
