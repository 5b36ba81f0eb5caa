"""The values of a field at the points of its task, and their errors."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from posenc_jax.lab.evaluate.measurement import BY_PLANE, Measurement, wilson
from posenc_jax.lab.model.field import Field, FieldConfig
from posenc_jax.lab.model.losses import LOSSES, psnr, wrong_bits
from posenc_jax.lab.tasks.field_task import FieldTask, Points

AT_ONCE = 2**14  # points that are read at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """What a field says at a resolution.

    Attributes:
      length: the resolution.
      points: the points and their targets.
      output: values, or logits of classes or bits.
      images: the true and the fitted picture in [0, 1]; None where the task is none.
    """

    length: int
    points: Points
    output: Float[np.ndarray, 'N O']
    images: tuple[Float[np.ndarray, 'H W C'], Float[np.ndarray, 'H W C']] | None


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMap:
    """Classes on a map of the globe, the first row in the north, the first column in the west.

    Attributes:
      truth: the true classes.
      classes: what the field says.
      count: how many classes there are.
    """

    truth: Int[np.ndarray, 'H W']
    classes: Int[np.ndarray, 'H W']
    count: int


def fit(model: Field, task: FieldTask, lengths: Sequence[int]) -> tuple[Fitted, ...]:
    """What a field says at the points of every resolution.

    Raises:
      ValueError: its features are not defined at a point.
    """
    read, found = reader(model), []
    for length in lengths:
        points = task.evaluation_points(length)
        output = read(points.coords)
        found.append(Fitted(length, points, output, task.images(length, output)))
    return tuple(found)


def draw_map(model: Field, task: FieldTask) -> ClassMap | None:
    """The classes that a field says on the map of its task, or None if that has none."""
    if (drawn := task.map_points()) is None:
        return None
    points, shape = drawn
    classes = reader(model)(points.coords).argmax(-1).reshape(shape)
    return ClassMap(points.targets.reshape(shape), classes, task.output_size)


def reader(model: Field) -> Callable[[Float[np.ndarray, 'N d']], Float[np.ndarray, 'N O']]:
    """A function that reads a field at any number of points, some thousand at a time. It raises
    ValueError if the features of the field are not defined at a point.
    """
    graphdef, state = nnx.split(model)
    read = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))

    def values(coords):
        model.check_coordinates(coords)
        count = len(coords)
        rows = min(AT_ONCE, count)
        padded = np.pad(coords, ((0, -count % rows), (0, 0)), 'edge')  # one shape, one compilation
        parts = padded.reshape(-1, rows, coords.shape[1])
        return np.concatenate([np.asarray(read(state, part)) for part in parts])[:count]

    return values


def measure(fitted: Sequence[Fitted], cfg: FieldConfig) -> list[Measurement]:
    """The measurements of every resolution, of the main points and of each other part.

    Values have the peak signal-to-noise ratio, classes the accuracy with its Wilson interval; whole
    numbers have the rate of wrong bits, by plane too, and whether none is wrong.

    Raises:
      ValueError: an output that is not finite.
    """
    found = []
    for one in fitted:
        if not np.isfinite(one.output).all():
            place = np.argwhere(~np.isfinite(one.output))[0, 0]
            raise ValueError(
                f'at resolution {one.length} the field says {one.output[place].tolist()} at '
                f'{one.points.coords[place].tolist()}; its parameters may not be finite'
            )
        everywhere = {'': np.ones(len(one.output), bool)}
        for name, chosen in (one.points.parts or everywhere).items():
            if chosen.any():
                found += _measured(one, cfg, name, chosen)
    return found


def _measured(
    one: Fitted, cfg: FieldConfig, part: str, chosen: Bool[np.ndarray, ' N']
) -> list[Measurement]:
    output, targets = jnp.asarray(one.output[chosen]), jnp.asarray(one.points.targets[chosen])
    losses, _ = LOSSES[cfg.predicts](output, targets)
    mean, count = float(np.asarray(losses, np.float64).mean()), int(chosen.sum())

    def made(metric, value, low=None, high=None, accuracy=None, protocol=''):
        protocol = protocol or metric
        name = f'{protocol}_{part}' if part else protocol
        return Measurement(
            name, one.length, metric, value, low, high, mean, None, accuracy, count, count
        )

    if cfg.predicts == 'class':
        right = int((np.argmax(output, axis=-1) == targets).sum())
        share = right / count
        return [made('accuracy', share, *wilson(right, count), share)]
    found = [made('psnr', psnr(mean))] if cfg.predicts == 'value' else []
    if cfg.bits:
        whole = cfg.bits if cfg.predicts == 'value' else 0
        wrong = np.asarray(wrong_bits(output, targets, whole), np.float64)
        rate = float(wrong.sum() / ((whole or 1) * wrong.size))
        found += [made('bit_error_rate', rate), made('lossless', float(rate == 0))]
        if cfg.predicts == 'bits':  # the bit is the last axis of the grid
            for plane, value in enumerate(
                wrong.reshape(-1, cfg.bits, wrong.shape[-1]).mean((0, 2))
            ):
                whole = made('bit_error_rate', float(value), protocol=BY_PLANE)
                place = dict(position_low=plane, position_high=plane + 1)
                found.append(dataclasses.replace(whole, tokens=count // cfg.bits, **place))
    return found
