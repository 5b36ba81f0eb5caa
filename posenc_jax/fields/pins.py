"""PINs: a network that grows by bands of frequencies."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.fields.network import Dense, FieldNetwork, Width, usual_bound
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Ge, Le, Positive
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import Card, register

MAX_BANDS = 24  # beyond, 2^i pi x has no fraction left in float32
Bands = Annotated[int, Ge(1), Le(MAX_BANDS)]


def bands(
    x: Float[Array, '... d'], frequencies: Float[Array, 'd M'] | None, first: int, count: int
) -> Float[Array, '... E']:
    """The features of one level: sines and cosines of some frequencies.

    Args:
      x: coordinates.
      frequencies: rows of random Fourier features, of which `count` from `first` are used; None
        for the bands `2^i pi x_j`, i = first .. first + count - 1, of every coordinate.
      first, count: which ones.
    """
    if frequencies is None:
        scale = math.pi * 2.0 ** jnp.arange(first, first + count)
        angle = (scale[:, None] * x[..., None, :]).reshape(*x.shape[:-1], count * x.shape[-1])
    else:
        own = frequencies[:, first : first + count]
        angle = 2 * math.pi * jnp.matmul(x, own, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _sorted(frequencies: Float[Array, 'd M']) -> Float[Array, 'd M']:
    return frequencies[:, jnp.argsort(jnp.linalg.norm(frequencies, axis=0))]


@register(
    'pins',
    kind='field',
    card=Card(
        name='PINs',
        example='pins(width=16, levels=2)',
        use_when=(
            'You fit a picture from coarse to fine and want each level to add a band; the '
            'measured claim is open.'
        ),
        needs_training=True,
    ),
)
class Pins(FieldNetwork):
    """A network in levels, each of which reads a band of higher frequencies than the one before and
    adds what it finds to the output.

    `h_0 = MLP_0([x, E_0(x)])`, `h_l = MLP_l([h_{l-1}, E_l(x)])`, `y_l = sum_{k <= l} V_k h_k +
    c_k`; an MLP has two layers of rectified linear units. The output of a level does not depend on
    later levels, so a coarse reconstruction costs less. V_l, l > 0, is zero at first: a new level
    leaves the output as it is.

    Differs from the paper: how the levels are wired, the bands, and the schedule are this package's
    reading of it. All levels are trained together, or `progressive` ones become active one after
    the other, at equal parts of training, while those before go on learning.

    Args:
      width: units of a layer.
      levels: L.
      bands: frequencies of a level, for every coordinate.
      encoding: 'nerf' (`2^i pi`), or 'rff': Gaussian frequencies, sorted by their size.
      sigma: standard deviation of the frequencies of 'rff'; 10 by default.
      progressive: whether levels become active one after the other.

    Raises:
      SpecError: a sigma without 'rff'.
      ValueError: more than 24 frequencies; at call, features.

    Reference: Landgraf et al., arXiv 2202.04713.

    Example:
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('pins(width=16, levels=3)', features=2, outputs=1)
      >>> points = jnp.zeros((4, 2))
      >>> network(None, points).shape, network.levels(points).shape
      ((4, 1), (4, 3, 1))
    """

    takes_features = False

    def __init__(
        self,
        width: Width = 256,
        levels: Bands = 4,
        bands: Bands = 2,
        encoding: Literal['nerf', 'rff'] = 'nerf',
        sigma: Positive | None = None,
        progressive: bool = False,
        components: int = CONTEXT,
        outputs: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if levels * bands > MAX_BANDS:
            raise ValueError(
                f'pins has levels * bands = {levels * bands} frequencies; at most {MAX_BANDS}'
            )
        if sigma is not None and encoding == 'nerf':
            raise SpecError(f"pins sigma={sigma} is of encoding='rff', got encoding='nerf'")
        sigma = 10.0 if sigma is None else sigma
        self.inputs, self.outputs, self.progressive = components, outputs, progressive
        self.count = bands if encoding == 'nerf' else bands * components
        shape = (components, levels * bands * components)
        drawn = None if encoding == 'nerf' else sigma * jax.random.normal(rngs.params(), shape)
        self.frequencies = None if drawn is None else Constant(_sorted(drawn), axes=(None, None))
        features, stages, heads = 2 * bands * components, [], []
        for level in range(levels):
            read = (width if level else components) + features
            stages.append(
                nnx.List(
                    Dense(d, width, math.sqrt(6 / d), usual_bound(d), rngs) for d in (read, width)
                )
            )
            heads.append(Dense(width, outputs, 0.0 if level else usual_bound(width), 0.0, rngs))
        self.stages, self.heads = nnx.List(stages), nnx.List(heads)

    def _outputs(self, x: Float[Array, '... d'], last: int) -> Sequence[Float[Array, '... out']]:
        frequencies = None if self.frequencies is None else self.frequencies[...]
        h, out = x, []
        for level in range(last + 1):
            own = bands(x, frequencies, level * self.count, self.count)
            h = jnp.concatenate([h, own], axis=-1)
            for layer in self.stages[level]:
                h = jax.nn.relu(layer(h))
            out.append(self.heads[level](h))
        return out

    def levels(
        self, coords: Float[Array, '... d'], last: int | None = None
    ) -> Float[Array, '... L out']:
        """The outputs y_0 .. y_last of the levels; later levels are not computed.

        Raises:
          ValueError: a level that does not exist.
        """
        top = len(self.heads) - 1
        last = top if last is None else last
        if not 0 <= last <= top:
            raise ValueError(f'pins has levels 0 .. {top}, got {last}')
        return jnp.cumsum(jnp.stack(self._outputs(coords, last), axis=-2), axis=-2)

    def values(self, x, *, key=None, progress=None):
        out = self._outputs(x, len(self.heads) - 1)
        if self.progressive and progress is not None:
            active = progress * len(self.heads)
            out = [jnp.where(level <= active, o, 0.0) for level, o in enumerate(out)]
        return sum(out[1:], out[0])
