"""Modules of one's own, which register encodings or tasks when they are imported.

A module is given as the dotted name of an installed module, or as the path of one Python file. A
run keeps a copy of the file, so that it can be read where the file does not exist. The name of the
copy, such as 'root-0a1b2c3d4e5f.py', holds a digest of the text. This name stands in the config of
the run, and another text is therefore another config. The file is executed as the module 'root'.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import os
import pathlib
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Iterable, Iterator

from posenc_jax.core import disk, paths
from posenc_jax.core.registry import entries, quoted, restored_after_errors

FOLDER = 'imports'  # of the copies, in the directory of a run
_TEXTS: dict[str, bytes] = {}  # name of the copy -> text, of the files that were executed


def load(modules: Iterable[str], run_dir: str | os.PathLike | None = None) -> tuple[str, ...]:
    """Imports modules, each once in a process. Their code is executed.

    Args:
      modules: dotted names, paths of Python files, or names of copies.
      run_dir: the directory of the run whose copies are read; None where paths are given.

    Returns:
      The modules as a config stores them: dotted names, and names of copies.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: there is no such module; a module raises an error, or registers nothing; a file
        has the name of another module, or another text than the copy of this run had.

    Example:
      >>> load(['posenc_jax.logits.alibi'])
      ('posenc_jax.logits.alibi',)
    """
    return tuple(
        dict.fromkeys(_file(m, run_dir) if str(m).endswith('.py') else _dotted(m) for m in modules)
    )


def store(modules: Iterable[str], run_dir: pathlib.Path) -> None:
    """Writes the copies of files that `load` has named into the directory of a run."""
    for name in modules:
        path = run_dir / FOLDER / name
        if name in _TEXTS and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.write(path, _TEXTS[name])


def described(error: BaseException, inside: str) -> str:
    """The last line of a file, or of the files in a folder, where an error arose, with its type and
    message on one line.
    """
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames]
    if isinstance(error, SyntaxError) and error.filename:
        places, error = [*places, (error.filename, error.lineno)], SyntaxError(error.msg)
    places = [(name, line) for name, line in places if name.startswith(inside) and line]
    where = ''
    if places:
        name, line = places[-1]
        where = f'line {line}: ' if name == inside else f'{name}, line {line}: '
    text = f': {quoted(str(error), 200)[1:-1]}' if str(error) else ''
    return where + type(error).__name__ + text


def _file(given: str, run_dir: str | os.PathLike | None) -> str:
    if given in _TEXTS:
        return given
    path = paths.path(run_dir) / FOLDER / given if run_dir else pathlib.Path(given).expanduser()
    if not path.is_file():
        if run_dir:
            raise FileNotFoundError(f'{path} does not exist; the run defines its names in it')
        raise FileNotFoundError(f'--import: {given} does not exist{_near_file(path)}')
    text = path.read_bytes()
    digest = hashlib.sha256(text).hexdigest()[:12]
    stem = path.stem.removesuffix(f'-{digest}')
    name = f'{stem}-{digest}.py'
    if run_dir and name != given:
        raise ValueError(f'{path} was changed: its name has the digest of another text')
    if name not in _TEXTS:
        if not _is_imported(stem, path, text):
            _execute(stem, path, text)
        _TEXTS[name] = text
    return name


def _is_imported(stem: str, path: pathlib.Path, text: bytes) -> bool:
    """Whether the file is imported already, as a module of its name with its text. Raises
    ValueError if this module is another one.
    """
    if any(re.fullmatch(rf'{re.escape(stem)}-\w{{12}}\.py', name) for name in _TEXTS):
        raise ValueError(
            f'{path}: this process has imported {stem}.py with another text; read the two in two '
            'processes, or rename one'
        )
    there = sys.modules.get(stem)
    if there is None and stem not in sys.stdlib_module_names:
        return False
    source = pathlib.Path(getattr(there, '__file__', None) or '')
    if source.is_file() and source.read_bytes() == text:
        return True
    raise ValueError(f'{path} has the name of another module, {stem!r}; rename the file')


def _execute(stem: str, path: pathlib.Path, text: bytes) -> None:
    module = types.ModuleType(stem)
    module.__file__ = str(path)
    sys.modules[stem] = module
    try:
        with _registering(str(path), stem, str(path)):
            exec(compile(text, str(path), 'exec'), module.__dict__)
    except BaseException:
        del sys.modules[stem]
        raise


def _dotted(name: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(r'[^\W\d]\w*(\.[^\W\d]\w*)*', name):
        raise ValueError(
            f'--import takes the dotted name of a module or the path of a .py file, got '
            f'{quoted(name)}'
        )
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a package before a dot does not exist
        spec = None
    except Exception as error:  # such a package raises an error
        raise ValueError(f'{name} cannot be imported: {described(error, "")}') from None
    if spec is None:
        raise ValueError(f'--import: there is no module {name!r}{_near_module(name)}')
    origin = spec.origin or ''
    inside = os.path.dirname(origin) if origin.endswith('__init__.py') else origin
    with _registering(name, name, inside):
        importlib.import_module(name)
    return name


@contextlib.contextmanager
def _registering(shown: str, module: str, inside: str) -> Iterator[None]:
    """A scope in which a module is imported. Errors get one line, and undo what was registered."""
    with restored_after_errors():
        before = entries()
        try:
            yield
        except (Exception, SystemExit) as error:  # the module may raise anything
            raise ValueError(f'{shown} cannot be imported: {described(error, inside)}') from None
        own = lambda entry: f'{entry.build.__module__}.'.startswith(f'{module}.')
        if entries() == before and not any(map(own, before)):
            raise ValueError(
                f'{shown} registers nothing; expected a class under @posenc_jax.register(...)'
            )


def _near_file(path: pathlib.Path) -> str:
    found = sorted(path.parent.glob('*.py')) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [file.name for file in found], 1, 0.5)
    return f'; did you mean {path.with_name(near[0])}?' if near else ''


def _near_module(name: str) -> str:
    package, _, last = name.rpartition('.')
    path = getattr(sys.modules.get(package), '__path__', None) if package else None
    found = [m.name for m in pkgutil.iter_modules(path)] if path or not package else []
    near = difflib.get_close_matches(last, found, 1, 0.7)
    ending = '; expected the dotted name of an installed module, or the path of a .py file'
    return f'; did you mean {".".join(filter(None, [package, *near]))!r}?' if near else ending
