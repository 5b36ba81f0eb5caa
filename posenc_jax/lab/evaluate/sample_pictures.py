"""Pictures of sample images, clouds of points and graphs with their true classes and those that a
model says, a row for each length.
"""

import textwrap
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components

from posenc_jax.lab.evaluate.samples import SHOWN, Samples
from posenc_jax.lab.evaluate.series import RunResult

_RIGHT, _WRONG = '#000000', '#D55E00'
_NODE = '#0072B2'


def draw_image(axis: Any, samples: Samples, row: int) -> None:
    """An image. It is standardised, so that its darkest pixel is black and its brightest white."""
    image = samples.batch['image'][row]
    low, high = image.min(), image.max()
    shown = (image - low) / max(high - low, 1e-6)
    shown = shown if shown.shape[-1] == 3 else shown.mean(-1)
    axis.imshow(shown, cmap='gray', vmin=0, vmax=1, interpolation='nearest')


def draw_cloud(axis: Any, samples: Samples, row: int) -> None:
    """A cloud, seen along (1, 1, 1); nearer points are darker."""
    points = samples.batch['vectors'][row][_present(samples, row)]
    across = points @ np.array([-1.0, 1.0, 0.0]) / 2**0.5
    up = points @ np.array([-1.0, -1.0, 2.0]) / 6**0.5
    near = points.sum(axis=1)
    axis.scatter(across, up, c=near, cmap='viridis_r', s=3, linewidths=0)
    axis.set_aspect('equal', adjustable='datalim')
    axis.margins(0.05)


def draw_graph(axis: Any, samples: Samples, row: int) -> None:
    """The nodes of a graph on a circle, those of a component side by side, with its edges. Where
    each node has a class, nodes whose class is wrong have another colour.
    """
    kept = np.flatnonzero(_present(samples, row))
    _, component = connected_components(samples.batch['adjacency'][row][kept][:, kept])
    kept = kept[np.argsort(component, kind='stable')]
    edges = samples.batch['adjacency'][row][kept][:, kept]
    angles = 2 * np.pi * np.arange(len(edges)) / len(edges)
    x, y = np.sin(angles), np.cos(angles)
    first, second = np.nonzero(np.triu(edges))
    axis.plot(x[[first, second]], y[[first, second]], color='0.75', linewidth=0.5, zorder=0)
    colours = [_NODE] * len(edges)
    if samples.truth.shape[1] > 1:
        right = (samples.said == samples.truth)[row][kept]
        colours = [_NODE if node else _WRONG for node in right]
    axis.scatter(x, y, c=colours, s=10, linewidths=0)
    axis.set_aspect('equal')
    axis.margins(0.1)


def title_of(samples: Samples, row: int) -> tuple[str, bool]:
    """The text above a row, and whether all of it is right."""
    right = (samples.said == samples.truth)[row][samples.scored[row]]
    if samples.truth.shape[1] > 1:
        return f'{right.sum()} of {len(right)} nodes right', bool(right.all())
    true, said = samples.names[row]
    return (true if right.all() else f'{true}, said {said}'), bool(right.all())


def _present(samples: Samples, row: int) -> np.ndarray:
    """Which vectors of a row are no padding."""
    batch = samples.batch
    if 'valid' in batch:
        return batch['valid'][row]
    return np.ones(batch['vectors'].shape[-2], bool)


def draw(run: RunResult) -> Any:
    """The figure of a run."""
    from matplotlib.figure import Figure

    shares = {m.length: m.value for m in run.measurements}
    batch = run.samples[0].batch
    is_image = 'image' in batch
    shape = batch['image'].shape[1:3] if is_image else (1, 1)
    draw = draw_image if is_image else draw_graph if 'adjacency' in batch else draw_cloud
    height = len(run.samples) * (12 / SHOWN * shape[0] / shape[1] + 0.4) + 0.5
    figure = Figure(figsize=(12.5, height), layout='constrained')
    axes = figure.subplots(len(run.samples), SHOWN, squeeze=False)
    for line, one in zip(axes, run.samples):
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
        for row, axis in zip(range(len(one.truth)), line):
            draw(axis, one, row)
            title, right = title_of(one, row)
            colour = _RIGHT if right else _WRONG
            axis.set_title(textwrap.shorten(title, 40), fontsize=8, color=colour)
        sides = one.batch['image'].shape[1:3] if is_image else ()
        size = ' x '.join(map(str, sides)) or f'length {one.length}'
        line[0].set_ylabel(f'{size}\n{shares[one.length]:.1%} right', fontsize=9)
    return figure
