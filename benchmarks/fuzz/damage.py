"""Random damage to files: bytes, values of JSON, names, and what a file is."""

import contextlib
import copy
import os
import pathlib
import random
import shutil
import stat
from typing import Any

ODD: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63),
    10**30, 10**4000, 0.0, 0.5, 1.5, 1e-300, 1e300, -1e300,
    float('nan'), float('inf'), float('-inf'), True, False, None, '', 'a', '1', 'null', '\0',
    'a\nb', '\ud800', '漢字' * 50, 'x' * 300, '../x', '/etc/passwd',
    [], [0], [None], [1, [2]], {}, {'a': 1}, {'type': 'Sequence'},
)  # fmt: skip
SIZES = (
    0,
    1,
    2,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
# What a name may hold that a terminal obeys, a library gives a meaning, or few programs expect.
TEXTS = (
    '', ' ', 'a b', 'a\nb', 'a\rb', 'a\tb', '\x1b[31mred\x1b[0m', '\x1b]0;title\x07', 'a\x9b31mb',
    'a\x85b', 'a\u2028b', '\u202egnp', 'é漢😀', 'x' * 240, '-rf', "it's", 'a"b', '%s%n', '{0}',
    '[red]x', '[/red]', '[/]', '$x$', '$\\frac{1}{0}$', '$\\badmacro$', '$', '\\', '#', ',', '~',
    '*', '?', 'nan', '0',
)  # fmt: skip
DEVICES = {'null': (1, 3), 'zero': (1, 5), 'full': (1, 7), 'random': (1, 8)}


def file_name(rng: random.Random) -> str:
    """A text of `TEXTS` that can be the name of a file, or a name whose bytes are no UTF-8."""
    if rng.random() < 0.1:
        return os.fsdecode(b'\xff\xfe')
    return rng.choice([text for text in TEXTS if text.strip() and '/' not in text])


def remove(path: pathlib.Path) -> None:
    """Removes a file, a folder or what else is there; a link, and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def odd_file(rng: random.Random, path: pathlib.Path, beside: pathlib.Path) -> str:
    """Puts something else than a usual file in the place of a path; what it is.

    Args:
      rng: chooses.
      path: what is replaced, if it is there. Its folder exists.
      beside: a file to which a link may lead.
    """
    remove(path)
    match rng.randrange(12):
        case 0 | 1:
            path.symlink_to(beside)
            return 'a link to another file'
        case 2:
            path.symlink_to(beside.with_name('new'))
            return 'a link to nothing'
        case 3:
            path.symlink_to(path.name)
            return 'a link to itself'
        case 4:
            path.symlink_to('.')
            return 'a link to its folder'
        case 5 | 6:
            os.mkfifo(path)
            return 'a pipe'
        case 7:
            name = rng.choice(sorted(DEVICES))
            path.symlink_to(f'/dev/{name}')
            return f'a link to the device {name}'
        case 8:
            name = rng.choice(sorted(DEVICES))
            try:
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(*DEVICES[name]))
            except PermissionError:  # devices are for the administrator
                path.symlink_to(f'/dev/{name}')
            return f'the device {name}'
        case 9:
            path.mkdir()
            return 'a folder'
        case 10:
            path.touch()
            with contextlib.suppress(OSError):  # some file systems have no files of this size
                os.truncate(path, rng.choice((2**32, 2**42)))
            return 'a file of terabytes of zeros'
    path.touch()
    return 'an empty file'


def odd_tree(
    rng: random.Random, source: pathlib.Path, root: pathlib.Path, ending: str, beside: pathlib.Path
) -> tuple[str, ...]:
    """Copies a folder of folders of files, half of the time with up to three changes of its form;
    what they are.

    Args:
      rng: chooses.
      source: what is copied, a folder for each class.
      root: the copy, which does not exist.
      ending: of the names of the files, such as '.npy'.
      beside: a file to which a link may lead.
    """
    shutil.copytree(source, root)
    done = []
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        if not (folders := sorted(path for path in root.glob('*') if path.is_dir())):
            break
        done.append(_other_form(rng, root, rng.choice(folders), ending, beside))
    return tuple(done)


def _other_form(rng, root, folder, ending, beside) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file()) or [folder / f'0{ending}']
    file, name = rng.choice(files), file_name(rng)
    is_new = not os.path.lexists(root / name)
    match rng.randrange(11):
        case 0 if is_new:
            folder.rename(root / name)
            return f'a class {name!r}'
        case 1 if file.exists():
            file.rename(folder / f'{name}{ending}')
            return f'a file {name!r}'
        case 2:
            shutil.rmtree(folder)
            return 'no folder of a class'
        case 3:
            kept = rng.randrange(3)
            for path in files[kept:]:
                path.unlink(missing_ok=True)
            return f'{kept} files of a class'
        case 4:
            (folder / f'inner{ending}' / name).mkdir(parents=True, exist_ok=True)
            return f'a folder inner{ending} with a folder {name!r}'
        case 5 | 6:
            return f'{file.name} is {odd_file(rng, file, beside)}'
        case 7:
            return f'a class is {odd_file(rng, folder, beside)}'
        case 8 if file.exists():
            for number in range(100):
                os.link(file, folder / f'{len(files)}_{number}{ending}')
            return 'a hundred files of a class'
        case 9 if is_new:
            (root / name).write_text('x')
            return f'a file {name!r} beside the classes'
    (folder / f'{name}.txt').write_text('x')
    return f'a file {name}.txt in a class'


def odd(rng: random.Random) -> Any:
    """A value that few fields expect: now and then a long list, a long text or one that is nested
    deep.
    """
    match rng.randrange(40):
        case 0:
            return [rng.choice(ODD)] * rng.choice((10, 1000, 2000))
        case 1:
            value: Any = rng.choice(ODD)
            for _ in range(rng.choice((5, 50, 150, 400))):
                value = [value] if rng.random() < 0.5 else {'a': value}
            return value
        case 2:
            return rng.choice('ab é漢') * rng.choice((300, 5000, 200_000))
        case 3:
            return {str(i): rng.choice(ODD) for i in range(rng.choice((3, 300)))}
    return rng.choice(ODD)


def places(value: Any, inside: tuple = ()) -> list[tuple]:
    """The paths to all values within a value of JSON, long lists by their first entries."""
    found = [inside] if inside else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:20])
        if isinstance(value, list)
        else ()
    )
    for name, inner in list(items)[:60]:
        found += places(inner, (*inside, name))
    return found


def changed_json(rng: random.Random, value: Any) -> Any:
    """A copy of an object in which one value is another, is missing, stands at another place, or
    one is more.
    """
    value = copy.deepcopy(value)
    found = places(value)
    if not found:
        return odd(rng)
    *outer, name = rng.choice(found)
    holder = value
    for step in outer:
        holder = holder[step]
    match rng.randrange(8):
        case 0:
            del holder[name]
        case 1 if isinstance(holder, dict):
            holder[rng.choice((f'{name}x', '', 'a' * 300, 'type', 'id', '\ud800'))] = odd(rng)
        case 2:
            other = value
            for step in rng.choice(found):
                other = (
                    other[step]
                    if isinstance(other, (dict, list))
                    and (isinstance(other, dict) or step < len(other))
                    else other
                )
            holder[name] = copy.deepcopy(other)
        case 3 if isinstance(holder[name], (int, float)) and not isinstance(holder[name], bool):
            holder[name] = holder[name] * rng.choice((-1, 2, 3, 0.5, 2**20, 2**31)) + rng.choice(
                (0, 1, -1)
            )
        case _:
            holder[name] = odd(rng)
    return value


def changed_bytes(rng: random.Random, data: bytes, near: int | None = None) -> bytes:
    """A copy of some bytes with a few that are others, missing or twice, mostly before byte
    `near`.
    """
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        size = len(found)
        at = rng.randrange(min(near, size) + 1 if near and rng.random() < 0.8 else size + 1)
        match rng.randrange(7):
            case 0:
                del found[at : at + rng.choice((1, 4, 8, 100))]
            case 1:
                found[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
            case 2:
                found[at : at + 8] = rng.choice(SIZES).to_bytes(8, 'little')
            case 3:
                found[at : at + 4] = (rng.choice(SIZES) % 2**32).to_bytes(4, 'little')
            case 4:
                del found[at:]
            case _ if at < size:
                found[at] = rng.choice(
                    (0, 255, found[at] ^ 1 << rng.randrange(8), rng.randrange(256))
                )
    return bytes(found)
