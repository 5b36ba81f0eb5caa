"""The modules that a run imports. A run may come from anywhere, so the files that it brings are
executed only if the caller says so.
"""

import os
import pathlib
import sys
from collections.abc import Iterable

from posenc_jax.base.memory import readable
from posenc_jax.lab.files import imports, paths, regular
from posenc_jax.lab.files.json_file import listed
from posenc_jax.protocol.errors import quoted

_SHOWN: set[tuple[str, ...]] = set()  # a run with its files, about which a line was printed


class UntrustedError(ValueError):
    """A run brings code, and the caller has not said that it may be executed."""


def import_of_run(
    run_dir: str | os.PathLike, names: Iterable[str], trust_imports: bool = False
) -> tuple[str, ...]:
    """Imports the modules that a run was trained with.

    A module that this process has imported already, such as that of `--import=MODULE`, serves as it
    is. Otherwise a name must be that of a file in the folder `imports/` of the run, and hold the
    digest of its text. The bytes that were compared are those that are executed. Before that, a
    line on the standard error stream names the files and their digests.

    Args:
      run_dir: the directory of the run.
      names: the field `imports` of its config.
      trust_imports: whether files of the run may be executed.

    Returns:
      The names under which another run stores these modules.

    Raises:
      UntrustedError: a file would be executed, and `trust_imports` is False.
      FileNotFoundError: the run lacks a file.
      ValueError: a name is not that of a file in the folder, and no such module is imported; a file
        is a link, has more than 1 MiB, or has the digest of another text; an error that
        `lab.files.imports.load` raises.
    """
    stored = {name: imports.stored_name(name) for name in names}
    folder = paths.path(run_dir) / imports.FOLDER
    texts = {name: _text(run_dir, folder, name) for name, known in stored.items() if not known}
    fresh = {
        name: text
        for name, text in texts.items()
        if not imports.is_imported(name, folder / name, text)
    }
    if fresh and not trust_imports:
        raise UntrustedError(
            f'{run_dir} brings code of its own, which was not executed: '
            f'{listed([_label(name, text) for name, text in fresh.items()])}; look at it in '
            f'{folder}, then allow it with --trust-imports (in Python trust_imports=True), or give '
            'files of your own with --import=FILE'
        )
    given = {known: imports.text_of(known) for known in stored.values() if known}
    _show(run_dir, {**given, **texts}, fresh)
    for name, text in texts.items():
        imports.execute(name, folder / name, text)
    return tuple(dict.fromkeys(known or name for name, known in stored.items()))


def _show(run_dir, texts: dict[str, bytes | None], fresh: dict[str, bytes]) -> None:
    """Prints, once, which files a run imports, and which of them are its own."""
    lines = [
        _label(name, text, 'executed from its folder imports/' if name in fresh else 'given')
        for name, text in texts.items()
        if text is not None  # of a module with a dotted name
    ]
    key = (str(run_dir), *texts)
    if lines and (fresh or key not in _SHOWN):
        _SHOWN.add(key)
        print(f'{run_dir} imports {"; ".join(lines)}', file=sys.stderr, flush=True)


def _label(name: str, text: bytes, *origin: str) -> str:
    about = ', '.join((f'sha256 {imports.digest_of(text)}', *origin))
    return f'{imports.stem_of(name)}.py ({about})'


def _text(run_dir: str | os.PathLike, folder: pathlib.Path, name: str) -> bytes:
    """The text of a file that a run brings; raises ValueError if it is not as training wrote it."""
    if not imports.COPY.fullmatch(name) or not name.isprintable():
        raise ValueError(f'{run_dir} names {quoted(name)} in its imports, {_instead(name)}')
    path = folder / name
    for place in (folder, path):
        if paths.is_local(place) and place.is_symlink():
            raise ValueError(f'{place} is a link; expected the file that training wrote')
    with paths.reached(path):
        there = path.exists()
    if not there:
        raise FileNotFoundError(
            f'{path} does not exist; the run defines its names in it. Give the file with '
            f'--import={imports.stem_of(name)}.py'
        )
    text = _bytes(path)
    if imports.digest_of(text, 12) != name[-15:-3]:
        raise ValueError(f'{path} was changed: its name has the digest of another text')
    return text


def _instead(name: str) -> str:
    """Why a name in a config leads to no file of the run, and what to do."""
    if name.endswith('.py'):
        return (
            'which is not a file of its folder imports/ with a digest, so it was not executed; '
            'give the file yourself with --import=FILE.py'
        )
    if imports.DOTTED.fullmatch(name):
        return (
            'which is not a file of its folder imports/ with a digest, so it was not imported; if '
            f'you know this module, import it yourself with --import={quoted(name)[1:-1]}'
        )
    return 'which is no name of a module'


def _bytes(path: pathlib.Path) -> bytes:
    """The content of a regular file, or of an object in a bucket, of at most `imports.LARGEST`."""
    local = paths.is_local(path)
    with (
        paths.reached(path),
        # A link that has just taken the place of the file is not followed, a pipe not waited for.
        os.fdopen(regular.opened(path, os.O_RDONLY), 'rb') if local else path.open('rb') as file,
    ):
        text = file.read(imports.LARGEST + 1)
    if len(text) > imports.LARGEST:  # out of `reached`, whose errors are those of a bucket
        raise ValueError(f'{path} has more than {readable(imports.LARGEST)}')
    return text
