"""Flip-flop language: read the bit that was written last, however long ago."""

import dataclasses

import numpy as np

from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.protocol.bounds import Share
from posenc_jax.protocol.registry import register

WRITE, READ, IGNORE = 2, 3, 4


@register('flip_flop', kind='task')
@dataclasses.dataclass(frozen=True)
class FlipFlop(PromptTask):
    """`w 1 i 0 i 1 r 1 ...`; the task length is the number of pairs. Loss on the bits after `r`.

    A text consists of pairs of an instruction and a bit: `w` writes the bit, `i` ignores it, and
    `r` reads, so that the bit written last follows. The first instruction is `w` and the last is
    `r`. Each other one is `i` with probability p, and `w` or `r` with probability (1 - p) / 2 each.
    Bits after `w` and `i` are uniform. The last bit is a target only.

    After Liu et al., "Exposing Attention Glitches with Flip-Flop Language Modeling", arXiv
    2306.00946. CoPE (arXiv 2405.18719) and TRA (arXiv 2503.23174) train with p = 0.8 and test with
    p = 0.8, 0.98 (sparse) and 0.1 (dense).

    Args:
      ignore: p, the probability of `i`.

    Example:
      >>> task = FlipFlop(ignore=0.8)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=8)['tokens'][0])
      'w 1 i 1 w 1 w 1 i 0 i 1 i 1 r'
    """

    ignore: Share = 0.8

    names = '01wri_'
    joint = ' '
    shortest = 2
    counted = 'number of flip-flop pairs'

    def longest(self, length: int) -> int:
        return 2 * length - 1

    def draw(self, rng, batch, low, high):
        pairs = rng.integers(low, high, (batch, 1), endpoint=True)
        number = np.arange(high)
        other = (1 - self.ignore) / 2
        instruction = rng.choice(
            [WRITE, READ, IGNORE], (batch, high), p=[other, other, self.ignore]
        )
        instruction = np.where(number == 0, WRITE, np.where(number == pairs - 1, READ, instruction))
        bit = rng.integers(0, 2, (batch, high))
        written = np.maximum.accumulate(np.where(instruction == WRITE, number, 0), axis=1)
        bit = np.where(instruction == READ, np.take_along_axis(bit, written, axis=1), bit)
        text = np.stack([instruction, bit], axis=-1).reshape(batch, -1)
        return Drawn([], [(text, 2 * pairs[:, 0])])

    def weights(self, batch):
        return batch['loss_mask'] * (batch['tokens'] == READ)
