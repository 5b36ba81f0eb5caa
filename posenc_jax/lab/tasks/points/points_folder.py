"""A user's own clouds of points: the class of a file is the subfolder that it lies in."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from posenc_jax.base.memory import check_data
from posenc_jax.features.coordinates.point_orders import check_points
from posenc_jax.lab.tasks.class_task import ClassFolder
from posenc_jax.lab.tasks.points.npy_file import MOST, count_points
from posenc_jax.lab.tasks.points.point_task import PointTask
from posenc_jax.lab.tasks.task import SPLITS, Length, Reader
from posenc_jax.protocol.errors import LARGEST, quoted
from posenc_jax.protocol.registry import register

POINT = 24  # bytes of a point, three numbers of float64


@register('points_folder', kind='task')
@dataclasses.dataclass(frozen=True)
class PointsFolder(ClassFolder, PointTask):
    """Clouds of points in NumPy files `path/CLASS/*.npy`, each an array [M, 3]; the subfolders name
    the classes in alphabetical order.

    A cloud is N of the M points of a file. `ClassFolder` says how files are found and split.
    Further arguments are those of `PointTask`.

    Args:
      path: the folder.
      centred: whether the mean of the points of a file becomes 0 and their largest distance from it
        1, which suits the usual `size` of a cell.
      part: the split of which `sample` draws; a data set reads its own.

    Raises:
      ValueError: as for `ClassFolder`; when a data set is made, a file that is no array [M, 3] of
        numbers that are finite in float32 or has fewer than N points, and files whose points are
        together too many for `base.memory.check_data`; the headers of all are read before any
        points. The message has the name.

    Example:
      >>> PointsFolder('no such folder')
      Traceback (most recent call last):
      ValueError: points_folder: 'no such folder' is no folder
    """

    path: str
    centred: bool = True
    part: Literal[*SPLITS] = 'train'

    key = 'points_folder'
    kind = 'cloud'
    endings = ('.npy',)

    @functools.cached_property
    def stored(self) -> list[tuple[pathlib.Path, Float[np.ndarray, 'M 3'], int]]:
        """The files of the part with their points and classes."""
        own = self.labelled(self.part)
        counts = [_with_name(count_points, file) for file, _ in own]
        check_data(
            f'points_folder: the {sum(counts)} points of {len(own)} files in {quoted(self.path)}',
            POINT * (sum(counts) + 2 * max(counts)),
            'give fewer files, or files with fewer points',
        )
        return [(file, self._read(file), label) for file, label in own]

    def _read(self, file: pathlib.Path) -> Float[np.ndarray, 'M 3']:
        found = _with_name(_load, file)
        points = check_points(found, f'points_folder: {quoted(str(file))}')
        if (largest := np.abs(points).max()) > LARGEST:
            raise ValueError(
                f'points_folder: {quoted(str(file))} has a coordinate of size {largest:g}, '
                f'which float32 does not hold; at most {LARGEST:g}'
            )
        if self.centred:
            points = points - points.mean(axis=0)
            points /= np.linalg.norm(points, axis=1).max() or 1.0
        return points

    def of_split(self, split):
        return dataclasses.replace(super().of_split(split), part=split)

    def reader(self, split: str, length: Length) -> Reader:
        self.check(self.width(length))
        return super().reader(split, length)

    def check(self, most: int) -> None:
        """Raises ValueError if a file of the part has fewer than `most` points."""
        for file, points, _ in self.stored:
            if len(points) < most:
                raise ValueError(
                    f'points_folder: {quoted(str(file))} has {len(points)} points, fewer than the '
                    f'length {most}; use a length of at most '
                    f'{min(len(points) for _, points, _ in self.stored)}'
                )

    def clouds(self, rng, counts):
        self.check(int(counts.max()))
        chosen = [self.stored[i] for i in rng.integers(0, len(self.stored), len(counts))]
        clouds = [
            points[rng.choice(len(points), n, replace=False)]
            for (_, points, _), n in zip(chosen, counts)
        ]
        return clouds, np.array([label for *_, label in chosen])


def _with_name(read: Callable[[pathlib.Path], Any], file: pathlib.Path) -> Any:
    try:
        return read(file)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f'points_folder: {quoted(str(file))} cannot be read as an array: {error}'
        ) from None


def _load(file: pathlib.Path) -> np.ndarray:
    return np.load(file, allow_pickle=False, max_header_size=MOST)
