"""Questions about pictures of coloured patches: the colour of a patch, or when it changed."""

import dataclasses
import functools
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.lab.tasks.task import Length
from posenc_jax.protocol.bounds import Count, Ge, Size, Symbols
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import register


@register('patch_questions', kind='task')
@dataclasses.dataclass(frozen=True)
class PatchQuestions(PromptTask):
    """`< patches > row column` and its answer, about a picture or a video whose patches have
    colours. Loss on the answer, which is one token.

    Of 'colour' the answer is the colour of the patch in this row and column, and the task length is
    the number of rows and of columns; with a range both are drawn independently, and an int gives a
    square. Of 'time' the answer is the frame in which this patch of a video changed its colour, and
    the task length is the number of frames; every patch changes once. Patches are written row by
    row, and one frame after the other, and `<` and `>` are text. Further text, of tokens `.`, may
    stand in front of the question.

    Args:
      question: 'colour' or 'time'.
      colours: how many colours there are.
      places: how many rows, columns and frames have a name, the largest task length.
      asked: the rows, columns and frames that are asked for are below this number, so that larger
        pictures than in training have questions whose names training has; None asks for all. Of
        'time' it is at least 3, since frame 0 changes no patch.
      side: rows and columns of a video; those of a picture follow from the task length.
      between: how many tokens `.` stand between `>` and the question at most; each number from 0
        is equally likely.
      ids: 'none', or 'layout': positions [B, T, 6], as `visual_layout` has them, for `mrope` and
        its relatives.

    Raises:
      SpecError: a video of one colour, with more rows than have a name, or whose only answer is
        frame 1.
      ValueError: more rows, columns or frames than have a name.

    Example:
      >>> task = PatchQuestions(colours=3)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=2)['tokens'][0])
      '< k2 k1 k1 k0 > r0 c0'
    """

    question: Literal['colour', 'time'] = 'colour'
    colours: Symbols = 8
    places: Symbols = 16
    asked: Annotated[int, Ge(2)] | None = None
    side: Size = 2
    between: Count = 0
    ids: Literal['none', 'layout'] = 'none'

    joint = ' '
    counted = 'number of {0.sizes}'

    def __post_init__(self):
        if self.question == 'time' and (self.colours < 2 or self.side > self.places):
            raise SpecError(
                'patch_questions("time") needs at least 2 colours and a side of at most '
                f'places={self.places}, got colours={self.colours} and side={self.side}'
            )

        if self.question == 'time' and self.asked == 2:
            raise SpecError(
                'patch_questions("time", asked=2) has one answer, frame 1, since frame 0 changes '
                'no patch; the nearest is asked=3'
            )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        numbered = lambda letter, count: (f'{letter}{i}' for i in range(count))
        places = (name for letter in 'rcf' for name in numbered(letter, self.places))
        return (*numbered('k', self.colours), *places, '<', '>', '.', '_')

    @property
    def sizes(self) -> str:
        """What the task length counts."""
        return 'frames' if self.question == 'time' else 'rows and columns'

    @property
    def shortest(self) -> int:
        return 2 if self.question == 'time' else 1

    def range(self, length: Length) -> tuple[int, int]:
        low, high = super().range(length)
        if high > self.places:
            raise ValueError(
                f'{high} {self.sizes} need as many names, but places={self.places}; nearest: '
                f'{self.places}'
            )
        return low, high

    def longest(self, length: int) -> int:
        patches = length * self.side**2 if self.question == 'time' else length**2
        return 4 + self.between + patches

    def _below(self, count):
        """How many of `count` rows, columns or frames may be asked for."""
        return count if self.asked is None else np.minimum(count, self.asked)

    def draw(self, rng, batch, low, high):
        if self.question == 'time':
            sizes, patches, answers = self._video(rng, batch, low, high)
        else:
            sizes, patches, answers = self._picture(rng, batch, low, high)
        frames, rows, columns = sizes
        row, column = (rng.integers(0, self._below(n)) for n in (rows, columns))
        answer = answers[np.arange(batch), row * columns + column]
        asked = self.colours + np.stack([row, self.places + column], axis=1)
        layout = functools.partial(video_layout, frames, rows, columns)
        shown = (patches, frames * rows * columns)
        return Drawn(
            ['<', shown, '>', *self._between(rng, batch), asked], [answer[:, None]], layout
        )

    def _between(self, rng, batch):
        if not self.between:
            return []
        text = np.full((batch, self.between), self.names.index('.'))
        return [(text, rng.integers(0, self.between, batch, endpoint=True))]

    def _picture(self, rng, batch, low, high):
        rows, columns = rng.integers(low, high, (2, batch), endpoint=True)
        colours = rng.integers(0, self.colours, (batch, high * high))
        return (np.ones_like(rows), rows, columns), colours, colours

    def _video(self, rng, batch, low, high):
        frames, cells = rng.integers(low, high, batch, endpoint=True), self.side**2
        before = rng.integers(0, self.colours, (batch, 1, cells))
        after = (before + rng.integers(1, self.colours, (batch, 1, cells))) % self.colours
        change = rng.integers(1, self._below(frames)[:, None], (batch, cells))
        shown = np.where(np.arange(high)[:, None] < change[:, None], before, after)
        size = np.full(batch, self.side)
        answers = self.colours + 2 * self.places + change
        return (frames, size, size), shown.reshape(batch, -1), answers


def video_layout(
    frames: Int[np.ndarray, ' B'],
    rows: Int[np.ndarray, ' B'],
    columns: Int[np.ndarray, ' B'],
    width: int,
) -> Int[np.ndarray, 'B W 6']:
    """`visual_layout` of `<`, a video, and text, for each row of a batch."""
    frames, rows, columns = (n[:, None] for n in (frames, rows, columns))
    index = np.arange(width)
    inside = (index > 0) & (index <= frames * rows * columns)
    frame, cell = np.divmod(index - 1, rows * columns)
    told = np.broadcast_arrays(frame, cell // columns, cell % columns, rows, columns)
    parts = [np.broadcast_to(index, inside.shape), *(np.where(inside, part, 0) for part in told)]
    return np.stack(parts, axis=-1)
