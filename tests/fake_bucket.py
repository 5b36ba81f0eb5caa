"""A fake of Google's buckets: `gs://` means a local folder with the manners of a bucket.

Objects appear as a whole when they are closed. A folder exists only while an object is below it.
An object can be replaced but not appended to. Nothing can be written to a bucket that does not
exist, and nobody may make one.
"""

import contextlib
import fnmatch
import io
import pathlib
import shutil
from collections.abc import Iterator
from unittest import mock

import etils.epath.backend
import etils.epath.gpath
import etils.epath.stat_utils
from orbax.checkpoint._src.path import gcs_utils

from posenc_jax.lab.files import paths


class Upload(io.BytesIO):
    """What is written to an object, which is there when this is closed."""

    def __init__(self, file: pathlib.Path, bucket: pathlib.Path, log: list[str]):
        super().__init__()
        self._file, self._bucket, self._log = file, bucket, log

    def close(self) -> None:
        if not self.closed:
            if not self._bucket.is_dir():
                raise FileNotFoundError('The specified bucket does not exist.')
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_bytes(self.getvalue())
            self._log.append(self._file.relative_to(self._bucket).as_posix())
        super().close()


class Bucket(etils.epath.backend.Backend):
    """The backend of epath that keeps `gs://BUCKET/NAME` in `root/BUCKET/NAME`.

    Attributes:
      written: the names of the objects that were written through epath, in order.
    """

    def __init__(self, root: pathlib.Path):
        self.root, self.written = root, []

    def local(self, path) -> pathlib.Path:
        return self.root / str(path).removeprefix('gs://')

    def _bucket(self, path) -> pathlib.Path:
        return self.root / str(path).removeprefix('gs://').split('/')[0]

    def open(self, path, mode):
        file = self.local(path)
        if 'r' in mode:
            return file.open(mode) if 'b' in mode else file.open(mode, encoding='utf-8')
        assert 'a' not in mode, 'an object cannot be appended to'
        found = Upload(file, self._bucket(path), self.written)
        return found if 'b' in mode else io.TextIOWrapper(found, encoding='utf-8')

    def exists(self, path):
        return self.local(path).is_file() or self.isdir(path)

    def isdir(self, path):
        folder = self.local(path)
        return folder.is_dir() and any(below.is_file() for below in folder.rglob('*'))

    def listdir(self, path):
        if not self.isdir(path):
            raise FileNotFoundError(path)
        return [
            name.name for name in self.local(path).iterdir() if self.exists(f'{path}/{name.name}')
        ]

    def glob(self, path):
        folder, _, pattern = str(path).rpartition('/')
        names = self.listdir(folder) if self.isdir(folder) else []
        return [f'{folder}/{name}' for name in sorted(names) if fnmatch.fnmatch(name, pattern)]

    def walk(self, top, *, top_down=True, on_error=None):
        for place, folders, files in self.local(top).walk():
            yield f'gs://{place.relative_to(self.root)}', folders, files

    def makedirs(self, path, *, exist_ok=False, mode=None):
        if not self._bucket(path).is_dir():
            raise PermissionError(f'a bucket would be made for {path}')

    def mkdir(self, path, *, exist_ok=False, mode=None):
        self.makedirs(path)

    def rmtree(self, path):
        if not self.isdir(path):
            raise FileNotFoundError(path)
        shutil.rmtree(self.local(path))

    def remove(self, path):
        self.local(path).unlink()

    def rename(self, path, dst):
        self.local(dst).parent.mkdir(parents=True, exist_ok=True)
        self.local(path).rename(self.local(dst))

    def replace(self, path, dst):
        self.local(path).replace(self.local(dst))

    def copy(self, path, dst, overwrite):
        shutil.copyfile(self.local(path), self.local(dst))

    def stat(self, path):
        found = self.local(path).stat()
        return etils.epath.stat_utils.StatResult(
            is_directory=self.isdir(path), length=found.st_size, mtime=int(found.st_mtime)
        )


@contextlib.contextmanager
def fake(root: pathlib.Path) -> Iterator[Bucket]:
    """A scope in which `gs://` is a fake below `root`, for epath and for the arrays of orbax. The
    bucket 'there' exists.
    """
    bucket = Bucket(root)
    (root / 'there').mkdir(parents=True, exist_ok=True)
    with (
        mock.patch.object(paths, 'is_there', lambda module: True),
        mock.patch.dict(etils.epath.gpath._PREFIX_TO_BACKEND, {'gs': bucket}),
        mock.patch.object(etils.epath.gpath, '_is_tf_installed', lambda: False),
        mock.patch.object(gcs_utils, 'is_hierarchical_namespace_enabled', lambda path: False),
        mock.patch.object(
            gcs_utils,
            'get_kvstore_for_gcs',
            lambda path: {'driver': 'file', 'path': str(bucket.local(path))},
        ),
    ):
        yield bucket
