"""Reports of a run: metrics.jsonl, TensorBoard events, and a line of progress. Only process 0 makes
them.
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
    """The numbers of a run by step: one JSON object per line, written at once, and TensorBoard
    scalars of the same values.

    Args:
      directory: the run directory.
      step: the step from which the run continues. Lines of later steps and damaged lines are
        removed, see `repair`.
      written: the record of the lines up to `step`, from its checkpoint; None if it has none.
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
        self._file = disk.appended(path)
        self._board = Board(directory / 'tensorboard', step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line {'step': step, **values}."""
        line = json.dumps({'step': step, **values}).encode()
        self._file.write(line + b'\n')
        self._lines.add(line)
        self._board.write(step, values)

    def flush(self) -> None:
        """Writes what waits, see `disk.AppendedObject`."""
        self._file.flush()
        self._board.flush()

    @property
    def written(self) -> dict[str, Any]:
        """The record of the lines so far, which a checkpoint keeps."""
        return self._lines.record()

    def __enter__(self) -> 'MetricsLog':
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._board.close()


class LiveLine:
    """A progress bar with text in a terminal, plain lines elsewhere; a context manager.

    Args:
      unit: the word in front of the count, e.g. 'step'; '' for none.
      done: the count at the start.
      total: the count at the end.
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
        """Prints a line above the bar."""
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def show(self, **fields) -> None:
        """Changes `text` or `completed` of the bar, if there is one."""
        if self._bar is not None:
            self._bar.update(self._task, **fields)


class Progress(LiveLine):
    """Loss, tokens per second and time left: a bar in a terminal, elsewhere one line per report.

    Args:
      step: the step from which training starts.
      steps: the step at which it ends.
      tokens: tokens per step.
    """

    def __init__(self, step: int, steps: int, tokens: int):
        super().__init__('step', step, steps)
        self._start, self._steps, self._tokens = step, steps, tokens
        # Step and time of the last report. None before the first, whose time includes compilation.
        self._clock = None
        self._speed = 0.0
        self._trained = self._seconds = 0.0  # tokens and time of all reports with a speed

    def report(self, step: int, loss: float) -> float:
        """Shows the loss of a step. Returns the tokens per second since the last report, 0 at the
        first. The time left follows from the mean speed so far, so that it does not jump.
        """
        now = time.perf_counter()
        if self._clock is not None and step > self._clock[0]:
            tokens, seconds = (step - self._clock[0]) * self._tokens, now - self._clock[1]
            self._speed = tokens / seconds
            self._trained, self._seconds = self._trained + tokens, self._seconds + seconds
        self._clock = (step, now)
        rest = (self._steps - step) * self._tokens
        left = _duration(rest * self._seconds / self._trained) if self._trained else '?'
        text = f'loss {loss:.4f}  {self._speed:,.0f} tokens/s  {left} left'
        if self._bar is None:
            self.say(f'step {step}/{self._steps}  {text}')
        self.show(completed=step, text=text)
        return self._speed

    def resume(self, step: int) -> None:
        """Starts the clock anew after work that is no training: a validation, or a checkpoint."""
        if self._clock is not None:
            self._clock = (step, time.perf_counter())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
