"""Modules of one's own, which register encodings or tasks when they are imported.

A module is given as the dotted name of an installed module, or as the path of one Python file. A
run keeps a copy of the file, so that it can be read where the file does not exist. The name of the
copy, such as 'root-0a1b2c3d4e5f.py', holds a digest of the text. This name stands in the config of
the run, and another text is therefore another config. The file is executed as the module 'root'.

`load` executes what the user names. What a run names is executed by `posenc_jax.lab.runs.trust`
alone.
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

from posenc_jax.base.memory import readable
from posenc_jax.lab.files import disk, regular
from posenc_jax.protocol import index
from posenc_jax.protocol.errors import quoted
from posenc_jax.protocol.registry import Entry, loaded, restored_after_errors

FOLDER = 'imports'  # of the copies, in the directory of a run
LARGEST = 2**20  # bytes of a file
# The name of a copy: the name of the file, a dash, and the first digits of the SHA-256 of its text.
COPY = re.compile(r'(?P<stem>[^./\\][^/\\]{0,200})-(?P<digest>[0-9a-f]{12})\.py')
DOTTED = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)*')
_TEXTS: dict[str, bytes] = {}  # name of the copy -> text, of the files that were executed
_NAMES: set[str] = set()  # dotted names that were loaded


def load(modules: Iterable[str]) -> tuple[str, ...]:
    """Imports modules that the user names, each once in a process. Their code is executed.

    Args:
      modules: dotted names, paths of Python files, or names of copies that were executed already.

    Returns:
      The modules as a config stores them: dotted names, and names of copies.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: there is no such module; a module raises an error, or registers nothing; a file
        has the name of another module, or is larger than 1 MiB.
    """
    return tuple(dict.fromkeys(_file(m) if str(m).endswith('.py') else _dotted(m) for m in modules))


def store(modules: Iterable[str], run_dir: pathlib.Path) -> None:
    """Writes the copies of files that `load` has named into the directory of a run."""
    for name in modules:
        if name in _TEXTS:
            disk.write(run_dir / FOLDER / name, _TEXTS[name])


def stored_name(name: str) -> str | None:
    """The name under which a run stores a module that this process has imported; None if it has not
    imported it. Nothing is imported.

    Args:
      name: the dotted name of a module, the name of a copy, or that of a file without a digest,
        which means the file of this name that was loaded.

    Example:
      >>> (
      ...     stored_name('posenc_jax.methods.alibi'),
      ...     stored_name('antigravity'),
      ...     stored_name('root.py'),
      ... )
      ('posenc_jax.methods.alibi', None, None)
    """
    if name in _TEXTS:
        return name
    if COPY.fullmatch(name):
        return None
    if name.endswith('.py'):
        stem = pathlib.PurePath(name).stem
        return next((copy for copy in _TEXTS if stem_of(copy) == stem), None)
    own = any(f'{module}.'.startswith(f'{name}.') for module in index.modules().values())
    there = own or (
        name in sys.modules and (name in _NAMES or any(_registers(name, e) for e in loaded()))
    )
    return name if there else None


def stem_of(copy: str) -> str:
    """The name of the module of a copy."""
    return copy[: -len('-0a1b2c3d4e5f.py')]


def digest_of(text: bytes, digits: int = 16) -> str:
    """The first digits of the SHA-256 of a text."""
    return hashlib.sha256(text).hexdigest()[:digits]


def text_of(copy: str) -> bytes | None:
    """The text of a copy that this process has executed; None for another name."""
    return _TEXTS.get(copy)


def execute(copy: str, path: pathlib.Path, text: bytes) -> None:
    """Executes the text of a file, unless it is imported already; `path` is only named in messages.
    Raises ValueError as `load`.
    """
    if copy not in _TEXTS:
        if not is_imported(copy, path, text):
            _execute(stem_of(copy), path, text)
        _TEXTS[copy] = text


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


def _file(given: str) -> str:
    if given in _TEXTS:
        return given
    path = pathlib.Path(given).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'--import: {given} does not exist{_near_file(path)}')
    told = lambda: f'--import: {given} has more than {readable(LARGEST)}'
    with path.open('rb') as file:
        text = regular.read_most(file, LARGEST, told)
    digest = digest_of(text, 12)
    copy = f'{path.stem.removesuffix(f"-{digest}")}-{digest}.py'
    if not COPY.fullmatch(copy) or not copy.isprintable():
        raise ValueError(f'--import: {quoted(given)} has no name that a run can store; rename it')
    execute(copy, path, text)
    return copy


def is_imported(copy: str, path: pathlib.Path, text: bytes) -> bool:
    """Whether a file is imported already, as a module of its name with its text. Raises ValueError
    if this module is another one.
    """
    stem = stem_of(copy)
    other = next((one for name, one in _TEXTS.items() if stem_of(name) == stem), None)
    if other is not None:
        raise ValueError(
            f'{path}: this process has imported {stem}.py with another text (sha256 '
            f'{digest_of(other)}, this one has {digest_of(text)}); read the two in two processes, '
            'or rename one'
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
    if not isinstance(name, str) or not DOTTED.fullmatch(name):
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
    _NAMES.add(name)
    return name


def _registers(module: str, entry: Entry) -> bool:
    """Whether an entry is that of a class in a module, or in a module within it."""
    return f'{entry.build.__module__}.'.startswith(f'{module}.')


def _foreign(found: list[Entry]) -> list[Entry]:
    """The entries that are not of this package, whose modules are loaded at any time."""
    return [entry for entry in found if (entry.kind, entry.key) not in index.modules()]


@contextlib.contextmanager
def _registering(shown: str, module: str, inside: str) -> Iterator[None]:
    """A scope in which a module is imported. Errors get one line, and undo what was registered."""
    with restored_after_errors():
        before = loaded()
        try:
            yield
        except (Exception, SystemExit) as error:  # the module may raise anything
            raise ValueError(f'{shown} cannot be imported: {described(error, inside)}') from None
        after = loaded()
        if _foreign(after) == _foreign(before) and not any(_registers(module, e) for e in after):
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
