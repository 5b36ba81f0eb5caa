"""Picture files of a user, whose sizes are checked before they are read, and their grey levels."""

import pathlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from posenc_jax.base import extras

if TYPE_CHECKING:
    from PIL import Image

# Cameras reach 102 million pixels. As colours in float64, so many as these take 3 GiB.
MOST_PIXELS = 2**27
MOST_BYTES = 8 * MOST_PIXELS  # of a file; the largest pixels without compression have 8
_SMALLER = f'at most {MOST_PIXELS} are read; save it with fewer pixels'


def open_picture(path: pathlib.Path) -> 'Image.Image':
    """A picture of Pillow, of which only the header has been read.

    Raises:
      ImportError: Pillow is missing.
      ValueError: a file of more than `MOST_BYTES`, or a picture of more than `MOST_PIXELS`.
      Exception: what Pillow raises for other files.
    """
    with extras.explained():
        from PIL import Image
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f'the file has {size} bytes, at most {MOST_BYTES} are read')
    # Pillow warns, in two lines, of pictures of fewer pixels than are accepted here.
    warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
    try:
        image = Image.open(path)
    except Image.DecompressionBombError:
        raise ValueError(f'it has too many pixels; {_SMALLER}') from None
    if image.width * image.height > MOST_PIXELS:
        width, height = image.size
        image.close()
        raise ValueError(f'it has {width} x {height} = {width * height} pixels; {_SMALLER}')
    return image


def deep_grey(image: Any) -> Float[np.ndarray, 'H W'] | None:
    """The pixels of a picture of Pillow with one channel of 16 bits, in [0, 1]; None for others,
    whose channels have 8 bits.

    Raises:
      ValueError: pixels that are no whole numbers, whose range is not known.
    """
    if image.mode == 'F':
        raise ValueError('its pixels are no whole numbers; save it with 8 or 16 bits')
    if not image.mode.startswith('I'):
        return None
    levels = np.array(image, np.float64)
    levels /= 65535  # in place, as this array is the largest
    return np.clip(levels, 0, 1, out=levels)
