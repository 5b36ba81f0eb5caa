"""MD-LRPE: a linearized relative encoding of positions with several components."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.methods.rope import rotate
from posenc_jax.protocol.bounds import CONTEXT, Base, Count, Size
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import check_head_dim
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

Form = Literal['rotate', 'cosine']
Half = Literal['all', 'high', 'low']


def md_lrpe_frequencies(
    angles: int,
    components: int = 1,
    base: float = 10000.0,
    half: Half = 'all',
    form: Form = 'rotate',
) -> np.ndarray:
    """The e = ceil(angles / components) frequencies of a component, float64, radians per position.

    They are `theta_c = base^(-c/e)`, and `base^(-2c/e)` in the form 'cosine'; with one component
    both are `base^(-2c/H)`. With `half`, those of the other half are 0.
    """
    count = -(-angles // components)
    turns = 1 if form == 'rotate' else 2
    theta = base ** (-turns * np.arange(count, dtype=np.float64) / count)
    high = np.arange(count) < count - count // 2
    return theta if half == 'all' else np.where(high == (half == 'high'), theta, 0.0)


def md_lrpe_angles(
    pos: Num[Array, '#B L P'], theta: Float[Array, '*heads e'] | np.ndarray, angles: int
) -> Float[Array, '#B L heads_or_1 A']:
    """The angles of a position: those of its components, `n_a theta`, one after the other, of which
    the first `angles` are kept.
    """
    per_head = theta.reshape(-1, 1, theta.shape[-1])
    angle = phase(pos[:, :, None], per_head)
    return angle.reshape(*angle.shape[:3], -1)[..., :angles]


def md_lrpe(
    x: Num[Array, 'B L heads H'], angle: Float[Array, '#B L #heads A'], form: Form = 'rotate'
) -> Num[Array, 'B L heads F']:
    """Features by whose angles the inner product of two of them sees only differences of angles.

    'rotate' turns the pairs of features (c, c + H/2), so F = H = 2A; 'cosine' is
    `[x cos A; x sin A]`, so F = 2H = 2A, and the inner product is
    `sum_c q_c k_c cos(A_c - A'_c)`.
    """
    if form == 'rotate':
        return rotate(x, angle)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([x * cos, x * sin], axis=-1).astype(x.dtype)


@register(
    'md_lrpe',
    kind='encoding',
    card=Card(
        name='MD-LRPE',
        example='md_lrpe()',
        use_when=(
            'Positions have several components and you want one rotation of their sum, '
            'with linear attention or without.'
        ),
        relative=True,
    ),
)
class MdLrpe(Encoding):
    """Rotates queries and keys by the angles of all components of a position.

    `q'_i = R(A_i) q_i`, `k'_j = R(A_j) k_j`, `A = (n_1 theta, ..., n_k theta)`, n the components of
    the position. The logits therefore depend on the differences of the components alone. It acts on
    the pairs of attention through `project`, and `lightnet` takes it as its argument. The form
    'cosine' doubles the width of queries and keys instead of turning pairs, `[x cos A; x sin A]`;
    its logits are divided by sqrt(H), as those of 'rotate' are. Differs from the paper: the e
    frequencies of a component are those of a head of 2e features ('cosine': e), so every component
    has the whole range; with one component 'rotate' is `rope()`.

    Args:
      components: k; positions are [B, L, k], for k = 1 also [B, L].
      form: 'rotate', with H / 2 angles, or 'cosine', with H.
      half: which frequencies act: 'all', or the 'high' or 'low' half of those of each component.
      base: base of the frequencies.
      prefix: how many first tokens of a document (a class, a condition) have the angle 0.
      learned: train the frequencies, which are then one set for each key head.
      head_dim, heads, kv_heads: H, N and K, from the model.

    Raises:
      ValueError: more components than there are angles, an odd head width with 'rotate'; at call,
        positions with another number of components, or vectors of another width.

    Reference: Qin et al., arXiv 2405.21022.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('md_lrpe(components=2)', head_dim=8, heads=1, kv_heads=1)
      >>> pixels = pj.Tokens.of(positions=[[[0, 0], [0, 1], [1, 0]]])
      >>> part.turned(jnp.ones((1, 3, 1, 8)), pixels)[0, 1, 0].round(2).tolist()
      [1.0, 1.0, -0.3, 0.99, 1.0, 1.0, 1.38, 1.01]
    """

    traits = frozenset({'rotates'})

    def __init__(
        self,
        components: Size = 1,
        form: Form = 'rotate',
        half: Half = 'all',
        base: Base = 10000.0,
        prefix: Count = 0,
        learned: bool = False,
        head_dim: int = CONTEXT,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        if form == 'rotate' and head_dim % 2:
            raise ValueError(
                f'md_lrpe turns features in pairs, but head_dim is {head_dim}; use an even width '
                "or form='cosine'"
            )
        self.angles = head_dim // 2 if form == 'rotate' else head_dim
        if components > self.angles:
            raise ValueError(
                f'md_lrpe components must lie in 1 .. {self.angles}, the number of angles of '
                f'head_dim={head_dim} in the form {form!r}, got {components}'
            )
        self.components, self.prefix = components, prefix
        self.form: Form = form
        self.head_dim, self.heads, self.kv_heads = head_dim, heads, kv_heads
        fixed = md_lrpe_frequencies(self.angles, components, base, half, form)
        self.fixed = tuple(fixed.tolist())
        start = jnp.broadcast_to(jnp.asarray(fixed, jnp.float32), (kv_heads, len(fixed)))
        self.theta = nnx.Param(start, axes=('kv_heads', None)) if learned else None

    @property
    def width(self) -> int:
        """Width of the encoded features."""
        return self.head_dim if self.form == 'rotate' else 2 * self.head_dim

    def turned(self, x: Num[Array, 'B L heads H'], tok: Tokens) -> Num[Array, 'B L heads F']:
        """Queries or keys with the angles of their tokens, see `md_lrpe`."""
        check_head_dim('md_lrpe', self.head_dim, x)
        pos = tok.pos[..., None] if tok.pos.ndim == 2 else tok.pos
        if pos.shape[2:] != (self.components,):
            raise ValueError(
                f'md_lrpe(components={self.components}) needs positions [B, L, '
                f'{self.components}], got {tok.pos.shape}'
            )
        theta = fixed = np.array(self.fixed)
        if self.theta is not None:  # frequencies that `half` leaves out are not trained
            theta = jnp.where(fixed > 0, self.theta[...], 0.0)
        angle = md_lrpe_angles(pos, theta, self.angles)
        if self.prefix:
            angle = jnp.where((tok.rank < self.prefix)[..., None, None], 0.0, angle)
        if angle.shape[2] > 1:
            angle = jnp.repeat(angle, x.shape[2] // angle.shape[2], axis=2)
        return md_lrpe(x, angle, self.form)

    def project(self, q, k, v, tq, tk, x=None):
        # Logits are divided by the root of the width, which 'cosine' doubles.
        q = self.turned(q, tq) * (self.width / self.head_dim) ** 0.5
        return q.astype(k.dtype), self.turned(k, tk), v, tq, tk
