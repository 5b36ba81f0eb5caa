"""The base class of encoders of places on the globe: two coordinates, in degrees, whose ranges are
checked.
"""

from typing import ClassVar

import numpy as np
from jaxtyping import Float

from posenc_jax.features.coordinates.encoder import CoordinateEncoder, counted

RADIAN = np.pi / 180  # radians per degree


class GeoEncoder(CoordinateEncoder):
    """Features of places (longitude, latitude) in degrees, in this order.

    Longitudes lie in [-180, 180], latitudes in [-90, 90]. Other values are refused with a
    ValueError at call.

    Attributes:
      seamless: whether the longitudes -180 and 180, which are one meridian, have the same features.
    """

    names = ('longitude', 'latitude')
    components = 2
    seamless: ClassVar[bool] = False

    def check_values(self, coords: Float[np.ndarray, '... 2']) -> None:
        """Refuses values that are not finite or not degrees of longitude and latitude.

        Raises:
          ValueError: there are such values; says which ranges were found, and what they look like.
        """
        super().check_values(coords)
        wrong = (np.abs(coords) > (180, 90)).any(-1)
        if wrong.any():
            spans = [(float(a.min()), float(a.max())) for a in np.moveaxis(coords, -1, 0)]
            found = ' and '.join(f'{n}s {a:g} .. {b:g}' for n, (a, b) in zip(self.names, spans))
            raise ValueError(
                f'{type(self).__name__} encodes (longitude, latitude) in degrees, -180 .. 180 and '
                f'-90 .. 90, got {found}; {counted(wrong)}; {likely_remedy(*spans)}'
            )


def likely_remedy(longitudes: tuple[float, float], latitudes: tuple[float, float]) -> str:
    """What coordinates out of range look like, and how they become right.

    Args:
      longitudes, latitudes: the smallest and the largest value of each.
    """
    inside = lambda span, low, high: low <= span[0] and span[1] <= high
    if inside(latitudes, -90, 90):
        kind = 'of 0 .. 360 ' if inside(longitudes, 0, 360) else ''
        return f'longitudes {kind}become those of -180 .. 180 by (longitude + 180) % 360 - 180'
    if inside(longitudes, -90, 90) and inside(latitudes, -180, 360):
        return 'they look swapped, and coords[..., ::-1] puts the longitude first'
    if inside(longitudes, -180, 180) and inside(latitudes, 0, 180):
        return 'the latitude of an angle from the pole is 90 - angle'
    if max(map(abs, (*longitudes, *latitudes))) > 1000:
        return 'coordinates of a map projection, in metres, are converted to degrees first'
    return 'check their unit and their order'
