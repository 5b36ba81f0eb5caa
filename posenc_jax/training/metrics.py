"""What a run reports: metrics.jsonl, TensorBoard events, and a line of progress. Only process 0
writes.
"""

import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, Self

from posenc_jax.core import disk
from posenc_jax.training.board import Board
from posenc_jax.training.metrics_file import FILE, repair


class MetricsLog:
    """Numbers by step, one JSON object a line, flushed at once, and the same numbers as TensorBoard
    scalars.

    Args:
      directory: the run directory.
      step: where the run starts; lines of later steps, and those that are damaged, are dropped.
      written: what the checkpoint of this step says of the lines up to it; see `repair`.
      every: steps between lines.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        step: int,
        written: Mapping[str, Any] | None = None,
        every: int = 1,
    ):
        path = directory / FILE
        self._lines = repair(path, step, written, every)
        self._file = disk.Appended(path)
        self._board = Board(directory / 'tensorboard', step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line {'step': step, **values}."""
        line = json.dumps({'step': step, **values}).encode()
        self._file.write(line + b'\n')
        self._lines.add(line)
        self._board.write(step, values)

    @property
    def written(self) -> dict[str, Any]:
        """What a checkpoint keeps of the lines so far."""
        return self._lines.record()

    def __enter__(self) -> 'MetricsLog':
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._board.close()


class LiveLine:
    """One live line with a bar in a terminal, plain lines elsewhere; a context manager.

    Args:
      unit: what is counted, in front of the numbers; '' for nothing.
      done, total: where the count starts and ends.
    """

    def __init__(self, unit: str, done: int, total: int):
        from rich import progress

        self._bar = None
        if sys.stdout.isatty():
            columns = (
                progress.TextColumn(f'{unit} {{task.completed}}/{{task.total}}'.lstrip()),
                progress.BarColumn(),
                progress.TextColumn('{task.fields[text]}'),
            )
            self._bar = progress.Progress(*columns)
            self._task = self._bar.add_task('', total=total, completed=done, text='compiling')

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line without breaking the live one."""
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def show(self, **fields) -> None:
        """Changes the live line, where there is one: `text`, `completed`."""
        if self._bar is not None:
            self._bar.update(self._task, **fields)


class Progress(LiveLine):
    """Loss, tokens per second and time left: one live line in a terminal, a plain line at each
    report elsewhere.

    Args:
      step, steps: where training starts and ends.
      tokens: tokens of one step.
    """

    def __init__(self, step: int, steps: int, tokens: int):
        super().__init__('step', step, steps)
        self._start, self._steps, self._tokens = step, steps, tokens
        # step and time of the last report; none before the first, which contains compilation
        self._clock = None
        self._speed = 0.0

    def report(self, step: int, loss: float) -> float:
        """Shows a step whose loss is known; returns the tokens per second since the last report (0
        at the first).
        """
        now = time.perf_counter()
        if self._clock is not None and step > self._clock[0]:
            self._speed = (step - self._clock[0]) * self._tokens / (now - self._clock[1])
        self._clock = (step, now)
        left = _duration((self._steps - step) * self._tokens / self._speed) if self._speed else '?'
        text = f'loss {loss:.4f}  {self._speed:,.0f} tokens/s  {left} left'
        if self._bar is None:
            self.say(f'step {step}/{self._steps}  {text}')
        self.show(completed=step, text=text)
        return self._speed


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
