"""Paths that users give: local ones, and objects in buckets (`gs://`, `s3://`).

The watcher processes of training import this file alone, so it imports the standard library alone.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, cast

# Scheme -> the extra that brings its packages, and package -> module. `etils.epath` reaches buckets
# with the first, or with TensorFlow if that is installed. Orbax asks about a bucket of Google with
# the second.
PACKAGES = {
    'gs': ('gcs', {'gcsfs': 'gcsfs', 'google-cloud-storage': 'google.cloud.storage'}),
    's3': ('s3', {'s3fs': 's3fs'}),
}


def path(given: str | os.PathLike) -> pathlib.Path:
    """The path that a text means: a `pathlib.Path`, or for a URI an `epath.Path`, which has the
    same methods.

    Objects in a bucket are written as a whole and need no folders. `posenc_jax.lab.files.disk` and
    `posenc_jax.lab.files.lock` know what else is different there.

    Raises:
      ValueError: a URI of another scheme, or one without a bucket.
      ImportError: the package for this kind of bucket is missing.
    """
    given = os.fspath(given)
    uri = re.match(r'([a-zA-Z][\w+.-]*):(/+)(.*)', given)
    scheme, slashes, rest = uri.groups() if uri else ('', '', given)
    if not uri or slashes == '/' and scheme not in PACKAGES:
        return pathlib.Path(given)
    if scheme not in PACKAGES or slashes != '//' or not rest:
        expected = ' or '.join(f'{name}://BUCKET/PATH' for name in PACKAGES)
        raise ValueError(f'{given[:200]}: expected a local path, {expected}')
    extra, packages = PACKAGES[scheme]
    if missing := [name for name, module in packages.items() if not is_there(module)]:
        raise ImportError(
            f'{given[:200]}: {scheme}:// needs {" and ".join(missing)}; '
            f"pip install 'posenc_jax[{extra}]'"
        )
    from etils import epath
    from fsspec.config import conf

    # Other processes and TensorStore write to the same bucket, so no listing is remembered.
    conf.setdefault(scheme, {})['use_listings_cache'] = False
    return cast(pathlib.Path, epath.Path(given))


def is_there(module: str) -> bool:
    """Whether a module can be imported; TensorFlow stands for `gcsfs` and `s3fs`.

    Example:
      >>> is_there('json'), is_there('json.nothing'), is_there('no_such.module')
      (True, False, False)
    """
    names = (module, 'tensorflow') if module in ('gcsfs', 's3fs') else (module,)
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):  # a package around it is missing
            if importlib.util.find_spec(name) is not None:
                return True
    return False


def is_local(path: Any) -> bool:
    """Whether a path is one of the file system rather than in a bucket."""
    return isinstance(path, pathlib.Path)


def absolute(path: pathlib.Path) -> pathlib.Path:
    """`path.absolute()`; a URI is absolute as it is."""
    return path.absolute() if is_local(path) else path


def resolved(path: pathlib.Path) -> pathlib.Path:
    """`path.expanduser().resolve()`; a URI stays as it is."""
    return path.expanduser().resolve() if is_local(path) else path


def size(path: pathlib.Path) -> int:
    """Bytes of a file or an object."""
    found: Any = path.stat()
    return found.st_size if is_local(path) else found.length


class UnreachableError(OSError):
    """A bucket cannot be read or written; the message is one line."""


@contextlib.contextmanager
def reached(path: pathlib.Path) -> Iterator[None]:
    """A scope in which every error of a bucket becomes an `UnreachableError`. Errors of local files
    stay what they are.
    """
    try:
        yield
    except UnreachableError:
        raise
    except Exception as error:  # every library of buckets has errors of its own
        if is_local(path):
            raise
        lines = str(error).strip().splitlines() or ['']
        raise UnreachableError(
            f'{path} cannot be reached ({type(error).__name__}: {lines[0][:200]}); check the name '
            'of the bucket, and that this account may read and write there'
        ) from error
