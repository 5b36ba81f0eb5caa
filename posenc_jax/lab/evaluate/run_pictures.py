"""Pictures of single runs: what a field says of a picture or a globe, and samples of classes."""

import pathlib
import textwrap
from collections.abc import Sequence

from posenc_jax.lab.evaluate import field_maps, field_pictures, sample_pictures
from posenc_jax.lab.evaluate.series import RunResult
from posenc_jax.lab.files import disk

# Name of a picture -> which runs have one, and the figure of a run.
PICTURES = {
    'picture': (lambda run: any(one.images for one in run.fitted), field_pictures.draw),
    'map': (lambda run: run.class_map, field_maps.draw),
    'samples': (lambda run: run.samples, sample_pictures.draw),
}


def write(runs: Sequence[RunResult], directory: pathlib.Path) -> list[pathlib.Path]:
    """Writes the pictures of runs. That of the one run that has it is NAME.png; those of several
    are NAME_1.png, NAME_2.png and so on. Returns their paths.
    """
    paths = []
    for name, (has, draw) in PICTURES.items():
        drawn = [run for run in runs if has(run)]
        for number, run in enumerate(drawn, start=1):
            paths.append(directory / f'{name if len(drawn) == 1 else f"{name}_{number}"}.png')
            figure = draw(run)
            title = f'{run.task}: {run.encoding}, {run.parameters:,} parameters, step {run.step}'
            title = '\n'.join(textwrap.wrap(title, 150))
            figure.suptitle(title, fontsize=9, x=0.01, ha='left', color='0.3')
            disk.save_figure(figure, paths[-1], dpi=110)
    return paths
