"""The file metrics.jsonl of a run: reads its lines, and repairs it when the run continues."""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from posenc_jax.base.programs import printable
from posenc_jax.lab.files import disk, paths
from posenc_jax.lab.files.json_file import free_name
from posenc_jax.protocol.errors import quoted

FILE = 'metrics.jsonl'
MOST = 2**28  # bytes of the file, more than a million lines; all are read at once


def parse(line: bytes) -> dict[str, float]:
    """Parses one line, an object of numbers with the name `step`.

    Raises:
      ValueError: the line is damaged; the message has no subject, e.g. 'is not JSON: ...'.
    """
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ValueError(f'is not JSON: {quoted(line[:60].decode(errors="replace"))}') from None
    if not isinstance(found, dict):
        raise ValueError(f'is {quoted(found)}, expected an object of numbers')
    if 'step' not in found:
        raise ValueError(f'has no step: {quoted(found)}')
    if type(found['step']) is not int or found['step'] < 1:
        raise ValueError(
            f'has the step {quoted(found["step"])}, expected a whole number of at least 1'
        )
    for name, value in found.items():
        if type(value) not in (int, float):
            raise ValueError(f'has {quoted(name)[1:-1]} {quoted(value)}, expected a number')
    return found


def _lines(path: pathlib.Path) -> tuple[list[bytes], bool]:
    """The lines of a file without their newlines ([] if there is no file), and whether the last
    line is cut off.
    """
    if not path.exists():
        return [], False
    if not path.is_file():
        raise ValueError(
            f'{path} is not a file; expected the lines of metrics that training writes. Move it '
            'away'
        )
    if (size := paths.size(path)) > MOST:
        raise ValueError(f'{path} has {size} bytes, expected at most {MOST}; move it away')
    lines = path.read_bytes().split(b'\n')
    return (lines, True) if lines[-1] else (lines[:-1], False)


def read_lines(path: pathlib.Path) -> list[dict[str, float]]:
    """The lines of a metrics file, in order; [] if there is no file. A last line that is cut off is
    left out.

    Raises:
      ValueError: a line is damaged, with its number and what is wrong; the file is too large.
    """
    lines, cut = _lines(path)
    parsed = []
    for number, line in enumerate(lines, 1):
        try:
            parsed.append(parse(line))
        except ValueError as error:
            if number == len(lines) and cut:  # it is being written, or its process was killed
                break
            raise ValueError(f'{path}, line {number} {error}') from None
    return parsed


class Written:
    """The number of lines and a digest of them; the checkpoint keeps both."""

    def __init__(self):
        self._count, self._hash = 0, hashlib.sha256()

    def add(self, line: bytes) -> None:
        self._count += 1
        self._hash.update(line + b'\n')

    def record(self) -> dict[str, Any]:
        return {'lines': self._count, 'digest': self._hash.hexdigest()}


def repair(path: pathlib.Path, step: int, written: Mapping[str, Any] | None, every: int) -> Written:
    """Removes damaged lines and lines after a step from the file.

    If lines up to the step are damaged or missing, a message is printed and a copy of the file is
    kept, named metrics.jsonl.damaged. Good lines after the step, and a last line that is cut off,
    are removed without a message: a killed run wrote them after its checkpoint, and writes them
    again.

    Args:
      path: the file. It is replaced as a whole, so it is never incomplete.
      step: the step from which the run continues.
      written: `Written.record` from the checkpoint of this step; None if its version kept none.
      every: steps between lines, from which the missing lines are found.

    Returns:
      A `Written` of the lines that are kept.

    Raises:
      ValueError: the path is no file, or the file is too large.
    """
    lines, cut = _lines(path) if step else ([], False)
    good, bad, kept = {}, {}, Written()
    for number, line in enumerate(lines, 1):
        try:
            found = parse(line)
        except ValueError as error:
            bad[number] = str(error)
            continue
        if found['step'] <= step:
            good[number] = found['step']
            kept.add(line)
    if cut and kept.record() == written:
        bad.pop(len(lines), None)
    if problems := _problems(step, good, bad, kept.record(), written, every):
        aside = ''
        if lines:
            copy = disk.copy(path, free_name(path))
            aside = f'; the file as it was is {copy}'
        line = f'{path}: {"; ".join(problems)}; the run goes on after step {step}{aside}'
        print(printable(line), flush=True)
    disk.write(path, b''.join(lines[number - 1] + b'\n' for number in good))
    return kept


def _problems(step, good, bad, kept, written, every) -> list[str]:
    """The problems of the lines up to a step; [] if every line that was written is there."""
    steps = set(good.values())
    if step == 0 or (kept == written and not bad):
        return []
    last = max(good, default=0)
    bad = {
        number: why for number, why in bad.items() if written or number < last or step not in steps
    }
    if written is None and not bad and {1, step} <= steps:
        return []
    missing = sorted({1, step, *range(every, step, every)} - steps)
    problems = []
    if bad:
        which, why = (
            ('is dropped: it', 'are dropped: the first')[len(bad) > 1],
            next(iter(bad.values())),
        )
        problems.append(f'{_counted("line", list(bad))} {which} {why}')
    if missing:
        expected = sorted({1, step, *range(every, step, every)})
        problems.append(f'there is no line of {_counted("step", missing, expected)}')
    if written and not bad and not missing:
        problems.append(
            f'its {kept["lines"]} lines differ from the {written["lines"]} that were written'
        )
    return problems


def _counted(what: str, numbers: Sequence[int], of: Sequence[int] = ()) -> str:
    """A list of numbers in words, e.g. 'steps 1 to 5, 9'. Numbers form a range if they are
    neighbours in `of`, or without it among the whole numbers.

    Example:
      >>> (
      ...     _counted('line', [1, 2, 3, 7]),
      ...     _counted('step', [20, 30, 50], [10, 20, 30, 40, 50]),
      ...     _counted('step', [4]),
      ... )
      ('lines 1 to 3, 7', 'steps 20 to 30, 50', 'step 4')
    """
    places = {number: place for place, number in enumerate(of or range(numbers[-1] + 1))}
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(numbers), lambda pair: places[pair[1]] - pair[0])
    ]
    texts = [str(run[0]) if len(run) == 1 else f'{run[0]} to {run[-1]}' for run in runs]
    more = [f'and {len(texts) - 10} more'] if len(texts) > 10 else []
    return f'{what}{"s" if len(numbers) > 1 else ""} {", ".join(texts[:10] + more)}'
