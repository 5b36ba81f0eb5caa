"""Bicubic interpolation of a table by its definition: what resized tables are held to."""

import numpy as np


def resized(cells, size):
    """The definition in float64: the kernel at every distance between the output and the cells."""

    def kernel(x):
        x, a = np.abs(x), -0.75
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    def along(count, new):
        place = (np.arange(new) + 0.5) * count / new - 0.5
        cells = np.arange(-3, count + 3)
        weights = kernel(place[:, None] - cells)
        matrix = np.zeros((new, count))
        for number, cell in enumerate(np.clip(cells, 0, count - 1)):
            matrix[:, cell] += weights[:, number]
        return matrix

    rows, columns = (along(*pair) for pair in zip(cells.shape, size))
    return np.einsum('ir,rcd,jc->ijd', rows, np.float64(cells), columns)
