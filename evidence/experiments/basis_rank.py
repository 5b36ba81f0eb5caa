"""Encodings of coordinates by their stable rank: how well a linear model fills in a picture.

Measured:  the PSNR of the half of the pixels that was not read, by a linear model of least squares
           on products of codes of rows and columns, for Gaussians, triangles and random Fourier
           features of several widths; and the stable rank of the codes of one axis. A seed draws
           the picture, the half and the frequencies. The share of the variance of the PSNR that a
           square polynomial of the logarithm of the stable rank explains, over all codes, is the
           row 'explained'.
Time:      20 s of processor time a seed
Paper:     Zheng et al. (arXiv 2107.02561): the trade between stable rank and preserved distances
           decides the quality of an encoding, of which Fourier features are one case.
"""

import argparse

import jax.numpy as jnp
import numpy as np
from flax import nnx

from evidence.experiments.program import Found, Program, each
from posenc_jax.features.coordinates import make_features
from posenc_jax.features.coordinates.basis_grid import stable_rank
from posenc_jax.lab.model.losses import psnr
from posenc_jax.lab.tasks.pictures.sources import load_picture

# Widths of the functions over the interval, and deviations of frequencies.
SCALES = {
    'gaussian': (0.01, 0.02, 0.04, 0.08, 0.16, 0.32),
    'triangle': (0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
    'rff': (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
}


def explained(x: np.ndarray, y: np.ndarray) -> float:
    """The share of the variance of y that a square polynomial of x explains."""
    return float(1 - (y - np.polyval(np.polyfit(x, y, 2), x)).var() / y.var())


def filled_in(code: np.ndarray, image: np.ndarray, known: np.ndarray) -> float:
    """The PSNR of the other pixels, from a linear model of least squares of the known ones."""
    features = (code[:, None, :, None] * code[None, :, None, :]).reshape(image.size, -1)
    square = features[known].T @ features[known]
    small = 1e-6 * np.trace(square) / len(square)
    weights = np.linalg.solve(
        square + small * np.eye(len(square)), features[known].T @ image.ravel()[known]
    )
    error = (features[~known] @ weights - image.ravel()[~known]) ** 2
    return float(psnr(error.mean()))


def of_seed(seed: int, options: argparse.Namespace) -> Found:
    side, count = options.side, options.features
    rng = np.random.default_rng(seed)
    whole = load_picture('synthetic', seed)[..., 0]
    block = whole.shape[0] // side
    image = whole[: side * block, : side * block].reshape(side, block, side, block).mean((1, 3))
    known = rng.permutation(side**2) < side**2 // 2
    ranks, qualities = [], []
    for basis, scales in SCALES.items():
        for scale in scales:
            spec = f"shifted_basis('{basis}', form='line', features={count}, scale={scale})"
            encoder = make_features(spec, nnx.Rngs(seed))
            code = encoder.encode(jnp.arange(side)[:, None] / side)
            ranks.append(float(stable_rank(code)))
            qualities.append(filled_in(np.asarray(code, np.float64), image, known))
            yield 'PSNR, dB', basis, scale, qualities[-1]
            yield 'stable rank', basis, scale, ranks[-1]
    yield 'all', 'explained', 0.0, explained(np.log(ranks), np.array(qualities))


PROGRAM = Program(
    __name__,
    __doc__,
    each(of_seed),
    options={'side': (64, 'pixels along a side'), 'features': (32, 'of an axis')},
    table={'title': 'Codes of coordinates', 'x': 'scale', 'value': 'value'},
)
