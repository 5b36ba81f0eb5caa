"""Key-value retrieval in tokens: pairs in numbered slots, one of which is asked for."""

import dataclasses
import functools
from typing import Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.prompt import Drawn, PromptTask
from posenc_jax.lab.tasks.task import Length
from posenc_jax.protocol.bounds import Count, Finite, Size, Symbols
from posenc_jax.protocol.registry import register


@register('kv_slots', kind='task')
@dataclasses.dataclass(frozen=True)
class KVSlots(PromptTask):
    """`key1 value1 ... keyN valueN ASK key` and the value of that key; the task length is N, the
    number of pairs. Loss on the value.

    Keys are distinct, and a value is `words` random tokens. This is the token form of
    `kv_retrieval`, for models trained from scratch and for accuracy by slot. `slot` fixes the place
    of the asked pair. `skew` makes the first slots more frequent in training, so that a model
    learns a position bias, as in "lost in the middle".

    Args:
      keys, values: sizes of the two alphabets.
      words: number of tokens of a value.
      slot: slot of the asked pair, 0 .. N-1; None draws it.
      skew: a slot is drawn with p(slot) ~ exp(-skew slot); 0 is uniform.
      ids: 'none', or 'locations': an empty token in front of every pair, and positions [B, T, 3],
        (position, slot + 1 at empty tokens and 0 elsewhere, N), as `papeft` takes them.

    Raises:
      ValueError: fewer pairs than the slot needs, or more than there are keys.

    Example:
      >>> task = KVSlots(slot=1)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=3)['tokens'][0])
      'k3 v57 v43 k11 v57 v19 k20 v56 v12 ASK k11 v57'
    """

    keys: Symbols = 64
    values: Symbols = 64
    words: Size = 2
    slot: Count | None = None
    skew: Finite = 0.0
    ids: Literal['none', 'locations'] = 'none'

    joint = ' '
    counted = 'number of pairs'

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        keys, values = (f'k{i}' for i in range(self.keys)), (f'v{i}' for i in range(self.values))
        return (*keys, *values, 'ASK', '()', '_')

    @property
    def ask(self) -> int:
        return self.keys + self.values

    @property
    def empty(self) -> int:
        """The token that `ids='locations'` puts in front of every pair."""
        return self.ask + 1

    @property
    def _pair(self):
        return 1 + self.words + (self.ids == 'locations')

    @property
    def shortest(self) -> int:
        return (self.slot or 0) + 1

    def range(self, length: Length) -> tuple[int, int]:
        low, high = super().range(length)
        if high > self.keys:
            raise ValueError(
                f'{high} pairs need {high} distinct keys, but there are {self.keys}; nearest: '
                f'{self.keys} pairs'
            )
        return low, high

    def longest(self, length: int) -> int:
        return length * self._pair + 1 + self.words

    def documents(
        self, rng: np.random.Generator, batch: int, pairs: int
    ) -> tuple[Int[np.ndarray, 'B N W'], Int[np.ndarray, 'B 2'], Int[np.ndarray, 'B words']]:
        """Draws pairs, a question for the value of the first pair, and its answer."""
        keys = np.argsort(rng.random((batch, self.keys)), axis=1)[:, :pairs]
        values = self.keys + rng.integers(0, self.values, (batch, pairs, self.words))
        documents = np.concatenate([keys[..., None], values], axis=-1)
        if self.ids == 'locations':
            documents = np.insert(documents, 0, self.empty, axis=-1)
        return documents, np.stack([np.full(batch, self.ask), keys[:, 0]], axis=1), values[:, 0]

    def draw(self, rng, batch, low, high):
        total = rng.integers(low, high, batch, endpoint=True)
        documents, question, answer = self.documents(rng, batch, high)
        slot = np.full(batch, self.slot) if self.slot is not None else self._drawn(rng, total, high)
        rows, first = np.arange(batch), documents[:, 0].copy()
        documents[:, 0] = documents[rows, slot]
        documents[rows, slot] = first
        pairs = documents.reshape(batch, -1), total * self._pair
        ids = functools.partial(self._locations, total)
        return Drawn([pairs, question], [answer], ids)

    def _locations(self, total, width):
        """(position, slot + 1 at empty tokens and 0 elsewhere, number of pairs)."""
        index = np.arange(width)
        number, place = index // self._pair, index % self._pair
        slot = np.where((place == 0) & (number < total[:, None]), number + 1, 0)
        return np.stack(np.broadcast_arrays(index, slot, total[:, None]), axis=-1)

    def _drawn(self, rng, total, high):
        log_weights = np.where(
            np.arange(high) < total[:, None], -self.skew * np.arange(high), -np.inf
        )
        return np.argmax(log_weights + rng.gumbel(size=log_weights.shape), axis=1)
