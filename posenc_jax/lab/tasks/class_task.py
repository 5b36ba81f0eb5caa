"""The base classes of tasks whose rows have one class each: images, clouds of points and graphs."""

import functools
import pathlib
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.task import SPLITS, Batch, Task
from posenc_jax.protocol.errors import check_choice, quoted


class ClassTask(Task):
    """A task that reads no token ids and predicts the class of a row unless a subclass says
    otherwise.
    """

    predicts = 'class'
    vocab_size = 0

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        """Numbers of classes as text."""
        return ' '.join(str(int(i)) for i in ids)


def class_targets(classes: Any) -> Batch:
    """The targets [B, 1] and the loss mask of a batch with these classes."""
    targets = np.asarray(classes, np.int32)[:, None]
    return {'targets': targets, 'loss_mask': np.ones(targets.shape, np.float32)}


def split_numbers(count: int, split: str, items: str = 'files of a class') -> Int[np.ndarray, ' M']:
    """The numbers of the samples of a split, out of `count`, of one class where classes are known
    by folder: after a fixed permutation a seventh each for test and validation, at least one, and
    the others for training. All data that exist are split by this rule.

    Raises:
      SpecError: an unknown split.
      ValueError: fewer than three samples; `items` says what is counted.
    """
    check_choice('split', split, SPLITS)
    if count < len(SPLITS):
        raise ValueError(
            f'expected at least three {items}, one for each split of the data, got {count}'
        )
    order, held = np.random.default_rng(0).permutation(count), max(1, count // 7)
    parts = {'test': order[:held], 'validation': order[held : 2 * held], 'train': order[2 * held :]}
    return np.sort(parts[split])


class ClassFolder(ClassTask):
    """Files of a user in the subfolders of a folder, which name their classes in alphabetical
    order. Names that begin with a dot are left out, and every other file must be of this kind. Each
    class is split by `split_numbers`.

    Attributes:
      path: the folder.
      kind: what a file is, for messages.
      endings: with which the names of files may end.

    Raises:
      ValueError: no folder of this name, fewer than two subfolders, a subfolder with fewer than
        three files, one for each split, or a file with another ending. The message has the name.
    """

    path: str
    key: ClassVar[str]
    kind: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]

    def __post_init__(self):
        self.files  # noqa: B018  (raises for a folder that cannot be used)

    @functools.cached_property
    def files(self) -> dict[str, list[pathlib.Path]]:
        """The files of each class, in order."""
        root = pathlib.Path(self.path).expanduser()
        if not root.is_dir():
            raise ValueError(f'{self.key}: {quoted(self.path)} is no folder')
        listed = lambda home: sorted(p for p in home.iterdir() if not p.name.startswith('.'))
        found = {home.name: listed(home) for home in listed(root) if home.is_dir()}
        if len(found) < 2:
            raise ValueError(
                f'{self.key}: {quoted(self.path)} must have a subfolder for each of at least two '
                f'classes, got {sorted(found) or "none"}'
            )
        for name, files in found.items():
            if len(files) < len(SPLITS):
                raise ValueError(
                    f'{self.key}: {quoted(str(root / name))} needs at least three {self.kind}s, '
                    f'one for each split, got {len(files)}'
                )
            for file in files:
                if not file.is_file() or file.suffix.lower() not in self.endings:
                    raise ValueError(
                        f'{self.key}: {quoted(str(file))} is no {self.kind}; expected a file that '
                        f'ends on {", ".join(self.endings)}'
                    )
        return found

    @property
    def output_size(self) -> int:
        return len(self.files)

    def labelled(self, split: str) -> list[tuple[pathlib.Path, int]]:
        """The files of a split, each with its class."""
        return [
            (files[number], label)
            for label, files in enumerate(self.files.values())
            for number in split_numbers(len(files), split)
        ]

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        """Names of classes as text."""
        names = list(self.files)
        return ' '.join(names[int(i)] for i in ids)
