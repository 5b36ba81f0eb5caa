"""Digits whose patches are enlarged, and weights that follow the patches, for `images enlarged`.

WORKDIR/enlarged has, of every run, the largest difference of a logit between images of 8 x 8 pixels
and the same images with every patch of 4 x 4 pixels enlarged to 8 x 8 by itself, and the share of
digits that are right in the images as they are and enlarged as a whole. The weights of the patches
are resized by the pseudo-inverse (`pi_resize`), or as a picture is: bilinearly, and bilinearly and
divided by four, as a patch has four times the pixels.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from evidence.experiments.tables import report
from posenc_jax.lab.conversion.pi_resize import change_patch, resize_matrix
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.tasks.images import Digits

PIXELS, PATCH, TIMES = 8, 4, 2


def with_kernel(model: Any, patch: int, factor: float) -> Any:
    """The model of larger patches whose weights are resized as a picture is, times a factor."""
    changed, along = change_patch(model, patch), resize_matrix(PATCH, patch)
    kernel = np.asarray(model.input_layer.kernel[...], np.float64)
    resized = factor * np.einsum('ir,jc,rcmd->ijmd', along, along, kernel)
    changed.input_layer.kernel[...] = jnp.asarray(resized, jnp.float32)
    return changed


def resized(images: Float[np.ndarray, 'B n n C'], along: Float[np.ndarray, 'm n']) -> jax.Array:
    """Images with a matrix applied to their rows and to their columns."""
    return jnp.asarray(np.einsum('ir,jc,brcn->bijn', along, along, images), jnp.float32)


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Measures trained models on the digits of the test split.

    Args:
      directories: (name, seed) -> directory of a run.
      workdir: its folder `enlarged` gets the results.
    """
    digits = Digits()
    images, classes = digits.pictures(digits.numbers('test'), PIXELS)
    apart = np.kron(np.eye(PIXELS // PATCH), resize_matrix(PATCH, TIMES * PATCH))
    by_patch, whole = (resized(images, a) for a in (apart, resize_matrix(PIXELS, TIMES * PIXELS)))
    rows = []
    for (name, seed), directory in directories.items():
        model: Any = restore_model(directory)[1]
        read = lambda model, x: np.asarray(nnx.jit(lambda m, x: m(x))(model, x)[:, 0], np.float64)
        right = lambda logits: float((logits.argmax(-1) == classes).mean())
        before = read(model, jnp.asarray(images, jnp.float32))
        rows.append(('accuracy', 'as they are', PIXELS, seed, right(before)))
        for how, changed in (
            ('pi_resize', change_patch(model, TIMES * PATCH)),
            ('bilinear', with_kernel(model, TIMES * PATCH, 1.0)),
            ('bilinear, divided', with_kernel(model, TIMES * PATCH, TIMES**-2)),
        ):
            logits = read(changed, by_patch)
            difference = float(np.abs(logits - before).max())
            rows.append(('difference', how, TIMES * PIXELS, seed, difference))
            accuracy = right(read(changed, whole))
            rows.append(('accuracy', how, TIMES * PIXELS, seed, accuracy))
    report(rows, workdir / 'enlarged', title='digits', x='pixels', value='value')
