"""BARF: bands of waves whose weights grow from coarse to fine during training."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from posenc_jax.features.coordinates.encoder import CoordinateEncoder, Wide, limited
from posenc_jax.features.coordinates.fourier_features import MAX_BANDS, fourier_features_nerf
from posenc_jax.protocol.bounds import Ge, Gt, Le, Lt
from posenc_jax.protocol.registry import Card, register


def barf_window(
    progress: Float[Array, ''] | float, bands: int, begin: float = 0.1, end: float = 0.5
) -> Float[Array, ' L']:
    """`w_k = (1 - cos(pi clip(a - k, 0, 1))) / 2`, `a = L (p - begin) / (end - begin)`, for the
    bands k = 0 .. L - 1.

    Args:
      progress: p, the share of training that is over.
      bands: L.
      begin, end: where the first band begins to grow, and where the last one is whole.

    Example:
      >>> barf_window(0.25, bands=4).round(4).tolist()
      [1.0, 0.5, 0.0, 0.0]
    """
    grown = bands * (jnp.asarray(progress, jnp.float32) - begin) / (end - begin)
    share = jnp.clip(grown - jnp.arange(bands), 0.0, 1.0)
    return (1 - jnp.cos(jnp.pi * share)) / 2


def barf_features(x: Num[Array, '... d'], window: Float[Array, ' L']) -> Float[Array, '... F']:
    """`[x, then for coordinate j: w_k sin(2^k pi x_j) for all bands k, w_k cos(2^k pi x_j) for all
    k]`, d + 2 d L features, float32.

    Args:
      x: coordinates.
      window: w, of every band.
    """
    *shape, d = x.shape
    bands = window.shape[0]
    waves = fourier_features_nerf(x, bands)[..., d:].reshape(*shape, bands, d, 2)
    waves = window * jnp.moveaxis(waves, -3, -1)  # [..., d, 2, L]
    return jnp.concatenate([x.astype(jnp.float32), waves.reshape(*shape, 2 * d * bands)], axis=-1)


@register(
    'barf', kind='coordinates', card=Card(name='BARF', example='barf(bands=3)', share='model')
)
class Barf(CoordinateEncoder):
    """The waves of NeRF with a window over their bands that opens while a field is trained. What
    a field learns first is smooth, so that positions can be learned with it.

    `[x, w_k sin(2^k pi x_j), w_k cos(2^k pi x_j)]`, `w_k = (1 - cos(pi clip(a - k, 0, 1))) / 2`,
    `a = L (p - begin) / (end - begin)`, p the share of training that is over. For each coordinate
    the L sines come first, then the L cosines. `encode_at` takes p, which a model gets from
    training; evaluation reads all waves whole, and so does `encode`. Up to `begin` the coordinates
    alone are left. Differs from the paper: nothing.

    Args:
      components: d, coordinates of a point.
      bands: L; 10 for points, 4 for views and 8 for the alignment of pictures in the paper.
      begin, end: shares of training between which the window opens; (0, 0.4) for the alignment of
        pictures in the paper.

    Reference: Lin, Ma, Torralba, Lucey, arXiv 2104.06405.

    Example:
      >>> from posenc_jax.features.coordinates import make_features
      >>> encoder = make_features('barf(components=1, bands=2)')
      >>> encoder.encode_at(jnp.array([0.5]), progress=0.3).round(4).tolist()
      [0.5, 1.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        components: Wide = 2,
        bands: Annotated[int, Ge(1), Le(MAX_BANDS)] = 10,
        begin: Annotated[float, Ge(0), Lt(1)] = 0.1,
        end: Annotated[float, Gt('begin'), Le(1)] = 0.5,
    ):
        self.components, self.bands, self.begin, self.end = components, bands, begin, end
        self.width = limited('barf:', components * (1 + 2 * bands))

    def encode_at(self, coords, progress=None):
        coords = self.check(coords)
        opened = 1.0 if progress is None else progress
        return barf_features(coords, barf_window(opened, self.bands, self.begin, self.end))

    def encode(self, coords):
        return self.encode_at(coords)
