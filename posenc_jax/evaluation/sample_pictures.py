"""Pictures of sample images with their true classes and those that a model says, a row for each
length.
"""

import pathlib
import textwrap
from collections.abc import Sequence

from posenc_jax.core import disk
from posenc_jax.evaluation.image_samples import SHOWN
from posenc_jax.evaluation.series import RunResult

_RIGHT, _WRONG = '#000000', '#D55E00'


def write(runs: Sequence[RunResult], directory: pathlib.Path) -> list[pathlib.Path]:
    """Writes samples.png for the one run that has samples, or samples_1.png, samples_2.png and so
    on for several.

    Args:
      runs: those without samples are left out.
      directory: the folder of the pictures.

    Returns:
      The paths of the pictures.
    """
    drawn = [run for run in runs if run.samples]
    names = (
        ['samples.png'] if len(drawn) == 1 else [f'samples_{n + 1}.png' for n in range(len(drawn))]
    )
    for run, name in zip(drawn, names):
        _draw(run, directory / name)
    return [directory / name for name in names]


def _draw(run: RunResult, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    shares = {m.length: m.value for m in run.measurements}
    rows, columns = run.samples[0].images.shape[1:3]
    height = len(run.samples) * (12 / SHOWN * rows / columns + 0.4) + 0.5
    figure = Figure(figsize=(12.5, height), layout='constrained')
    axes = figure.subplots(len(run.samples), SHOWN, squeeze=False)
    for row, one in zip(axes, run.samples):
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
        for axis, image, true, said in zip(row, one.images, one.truth, one.said):
            # Images are standardised, so that the darkest pixel is black and the brightest white.
            low, high = image.min(), image.max()
            shown = (image - low) / max(high - low, 1e-6)
            shown = shown if shown.shape[-1] == 3 else shown.mean(-1)
            axis.imshow(shown, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
            title = true if said == true else f'{true}, said {said}'
            colour = _RIGHT if said == true else _WRONG
            axis.set_title(textwrap.shorten(title, 40), fontsize=8, color=colour)
        size = ' x '.join(map(str, one.images.shape[1:3]))
        row[0].set_ylabel(f'{size}\n{shares[one.length]:.1%} right', fontsize=9)
    title = f'{run.task}: {run.encoding}, {run.parameters:,} parameters, step {run.step}'
    figure.suptitle(
        '\n'.join(textwrap.wrap(title, 150)), fontsize=9, x=0.01, ha='left', color='0.3'
    )
    disk.save_figure(figure, path, dpi=110)
