"""A user's own pictures: the class of a picture is the subfolder that it lies in."""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.base import extras
from posenc_jax.base.programs import printable
from posenc_jax.lab.tasks.class_task import ClassFolder, split_numbers
from posenc_jax.lab.tasks.images.image_task import StoredImages
from posenc_jax.lab.tasks.picture_file import deep_grey, open_picture
from posenc_jax.protocol.bounds import Positive
from posenc_jax.protocol.errors import quoted, shortened
from posenc_jax.protocol.registry import register


@register('folder', kind='task')
@dataclasses.dataclass(frozen=True)
class Folder(ClassFolder, StoredImages):
    """Pictures in the subfolders of a folder, which name their classes in alphabetical order:
    `path/cat/1.png`, `path/dog/7.jpg`. They need Pillow.

    `ClassFolder` says how files are found and split. A picture of any shape is resized to n rows
    and the nearest number of columns to `aspect * n`.

    Args:
      path: the folder.
      grey: whether pictures are read as grey (1 channel) instead of colours (3 channels).
      aspect: columns for each row, e.g. 1.5 for pictures of 640 x 427 pixels.

    Raises:
      ImportError: Pillow is missing.
      ValueError: as for `ClassFolder`, or a file that is no picture or too large for
        `open_picture`; the message has the name. Files are read when a data set is made.

    Example:
      >>> Folder('no such folder')
      Traceback (most recent call last):
      ValueError: folder: 'no such folder' is no folder
    """

    path: str
    grey: bool = False
    aspect: Positive = 1.0

    key = 'folder'
    kind = 'picture'
    endings = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')

    @property
    def channels(self) -> int:
        return 1 if self.grey else 3

    def numbers(self, split: str) -> Int[np.ndarray, ' M']:
        parts, first = [], 0
        for files in self.files.values():
            parts.append(first + split_numbers(len(files), split))
            first += len(files)
        return np.concatenate(parts)

    @property
    def _labelled(self) -> list[tuple[pathlib.Path, int]]:
        return [(file, label) for label, own in enumerate(self.files.values()) for file in own]

    def check(self, side):
        for file, _ in self._labelled:
            _read(file, (1, 1), self.grey)

    def pictures(
        self, numbers: Int[np.ndarray, ' B'], side: int
    ) -> tuple[Float[np.ndarray, 'B rows columns C'], Int[np.ndarray, ' B']]:
        labelled = self._labelled
        size = side, self.columns(side)
        images = [_read(labelled[number][0], size, self.grey) for number in numbers]
        # Pixels of natural pictures have a mean near 1/2 and a deviation near 1/4.
        return (np.stack(images) - 0.5) * 4, np.array([labelled[number][1] for number in numbers])


def _read(
    file: pathlib.Path, size: tuple[int, int], grey: bool
) -> Float[np.ndarray, 'rows columns C']:
    """A picture of these rows and columns, 0 to 1."""
    with extras.explained():
        from PIL import Image
    try:
        with open_picture(file) as image:
            if (deep := deep_grey(image)) is not None:
                deep *= 255
                image = Image.fromarray(np.rint(deep, out=deep).astype(np.uint8))
            found = image.convert('L' if grey else 'RGB').resize(size[::-1], Image.BILINEAR)
    except Exception as error:  # every decoder of Pillow has errors of its own
        said = printable(shortened(str(error), 200)) or type(error).__name__
        raise ValueError(
            f'folder: {quoted(str(file))} cannot be read as a picture: {said}'
        ) from None
    return np.asarray(found, np.float32).reshape(*size, -1) / 255
