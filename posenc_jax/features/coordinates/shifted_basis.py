"""Shifted basis embedders: features of coordinates by shifted copies of one function, or waves."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.features.coordinates.basis_grid import kron_features
from posenc_jax.features.coordinates.encoder import CoordinateEncoder, limited
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.errors import check_choice, check_number
from posenc_jax.protocol.registry import Card, register

Shifted = Literal['gaussian', 'triangle', 'impulse', 'square', 'sin']
Waves = Literal['rff', 'linf', 'logf', 'basic']
Basis = Literal[Shifted, Waves]
Form = Literal['line', 'two', 'four', 'complex']
SHIFTED, WAVES = get_args(Shifted), get_args(Waves)
# Features, and the parts that share them: one axis, two axes, four directions, a product.
FORMS = {'line': (512, 1), 'two': (512, 2), 'four': (512, 4), 'complex': (256, 1)}
SIMPLE = {'rff': 14.0, 'linf': 5.0, 'logf': 5.5, 'gaussian': 0.006}
COMPLEX = {'rff': 42.0, 'linf': 4.5, 'logf': 6.5, 'gaussian': 0.004, 'triangle': 2 / 256}
_GRID = 128  # points per axis where the largest norm of a feature vector is sought


def shifted_basis(
    x: Float[Array, '...'],
    basis: Shifted,
    count: int,
    scale: float,
    *,
    circular: bool = False,
    signed: bool = False,
) -> Float[Array, '... count']:
    """`psi(x - c / D)` for the D anchors c / D, not normalised, float32.

    'gaussian' `exp(-u^2 / (2 s^2))`, 'triangle' `max(0, 1 - |u| / w)`, 'impulse' `1[|u| <= s]`,
    'square' `1[sin(2 pi f u) > 0]` (1 also after exactly half a turn, where the sine of floating
    point numbers is above 0), 'sin' `sin(2 pi f u)`.

    Args:
      x: coordinates in [0, 1).
      count: D.
      scale: s, w or f.
      circular: whether u is the shorter way around a circle of length 1.
      signed: whether the square wave has the values 1 and -1 instead of 1 and 0.
    """
    check_choice('shifted_basis basis', basis, SHIFTED)
    u = x.astype(jnp.float32)[..., None] - jnp.arange(count, dtype=jnp.float32) / count
    u = u - jnp.round(u) if circular else u
    if basis == 'gaussian':
        return jnp.exp(-0.5 * (u / scale) ** 2)
    if basis == 'triangle':
        return jnp.maximum(0.0, 1 - jnp.abs(u) / scale)
    if basis == 'impulse':
        return (jnp.abs(u) <= scale).astype(jnp.float32)
    turn = scale * u - jnp.floor(scale * u)
    if basis == 'sin':
        return jnp.sin(2 * jnp.pi * turn)
    high = ((turn > 0) & (turn <= 0.5)).astype(jnp.float32)
    return 2 * high - 1 if signed else high


def basis_frequencies(basis: Waves, count: int, scale: float) -> Float[Array, 'count']:
    """The frequencies b of 'linf' (`linspace(1, 2^a)`), 'logf' (`2^linspace(0, a)`), a = `scale`,
    and 'basic' (1), in waves over the interval [0, 1).
    """
    check_choice('basis_frequencies basis', basis, ('linf', 'logf', 'basic'))
    if basis == 'linf':
        return jnp.linspace(1.0, 2.0**scale, count)
    return jnp.ones(count) if basis == 'basic' else 2.0 ** jnp.linspace(0.0, scale, count)


def basis_waves(x: Float[Array, '... d'], b: Float[Array, 'waves d']) -> Float[Array, '... F']:
    """`[sin(2 pi x b) | cos(2 pi x b)]`, not normalised, float32, F = 2 waves."""
    turns = jnp.matmul(x.astype(jnp.float32), b.T, precision=jax.lax.Precision.HIGHEST)
    angle = 2 * jnp.pi * (turns - jnp.round(turns))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def directions(coords: Float[Array, '... 2'], form: Form) -> Float[Array, '... n']:
    """The numbers of [0, 1) that the forms 'two' (x, y) and 'four' (x, y, (x + y) / 2, (x - y + 1)
    / 2) encode.
    """
    check_choice('directions form', form, ('two', 'four'))
    if form == 'two':
        return coords
    x, y = coords[..., 0], coords[..., 1]
    return jnp.stack([x, y, (x + y) / 2, (x - y + 1) / 2], axis=-1)


@register(
    'shifted_basis',
    kind='coordinates',
    card=Card(
        name='shifted basis embedders',
        example="shifted_basis('gaussian', form='two', features=16, scale=0.1)",
        use_when=('You fit fields by a linear or small model and want codes that can be analysed.'),
        share='model',
    ),
)
class ShiftedBasis(CoordinateEncoder):
    """Encodes coordinates by shifted copies of one function, or by waves.

    `psi(x)[c] = f(x - c / D)` and `[sin(2 pi x b) | cos(2 pi x b)]` are the codes of a number, f a
    Gaussian, triangle, impulse, square wave or sine. The form 'line' encodes one coordinate, 'two'
    concatenates the codes of x and y, 'four' those of x, y, (x + y) / 2 and (x - y + 1) / 2, and
    'complex' is their Kronecker product, F = D^2, which `kron_linear` of `coordinates.basis_grid`
    applies without forming it. All features are divided by the largest norm of a feature vector.
    Differs from the paper: the released code takes the largest norm of each batch; here it is that
    of a grid over the whole interval, so a point has the same features in any batch. The random
    frequencies of 'two' with 'rff' are those of points, [D / 2, 2], as in the released code; 'four'
    with 'rff' draws frequencies of one number.

    Args:
      basis: 'gaussian', 'triangle', 'impulse', 'square', 'sin', see `shifted_basis`; 'rff', b ~
        N(0, s^2); 'linf' and 'logf', see `basis_frequencies`; 'basic', one wave.
      form: 'line', 'two', 'four' or 'complex'.
      features: of all parts together; of each factor for 'complex'. 512 by default, for 'complex'
        256, and two per part for 'basic', which has no other number.
      scale: s, w, f or a. By default the values that the papers' grids of pixels use, 1 for 'sin'
        and 'square', half a step of anchors for 'impulse', and a step for 'triangle' ('four': 2.5 /
        128; 'complex': 2 / 256).

    Raises:
      ValueError: features that do not divide into the parts, or are odd for waves; more than
        2^20 features; a scale that is not positive, or an exponent a above 30; at call, points
        with another number of coordinates.

    Reference: Zheng, Ramasinghe, Lucey, arXiv 2107.02561 and arXiv 2205.08987.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> encoder = make_features("shifted_basis('gaussian', form='complex', features=8)")
      >>> encoder.encode(jnp.zeros((5, 2))).shape, encoder.width
      ((5, 64), 64)
    """

    def __init__(
        self,
        basis: Basis = 'gaussian',
        form: Form = 'line',
        features: int | None = None,
        scale: float | None = None,
        rngs: nnx.Rngs = CONTEXT,
    ):
        usual, parts = FORMS[form]
        basic = 2 * parts
        if basis == 'basic' and features not in (None, basic):
            raise ValueError(
                f"shifted_basis('basic', form={form!r}) has {basic} features, got {features}"
            )
        features = (basic if basis == 'basic' else usual) if features is None else features
        whole = parts * (2 if basis in WAVES else 1)
        if features < 1 or features % whole:
            raise ValueError(
                f'shifted_basis({basis!r}, form={form!r}) needs features that are a positive '
                f'multiple of {whole}, got {features}'
            )
        self.components = 1 if form == 'line' else 2
        self.width = limited('shifted_basis:', features**2 if form == 'complex' else features)
        self.basis, self.form, self.count = basis, form, features // parts
        self.scale = check_number(
            'shifted_basis scale',
            self._usual_scale() if scale is None else scale,
            above=0,
            most=30.0 if basis in ('linf', 'logf') else 1e6,
        )
        if basis == 'rff':
            axes = 2 if form == 'two' else 1
            waves = (features if form == 'two' else self.count) // 2
            b = self.scale * jax.random.normal(rngs.params(), (waves, axes), jnp.float32)
            self.b = Constant(b, axes=(None, None))
        elif basis in WAVES:
            b = basis_frequencies(basis, self.count // 2, self.scale)[:, None]
            self.b = Constant(b, axes=(None, None))
        self.norm = Constant(self._largest_norm(), axes=())

    def _usual_scale(self) -> float:
        if self.basis == 'triangle' and self.form == 'four':
            return 2.5 / 128
        known = COMPLEX if self.form == 'complex' else SIMPLE
        by_anchors = {'triangle': 1 / self.count, 'impulse': 0.5 / self.count}
        return known.get(self.basis, by_anchors.get(self.basis, 1.0))

    def _largest_norm(self) -> Float[Array, '']:
        """The largest norm of the features before it divides them, over a grid of points."""
        if self.basis in WAVES:  # all have the norm sqrt(F / 2)
            of_all = self.count if self.form == 'complex' else self.count * FORMS[self.form][1]
            return jnp.sqrt(of_all / 2)
        # Half steps: the sums and differences of two points of the grid lie on it too.
        places = jnp.arange(2 * _GRID, dtype=jnp.float32) / (2 * _GRID)
        square = jax.lax.map(lambda x: (self.code(x) ** 2).sum(), places)
        if self.form != 'four':
            return jnp.sqrt(square.max() * FORMS[self.form][1])
        i, j = jnp.arange(_GRID)[:, None], jnp.arange(_GRID)
        together = square[2 * i] + square[2 * j] + square[i + j] + square[i - j + _GRID]
        return jnp.sqrt(together.max())

    def code(self, x: Float[Array, '...']) -> Float[Array, '... D']:
        """The features of one number, not normalised."""
        if self.basis in WAVES:
            return basis_waves(x[..., None], self.b[...])
        return shifted_basis(x, self.basis, self.count, self.scale)

    def factors(
        self, coords: Float[Array, '... 2']
    ) -> tuple[Float[Array, '... D'], Float[Array, '... D']]:
        """The normalised psi(x) and psi(y) of the form 'complex', for `kron_linear`."""
        coords = self.check(coords)
        psi = self.code(coords) / self.norm[...]
        return psi[..., 0, :], psi[..., 1, :]

    def encode(self, coords):
        coords = self.check(coords)
        if self.form == 'complex':
            return kron_features(*self.factors(coords))
        if self.form == 'line':
            return self.code(coords[..., 0]) / self.norm[...]
        if self.form == 'two' and self.basis == 'rff':
            return basis_waves(coords, self.b[...]) / self.norm[...]
        code = self.code(directions(coords, self.form))
        return code.reshape(*code.shape[:-2], self.width) / self.norm[...]
