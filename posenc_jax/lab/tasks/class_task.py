"""What tasks share whose rows have one class each: images, clouds of points and graphs."""

import pathlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.task import SPLITS, Batch, Task
from posenc_jax.protocol.errors import check_choice, quoted


class ClassTask(Task):
    """A task that reads no token ids and predicts the class of a row unless a subclass says
    otherwise.
    """

    @property
    def predicts(self) -> Literal['here', 'class']:
        return 'class'

    @property
    def vocab_size(self) -> int:
        return 0

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        """Numbers of classes as text."""
        return ' '.join(str(int(i)) for i in ids)


def class_targets(classes: Any) -> Batch:
    """The targets [B, 1] and the loss mask of a batch with these classes.

    Example:
      >>> {name: array.tolist() for name, array in class_targets([2, 0]).items()}
      {'targets': [[2], [0]], 'loss_mask': [[1.0], [1.0]]}
    """
    targets = np.asarray(classes, np.int32)[:, None]
    return {'targets': targets, 'loss_mask': np.ones(targets.shape, np.float32)}


def split_numbers(count: int, split: str, items: str = 'files of a class') -> Int[np.ndarray, ' M']:
    """The numbers of the samples of a split, out of `count`: after a fixed permutation a seventh
    each for test and validation, at least one, and the others for training. All data that exist are
    split by this rule.

    Args:
      count: number of samples, of one class where classes are known by folder.
      split: 'train', 'validation' or 'test'.
      items: what is counted, in the plural, for messages.

    Raises:
      SpecError: an unknown split.
      ValueError: fewer than three samples.

    Example:
      >>> [split_numbers(5, split).tolist() for split in ('train', 'validation', 'test')]
      [[0, 1, 3], [4], [2]]
    """
    check_choice('split', split, SPLITS)
    if count < len(SPLITS):
        raise ValueError(
            f'expected at least three {items}, one for each split of the data, got {count}'
        )
    order, held = np.random.default_rng(0).permutation(count), max(1, count // 7)
    parts = {'test': order[:held], 'validation': order[held : 2 * held], 'train': order[2 * held :]}
    return np.sort(parts[split])


def class_files(
    user: str, path: str, items: str, check: Callable[[pathlib.Path], None]
) -> dict[str, list[pathlib.Path]]:
    """The files in the subfolders of a folder, by the names of these, both in order. Names that
    begin with a dot are left out.

    Args:
      user: who reads them, for messages.
      path: the folder.
      items: what the files are, in the plural, for messages.
      check: raises for a file that cannot be one of them.

    Raises:
      ValueError: no folder of this name, fewer than two subfolders, or a subfolder with fewer than
        three files, one for each split.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f'{user}: {quoted(path)} is no folder')
    listed = lambda home: sorted(p for p in home.iterdir() if not p.name.startswith('.'))
    found = {home.name: listed(home) for home in listed(root) if home.is_dir()}
    if len(found) < 2:
        raise ValueError(
            f'{user}: {quoted(path)} must have a subfolder for each of at least two classes, got '
            f'{sorted(found) or "none"}'
        )
    for name, files in found.items():
        if len(files) < 3:
            raise ValueError(
                f'{user}: {quoted(str(root / name))} needs at least three {items}, one for each '
                f'split, got {len(files)}'
            )
        for file in files:
            check(file)
    return found
