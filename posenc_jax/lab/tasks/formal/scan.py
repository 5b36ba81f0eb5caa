"""SCAN: commands in simplified English, and the actions that carry them out."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from posenc_jax.lab.tasks.task import Length
from posenc_jax.lab.tasks.word_task import WordTask
from posenc_jax.protocol.registry import register

TURNS = {'left': 'LTURN', 'right': 'RTURN'}
PRIMITIVES = {'walk': 'WALK', 'look': 'LOOK', 'run': 'RUN', 'jump': 'JUMP'}
REPEATS = {'': 1, 'twice': 2, 'thrice': 3}
# Of two phrases x and y joined by a word, in which order they are carried out.
JOINTS: dict[str, Callable[[list[str], list[str]], list[str]]] = {
    'and': lambda x, y: x + y,
    'after': lambda x, y: y + x,
}
WORDS = (*PRIMITIVES, 'turn', *TURNS, 'opposite', 'around', 'twice', 'thrice', *JOINTS)
LONGEST = 9  # words of a command

Phrase = tuple[list[str], list[str]]  # words, actions


def phrases() -> list[Phrase]:
    """The 102 phrases S of the grammar `C = S | S and S | S after S`, with their actions.

    `S = V | V twice | V thrice`, and V is an action (walk, look, run, jump), possibly with a
    direction, such as `u left`, `u opposite left` or `u around left`; with a direction u may be
    `turn`, which is no action.
    """
    single: list[Phrase] = [([word], [action]) for word, action in PRIMITIVES.items()]
    for word, actions in [*((w, [a]) for w, a in PRIMITIVES.items()), ('turn', [])]:
        for side, turn in TURNS.items():
            single += [
                ([word, side], [turn, *actions]),
                ([word, 'opposite', side], [turn, turn, *actions]),
                ([word, 'around', side], [turn, *actions] * 4),
            ]
    return [
        ([*words, *[word] * bool(word)], actions * times)
        for words, actions in single
        for word, times in REPEATS.items()
    ]


class Commands:
    """All 20,910 commands, numbered: 102 phrases, and every two of them joined by each word."""

    def __init__(self):
        self.phrases = phrases()
        one = np.array([len(actions) for _, actions in self.phrases])
        two = (one[:, None] + one).ravel()
        self.lengths = np.concatenate([one, *[two] * len(JOINTS)])

    def __getitem__(self, number: int) -> Phrase:
        """The words and the actions of a command."""
        count = len(self.phrases)
        if number < count:
            return self.phrases[number]
        joint, pair = divmod(number - count, count**2)
        (first, x), (second, y) = (self.phrases[i] for i in divmod(pair, count))
        word, join = list(JOINTS.items())[joint]
        return [*first, word, *second], join(x, y)

    def draw(self, rng: np.random.Generator, low: int, high: int) -> Phrase:
        """A command with low .. high actions, each with the same probability."""
        among = np.flatnonzero((low <= self.lengths) & (self.lengths <= high))
        return self[int(rng.choice(among))]

    def check(self, low: int, high: int) -> None:
        """Raises ValueError if no command has low .. high actions."""
        if not ((low <= self.lengths) & (self.lengths <= high)).any():
            existing = np.unique(self.lengths)
            near = [*existing[existing < low][-1:], *existing[existing > high][:1]]
            raise ValueError(
                f'no command of SCAN has {low if low == high else f"{low} to {high}"} actions; '
                f'nearest: {" or ".join(map(str, near))}'
            )


COMMANDS = Commands()


@register('scan', kind='task')
@dataclasses.dataclass(frozen=True)
class Scan(WordTask):
    """Translation of SCAN's commands into actions; the task length is the number of actions. Loss
    on the actions and the end.

    A range of lengths draws every command with so many actions equally often. The length split of
    the paper trains on the 16,990 commands of up to 22 actions and tests on the 3,920 of 24 to 48
    (`train.min_length=1 train.length=22`, and `eval.lengths` out of 24 .. 28, 30, 32, 33, 36, 40
    and 48, the lengths that exist). All commands are generated from the grammar.

    Differs from the paper: training draws commands with replacement, so it does not see each of
    them equally often. An evaluation at trained lengths draws from the commands of training.

    Args:
      layout: 'row' (`command ^ actions $`, for a decoder) or 'source' (an encoder reads the
        command).

    Raises:
      ValueError: a length that no command has; the message has the nearest one.

    Reference: Lake, Baroni, "Generalization without Systematicity", arXiv 1711.00350.

    Example:
      >>> task = Scan()
      >>> task.decode(task.sample(np.random.default_rng(4), batch=1, length=4)['tokens'][0])
      'look left after walk twice ^ WALK WALK LTURN LOOK $ _ _ _'
    """

    layout: Literal['row', 'source'] = 'row'

    counted = 'number of actions'

    @property
    def words(self) -> tuple[str, ...]:
        return (*WORDS, *TURNS.values(), *PRIMITIVES.values())

    def range(self, length: Length) -> tuple[int, int]:
        low, high = super().range(length)
        COMMANDS.check(low, high)
        return low, high

    def widest(self, length: int) -> tuple[int, int]:
        return LONGEST, min(length, int(COMMANDS.lengths.max()))

    def pair(self, rng, low, high):
        return COMMANDS.draw(rng, low, high)
