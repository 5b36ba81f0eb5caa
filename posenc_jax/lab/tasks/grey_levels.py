"""The grey levels of picture files that have more than 8 bits."""

from typing import Any

import numpy as np
from jaxtyping import Float


def deep_grey(image: Any) -> Float[np.ndarray, 'H W'] | None:
    """The pixels of a picture of Pillow with one channel of 16 bits, in [0, 1]; None for others,
    whose channels have 8 bits.

    Raises:
      ValueError: pixels that are no whole numbers, whose range is not known.

    Example:
      >>> from PIL import Image
      >>> deep_grey(Image.fromarray(np.array([[0, 65535]], np.uint16))).tolist()
      [[0.0, 1.0]]
    """
    if image.mode == 'F':
        raise ValueError('its pixels are no whole numbers; save it with 8 or 16 bits')
    if not image.mode.startswith('I'):
        return None
    levels = np.array(image, np.float64)
    levels /= 65535  # in place, as this array is the largest
    return np.clip(levels, 0, 1, out=levels)
