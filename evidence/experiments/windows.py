"""Tables of offsets in larger windows than those of training, for `grids windows`."""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from evidence.experiments.tables import report
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.lab.tasks.images import Blobs
from posenc_jax.lab.tasks.task import batch_rng
from posenc_jax.methods.swin_table import OffsetTable

SIDES = (16, 24)  # pixels
BATCHES, ROWS = 16, 64


def in_window(model: Transformer, side: int) -> Transformer:
    """A copy of a model whose tables of offsets serve windows of `side` x `side` patches: what
    their argument `size` does.
    """
    model = nnx.clone(model)
    for part in model.encodings:
        if isinstance(part, OffsetTable):
            part.window = side, side
    return model


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Measures the images that trained models get right, at each size of `SIDES`.

    Args:
      directories: (name, seed) -> directory of a run.
      workdir: its folder `windows` gets the results.
    """
    rows = []
    logits = nnx.jit(lambda model, images: model(images))
    for (name, seed), directory in directories.items():
        config, trained, _ = restore_model(directory)
        task = make_task(config)
        assert isinstance(task, Blobs)
        for side in SIDES:
            model = in_window(trained, side // config.model.patch)  # pyright: ignore[reportArgumentType]
            for larger in ('scene', 'detail'):
                right = []
                for number in range(BATCHES):
                    drawn = dataclasses.replace(task, larger=larger)
                    batch = drawn.sample(batch_rng(0, 'test', number), ROWS, side)
                    found = np.asarray(logits(model, batch['image']))[:, 0].argmax(-1)
                    right.append(found == batch['targets'][:, 0])
                rows.append((larger, name, side, seed, float(np.mean(right))))
        jax.clear_caches()
    report(rows, workdir / 'windows', title='windows', x='pixels', value='right', trained=SIDES[0])
