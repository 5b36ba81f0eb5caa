"""Maps of the globe: the true classes, those of a field, where both differ, and the accuracy by
latitude.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from posenc_jax.lab.evaluate.field_points import Fitted
from posenc_jax.lab.evaluate.series import RunResult

BANDS = 12  # of latitude, each with the same area of the sphere
_TWO = ('#c6dbef', '#8c6d31')  # ocean and land
_WRONG, _RIGHT, _LINE = '#D55E00', '#eeeeee', '#0072B2'
_EDGE = 60  # degrees of latitude, where the poles begin


def accuracy_by_latitude(
    latitudes: Float[np.ndarray, ' N'], right: Bool[np.ndarray, ' N'], bands: int = BANDS
) -> tuple[Float[np.ndarray, ' edges'], Float[np.ndarray, ' bands']]:
    """The edges of bands of latitude with equal areas, in degrees, and the share of right places in
    each; NaN in a band without places.

    Args:
      latitudes: in degrees.
      right: whether a place has its true class.
      bands: how many.

    Example:
      >>> right = np.array([False, True, False])
      >>> edges, shares = accuracy_by_latitude(np.array([-50.0, 10.0, 20.0]), right, bands=2)
      >>> edges.tolist(), shares.tolist()
      ([-90.0, 0.0, 90.0], [0.0, 0.5])
    """
    edges = np.degrees(np.arcsin(np.linspace(-1, 1, bands + 1)))
    number = np.clip(np.searchsorted(edges, latitudes, side='right') - 1, 0, bands - 1)
    total, good = (np.bincount(number, w, minlength=bands) for w in (None, right))
    return edges, np.where(total > 0, good / np.maximum(total, 1), np.nan)


def draw(run: RunResult) -> Any:
    """The figure of a run."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    found, finest = run.class_map, max(run.fitted, key=lambda one: one.length)
    assert found is not None
    colours = ListedColormap(_TWO) if found.count == 2 else 'tab20' if found.count <= 20 else 'hsv'
    wrong = (found.classes != found.truth).astype(int)
    numbers = {m.protocol: m.value for m in run.measurements if m.length == finest.length}
    figure = Figure(figsize=(12.5, 7.2), layout='constrained')
    axes = figure.subplots(2, 2)
    for axis, classes, title, colour, most in (
        (axes[0, 0], found.truth, f'true, {found.count} classes', colours, found.count - 1),
        (axes[0, 1], found.classes, 'predicted', colours, found.count - 1),
        (axes[1, 0], wrong, 'wrong places', ListedColormap((_RIGHT, _WRONG)), 1),
    ):
        extent = (-180, 180, -90, 90)
        drawn = dict(vmin=0, vmax=max(most, 1), interpolation='nearest', aspect='auto')
        axis.imshow(classes, cmap=colour, extent=extent, **drawn)
        for latitude in (-_EDGE, _EDGE):
            axis.axhline(latitude, color='0.2', linestyle='--', linewidth=0.8)
        axis.set(title=title, xticks=range(-180, 181, 60), yticks=range(-90, 91, 30))
    axes[1, 0].set(xlabel='longitude, degrees', ylabel='latitude, degrees')
    _draw_latitudes(axes[1, 1], finest, numbers)
    return figure


def _draw_latitudes(axis, one: Fitted, numbers: dict[str, float]) -> None:
    right = one.output.argmax(-1) == one.points.targets
    edges, shares = accuracy_by_latitude(one.points.coords[:, 1].astype(np.float64), right)
    axis.stairs(shares, edges, color=_LINE, linewidth=1.8, baseline=None)
    for latitude in (-_EDGE, _EDGE):
        axis.axvline(latitude, color='0.2', linestyle='--', linewidth=0.8)
    axis.set(xlim=(-90, 90), ylim=(0, 1.02), xticks=range(-90, 91, 30))
    axis.set(xlabel='latitude, degrees; bands of equal area', ylabel='accuracy')
    shown = [
        f'{name.removeprefix("accuracy_").replace("_", " ")} {value:.3f}'
        if name != 'accuracy'
        else f'all {value:.3f}'
        for name, value in numbers.items()
    ]
    axis.set_title(f'{one.length:,} places: {", ".join(shown)}', fontsize=10)
    axis.spines[['top', 'right']].set_visible(False)
