"""The shift consistency of trained models of digits, for `images shift`."""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from evidence.experiments.tables import report
from posenc_jax.lab.analyse.shift_consistency import shift_consistency
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.tasks.images import Digits

OWN = 8  # pixels along a side of the digits


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Measures trained models on the digits of the test split, and on shifts of them.

    Args:
      directories: (name, seed) -> directory of a run.
      workdir: its folder `shifts` gets the results.
    """
    digits = Digits()
    images, classes = digits.pictures(digits.numbers('test'), OWN)
    images, key = jnp.asarray(images, jnp.float32), jax.random.key(0)
    by = jax.random.randint(jax.random.key(1), (len(images), 2), 0, OWN)
    rolled = jax.vmap(lambda image, by: jnp.roll(image, (by[0], by[1]), (0, 1)))(images, by)
    rows, largest = [], []
    for (name, seed), directory in directories.items():
        _, model, _ = restore_model(directory)
        found = shift_consistency(model, images, key)
        right = [
            float((np.asarray(model(x))[:, 0].argmax(-1) == classes).mean())
            for x in (images, rolled)
        ]
        for what, value in zip(
            ('consistency', 'accuracy', 'accuracy, shifted'), (found.share, *right)
        ):
            rows.append((what, name, OWN, seed, value))
        largest.append(f'{name}, seed {seed}: logits differ by at most {found.largest:.2g}')
    report(rows, workdir / 'shifts', title='digits', x='pixels', value='share')
    print('\n'.join(largest))
