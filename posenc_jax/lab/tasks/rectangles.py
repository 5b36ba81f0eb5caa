"""Pictures of a few rectangles, of which a detector is to find the boxes and kinds."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from posenc_jax.protocol.errors import check_number

KINDS = ('bright', 'dark', 'hollow')


class Pictures(NamedTuple):
    """Pictures with the objects that they show, padded to the largest number of objects.

    Attributes:
      image: noise with rectangles.
      boxes: (cx, cy, w, h) in parts of the image.
      kinds: numbers of `KINDS`.
      real: False on padding.
    """

    image: Float[np.ndarray, 'B n n 1']
    boxes: Float[np.ndarray, 'B G 4']
    kinds: Int[np.ndarray, 'B G']
    real: Bool[np.ndarray, 'B G']


def rectangles(
    rng: np.random.Generator, batch: int, *, side: int = 32, most: int = 3, noise: float = 0.2
) -> Pictures:
    """Pictures of `side` x `side` pixels with 1 to `most` rectangles that do not touch each other,
    fewer where there is no room. They are bright (1) or dark (-1), or hollow with a bright edge, in
    noise of this standard deviation; the pixels of an edge belong to the box.

    Raises:
      ValueError: a side below 16, most or batch below 1, a negative noise.
    """
    for name, value, least in (('side', side, 16), ('most', most, 1), ('batch', batch, 1)):
        if value < least:
            raise ValueError(f'rectangles: {name} must be at least {least}, got {value}')
    check_number('rectangles: noise', noise, least=0)
    image = noise * rng.standard_normal((batch, side, side, 1))
    boxes = np.tile([0.5, 0.5, 1.0, 1.0], (batch, most, 1))
    kinds, real = np.zeros((batch, most), np.int32), np.zeros((batch, most), bool)
    for row in range(batch):
        taken, count = np.zeros((side, side), bool), 0
        for _ in range(int(rng.integers(1, most, endpoint=True))):
            size = rng.integers(side // 6, side // 2, 2, endpoint=True)
            top, left = rng.integers(0, side - size, endpoint=True)
            bottom, right = top + size[0], left + size[1]
            if taken[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1].any():
                continue
            taken[top:bottom, left:right] = True
            kind = int(rng.integers(len(KINDS)))
            image[row, top:bottom, left:right, 0] += -1 if kind == 1 else 1
            if KINDS[kind] == 'hollow':
                image[row, top + 1 : bottom - 1, left + 1 : right - 1, 0] -= 1
            edges = np.array([left + right, top + bottom, 2 * size[1], 2 * size[0]])
            boxes[row, count], kinds[row, count], real[row, count] = edges / (2 * side), kind, True
            count += 1
    return Pictures(image.astype(np.float32), boxes.astype(np.float32), kinds, real)
