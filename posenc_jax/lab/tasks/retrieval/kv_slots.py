"""Key-value retrieval in tokens: pairs in numbered slots, one of which is asked for."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.task import (
    Batch,
    Length,
    Task,
    join_ragged,
    length_range,
    next_token_batch,
)
from posenc_jax.protocol.errors import SpecError, check_choice
from posenc_jax.protocol.registry import register


@register('kv_slots', kind='task')
@dataclasses.dataclass(frozen=True)
class KVSlots(Task):
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
      SpecError: an option out of its range.
      ValueError: fewer pairs than the slot needs, or more than there are keys.

    Example:
      >>> task = KVSlots(slot=1)
      >>> task.decode(task.sample(np.random.default_rng(0), batch=1, length=3)['tokens'][0])
      'k3 v57 v43 k11 v57 v19 k20 v56 v12 ASK k11 v57'
    """

    keys: int = 64
    values: int = 64
    words: int = 2
    slot: int | None = None
    skew: float = 0.0
    ids: Literal['none', 'locations'] = 'none'

    def __post_init__(self):
        for name in ('keys', 'values', 'words'):
            if getattr(self, name) < 1:
                raise SpecError(f'{name} must be at least 1, got {getattr(self, name)}')
        if self.slot is not None and self.slot < 0:
            raise SpecError(f'slot must be None or at least 0, got {self.slot}; nearest: 0')
        if not abs(self.skew) < float('inf'):
            raise SpecError(f'skew must be finite, got {self.skew}')
        check_choice('ids', self.ids, ('none', 'locations'))

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values + 3

    @property
    def ask(self) -> int:
        return self.keys + self.values

    @property
    def empty(self) -> int:
        """The token that `ids='locations'` puts in front of every pair."""
        return self.keys + self.values + 1

    @property
    def _pair(self):
        return 1 + self.words + (self.ids == 'locations')

    def _range(self, length):
        low, high = length_range(length, (self.slot or 0) + 1, 'number of pairs')
        if high > self.keys:
            raise ValueError(
                f'{high} pairs need {high} distinct keys, but there are {self.keys}; nearest: '
                f'{self.keys} pairs'
            )
        return low, high

    def width(self, length: Length) -> int:
        return self._range(length)[1] * self._pair + 1 + self.words

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

    def sample(self, rng: np.random.Generator, batch: int, length: Length) -> Batch:
        low, high = self._range(length)
        total = rng.integers(low, high, batch, endpoint=True)
        documents, question, answer = self.documents(rng, batch, high)
        slot = np.full(batch, self.slot) if self.slot is not None else self._drawn(rng, total, high)
        rows = np.arange(batch)
        documents[rows, slot], documents[:, 0] = (
            documents[:, 0].copy(),
            documents[rows, slot].copy(),
        )
        whole = lambda a: (a, np.full(batch, a.shape[1]))
        pieces = [
            (documents.reshape(batch, -1), total * self._pair),
            whole(question),
            whole(answer),
        ]
        sequence, ends = join_ragged(pieces, self.width(length) + 1, self.vocab_size - 1)
        positions = None
        if self.ids == 'locations':
            index = np.broadcast_to(np.arange(sequence.shape[1]), sequence.shape)
            number = np.where(sequence == self.empty, index // self._pair + 1, 0)
            positions = np.stack(
                [index, number, np.broadcast_to(total[:, None], index.shape)], axis=-1
            )
        return next_token_batch(sequence, ends, ends - self.words, positions)

    def _drawn(self, rng, total, high):
        log_weights = np.where(
            np.arange(high) < total[:, None], -self.skew * np.arange(high), -np.inf
        )
        return np.argmax(log_weights + rng.gumbel(size=log_weights.shape), axis=1)

    def decode(self, ids: Int[np.ndarray, ' L']) -> str:
        def text(token):
            special = {self.ask: 'ASK', self.empty: '()', self.vocab_size - 1: '_'}
            return special.get(token) or (
                f'k{token}' if token < self.keys else f'v{token - self.keys}'
            )

        return ' '.join(text(int(token)) for token in ids)
