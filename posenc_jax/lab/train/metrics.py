"""Reports of a run: metrics.jsonl, TensorBoard events, and a line of progress. Only process 0 makes
them.
"""

import contextlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from posenc_jax.lab.files import disk
from posenc_jax.lab.train.board import Board
from posenc_jax.lab.train.metrics_file import FILE, repair


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


class Unreported:
    """Stands for `MetricsLog` and for `Progress` in the processes that report nothing."""

    written = None

    def __getattr__(self, _: str) -> Callable[..., Any]:
        return lambda *_, **__: contextlib.nullcontext()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        pass


class LiveLine:
    """A progress bar with text in a terminal, plain lines elsewhere; a context manager.

    Args:
      unit: the word in front of the count, e.g. 'step'; '' for none.
      done: the count at the start.
      total: the count at the end.
    """

    def __init__(self, unit: str, done: int, total: int):
        from rich import progress

        columns = (
            progress.TextColumn(f'{unit} {{task.completed}}/{{task.total}}'.lstrip()),
            progress.BarColumn(),
            progress.TextColumn('{task.fields[text]}'),
        )
        self.in_terminal = sys.stdout.isatty()
        self._idle = 0.0
        self._bar = progress.Progress(
            *columns,
            speed_estimate_period=math.inf,  # the mean speed, so that the time left does not jump
            get_time=self.now,
            disable=not self.in_terminal,
        )
        self._task = self._bar.add_task('', total=total, completed=done, text='compiling')
        self._left = progress.TimeRemainingColumn(compact=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def now(self) -> float:
        """Seconds on a clock that stands still while the line is `paused`."""
        return time.perf_counter() - self._idle

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Work inside does not count as time for the speed and the time left."""
        begun = self.now()
        yield
        self._idle += self.now() - begun

    def left(self) -> str:
        """The time left as '1:02:03' or '02:03'; '--:--' before the second change of the count. The
        time before the first does not count, because it includes compilation.
        """
        return f'{self._left.render(self._bar.tasks[0])} left'

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.in_terminal:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def show(self, **fields) -> None:
        """Changes `text` or `completed`."""
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
        self._steps, self._tokens = steps, tokens
        self._last = None  # step and time of the last report

    def report(self, step: int, loss: float, remark: str = '') -> float:
        """Shows the loss of a step, and a remark at the end of the line. Returns the tokens per
        second since the last report, 0 at the first, whose time includes compilation.
        """
        before, self._last = self._last, (step, self.now())
        speed = 0.0
        if before is not None and step > before[0]:
            speed = (step - before[0]) * self._tokens / (self._last[1] - before[1])
        self.show(completed=step)
        rate = f'{speed:,.0f} tokens/s' if speed else 'compiled'
        text = f'loss {loss:.4f}  {rate}  {self.left()}  {remark}'.rstrip()
        if not self.in_terminal:
            self.say(f'step {step}/{self._steps}  {text}')
        self.show(text=text)
        return speed
