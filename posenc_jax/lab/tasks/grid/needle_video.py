"""Videos with a needle and frames that look like it and recur: the colour that the needle has."""

import dataclasses
import functools
from typing import Annotated, Literal

import numpy as np

from posenc_jax.lab.tasks.grid.patch_questions import video_layout
from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import Ge, Le
from posenc_jax.protocol.registry import register

LOOKS = ('ab', 'a.', '.b')  # of the needle, and of the two kinds of frames that look like it


@register('needle_video', kind='task')
@dataclasses.dataclass(frozen=True)
class NeedleVideo(PromptTask):
    """`< frames > ?` and the colour of the needle. Loss on the answer, which is one token.

    A frame has three patches in a row: two marks and a colour. The needle is the one frame with the
    marks `a b`. Frames that look like it have one of its marks, the same one in a video, and
    another mark `.`; they recur with a period, from a frame on that is drawn, except where the
    needle is. All other frames have the marks `. .`. So a model must find the frame by what it
    shows, at any distance, and by both of its marks. The task length is the number of frames.

    Args:
      colours: how many colours there are.
      period: of the frames that look like the needle.
      ids: 'none', or 'layout': positions [B, T, 6], as `visual_layout` has them, for `videorope`.

    Reference: `videorope` (arXiv 2502.05173) is tested on long videos with distractors that recur;
    these small ones are ours.

    Example:
      >>> task = NeedleVideo(period=2)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=3)['tokens'][0])
      '< . . k2 . b k2 a b k0 > ?'
    """

    colours: Annotated[int, Ge(2), Le(64)] = 8
    period: Annotated[int, Ge(2)] = 8
    ids: Literal['none', 'layout'] = 'none'

    joint = ' '
    counted = 'number of frames'

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        return (*(f'k{i}' for i in range(self.colours)), *'.ab<>?_')

    def longest(self, length: int) -> int:
        return 3 * length + 3

    def draw(self, rng, batch, low, high):
        frames = rng.integers(low, high, batch, endpoint=True)
        marks = np.array([[self.names.index(mark) for mark in look] for look in (*LOOKS, '..')])
        frame, needle = np.arange(high), rng.integers(0, frames)
        kind, phase = rng.integers(1, 3, batch), rng.integers(0, self.period, batch)
        recurs = frame % self.period == phase[:, None]
        look = np.where(recurs, kind[:, None], len(LOOKS))
        look = np.where(frame == needle[:, None], 0, look)
        colour = rng.integers(0, self.colours, (batch, high))
        patches = np.concatenate([marks[look], colour[..., None]], axis=-1).reshape(batch, -1)
        answer = np.take_along_axis(colour, needle[:, None], axis=1)
        size = np.ones_like(frames)
        layout = functools.partial(video_layout, frames, size, 3 * size)
        return Drawn(['<', (patches, 3 * frames), '>', '?'], [answer], layout)
