"""Fields that are asked for means over larger pixels than those of training, for `field_methods`.

WORKDIR/means has the PSNR of every run against the picture of 64 x 64, 32 x 32 and 16 x 16 pixels,
whose pixels are means over 1, 4 and 16 of those that were fitted. A field of `integrated_pe` is
told the variance of the pixels, a twelfth of their squared side, and one of plain waves reads their
centres.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from evidence.experiments.tables import report
from posenc_jax.lab.evaluate.field_points import reader
from posenc_jax.lab.model.losses import psnr
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.tasks.pictures.picture import Picture

SIDES = (64, 32, 16)


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Measures fields of the synthetic picture.

    Args:
      directories: (name, seed) -> directory of a run; a name begins with 'integrated' where the
        field is told how large pixels are.
      workdir: its folder `means` gets the results.
    """
    picture, rows = Picture('synthetic'), []
    for (name, seed), directory in directories.items():
        model: Any = restore_model(directory)[1]
        for side in SIDES:
            if name.startswith('integrated'):
                model.features.variance[...] = jnp.float32((2 / side) ** 2 / 12)
            points = picture.points(side)
            error = reader(model)(points.coords) - points.targets
            rows.append(('PSNR', name, side, seed, psnr(float(np.square(error).mean()))))
    report(rows, workdir / 'means', title='means over pixels', x='pixels', value='PSNR, dB')
