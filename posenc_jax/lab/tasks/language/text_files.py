"""A user's own text files, named by a glob pattern."""

import dataclasses
import glob
import logging
import os
import pathlib
import re

from posenc_jax.base.memory import check_data
from posenc_jax.base.programs import printable
from posenc_jax.lab.files import paths
from posenc_jax.lab.tasks.language.documents import (
    TOKEN,
    as_text,
    cuts_documents,
    split_bytes,
    split_documents,
)
from posenc_jax.lab.tasks.task import SPLITS
from posenc_jax.protocol.errors import check_choice, quoted

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """The files that match a pattern, in sorted order, split by name.

    If a split by name would leave a part below 1 % of the bytes, as it can with few files, each
    file is cut at 90 % and 95 %; `description` says so. Names are relative to the folder in front
    of the first wildcard, so moving that folder does not change the split.

    Args:
      pattern: a glob pattern; `**` matches any number of folders; a leading `~` is the home folder.
        A pattern of objects in a bucket, such as 'gs://BUCKET/books/*.txt', has no `**`.
      root: folder, or place in a bucket, that the pattern is relative to; default: the current
        folder.

    Raises:
      FileNotFoundError: nothing matches.
      ValueError: while reading, a file that is not text (NUL bytes, undecodable UTF-8), or files
        that are too large for `base.memory.check_data`, counted as all of their bytes and the
        tokens of a split, four bytes for each of its bytes; `**` in a bucket.
    """

    pattern: str
    root: str | None = None

    def __post_init__(self):
        if not self._paths():
            where = f' under {quoted(self.root, 200)[1:-1]}' if self.root else ''
            raise FileNotFoundError(
                f'no file matches {quoted(self.pattern, 200)}{where} (current folder: '
                f'{os.getcwd()}); '
                'expected e.g. "text:books/*.txt"'
            )

    def _paths(self) -> list[pathlib.Path]:
        full = os.path.join(os.path.expanduser(self.root or ''), os.path.expanduser(self.pattern))
        if paths.is_local(place := paths.path(full)):
            found = map(pathlib.Path, sorted(glob.glob(full, recursive=True)))
            return [path for path in found if path.is_file()]
        if '**' in full:
            raise ValueError(f'{full[:200]}: a pattern of objects in a bucket has no **')
        base = re.split(r'[*?\[]', full, maxsplit=1)[0].rpartition('/')[0]
        with paths.reached(place):
            return sorted(
                path for path in paths.path(base).glob(full[len(base) + 1 :]) if path.is_file()
            )

    @property
    def description(self) -> str:
        sizes = {name: paths.size(path) for name, path in self._named().items()}
        how = ', each cut at 90 % and 95 %' if cuts_documents(sizes) else ', split by name'
        return f'text:{self.pattern}: {len(sizes)} files, {sum(sizes.values())} bytes{how}'

    def _named(self) -> dict[str, pathlib.Path]:
        """Name that decides the split of a file -> path of the file."""
        fixed = re.split(r'[*?\[]', os.path.expanduser(self.pattern), maxsplit=1)[0]
        base = os.path.dirname(os.path.join(os.path.expanduser(self.root or ''), fixed))
        return {
            pathlib.Path(os.path.relpath(path, base or '.')).as_posix(): path
            for path in self._paths()
        }

    def documents(self, split: str) -> list[bytes]:
        check_choice('split', split, SPLITS)
        logger.info('%s, split %s', printable(self.description), split)
        named = self._named()
        sizes = {name: paths.size(path) for name, path in named.items()}
        largest = quoted(max(sizes, key=lambda name: sizes[name]))
        check_data(
            self.description,
            sum(sizes.values()) + TOKEN * split_bytes(sizes, split),
            f'name fewer or smaller files; the largest is {largest}',
        )
        texts = {name: as_text(path.read_bytes(), printable(path)) for name, path in named.items()}
        return split_documents(texts, split)
