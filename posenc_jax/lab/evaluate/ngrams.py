"""Tables of n-grams as a baseline of language models: what the last few tokens alone tell.

A model whose perplexity is not far below that of the table of 5-grams has learned little that
depends on positions, so a comparison of encodings says little there.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.evaluate.series import TABLES
from posenc_jax.lab.tasks.language.language import Language

_FEW = 0.5  # the discount where too few n-grams tell it
_COUNTED = 2**24  # with so few possible keys they are counted, otherwise sorted


@dataclasses.dataclass(frozen=True)
class _Order:
    """The n-grams of one n in the training text.

    Attributes:
      base: the key of an n-gram is its first token times `base`, plus the number of the rest.
      keys: the keys in order; the place of a key is the number of the n-gram.
      context: number of the n-gram without its last token.
      often: how often each n-gram occurs.
      preceded: how many different tokens precede it.
    """

    base: int
    keys: Int[np.ndarray, ' K']
    context: Int[np.ndarray, ' K']
    often: Int[np.ndarray, ' K']
    preceded: Int[np.ndarray, ' K']


class KneserNey:
    """Interpolated Kneser-Ney estimates of the next token from the tokens before it.

    The estimate of order n takes a discount D from the count c of each n-gram and gives it to the
    estimate of order n - 1: `max(c(h w) - D, 0) / c(h) + D * types(h) / c(h) * P(w | h')`, where h'
    lacks the first token of h. Below the highest order, c counts the different tokens in front of
    an n-gram. The last estimate is `1 / vocab`. D = n1 / (n1 + 2 n2) for each order, where n1 and
    n2 n-grams have the counts 1 and 2; it is 1/2 if one of these is 0.

    Args:
      stream: the tokens of the training text, in [0, vocab).
      vocab: the number of token ids.
      longest: the highest order that can be asked for.

    Reference: Kneser and Ney, "Improved backing-off for m-gram language modeling", ICASSP 1995;
    interpolated as in Chen and Goodman, "An empirical study of smoothing techniques for language
    modeling", Computer Speech and Language 13, 1999.

    Example:
      >>> table = KneserNey(np.array([0, 1, 0, 1, 0, 2]), vocab=3, longest=2)
      >>> table.nll(np.array([0, 1, 0, 2]), np.array([1, 3]), order=2).round(2)
      array([0.44, 1.17])
    """

    def __init__(self, stream: Int[np.ndarray, ' N'], vocab: int, longest: int):
        self._vocab = vocab
        self._orders: list[_Order] = []
        shorter = np.zeros(len(stream), np.int64)  # number of the (n - 1)-gram that ends here
        for n in range(1, longest + 1):
            base = int(shorter.max(initial=0)) + 1
            key = stream[: len(stream) - n + 1].astype(np.int64) * base + shorter[n - 1 :]
            keys, number, often = _unique(key, base * vocab)
            at = np.empty(len(keys), np.int64)  # where one of its occurrences ends
            at[number] = np.arange(n - 1, len(stream))
            context = np.zeros(len(keys), np.int64) if n == 1 else shorter[at - 1]
            self._orders.append(_Order(base, keys, context, often, np.zeros_like(often)))
            if n > 1:
                self._orders[-2].preceded[:] = np.bincount(shorter[at], minlength=base)
            shorter[n - 1 :] = number

    def nll(
        self, stream: Int[np.ndarray, ' M'], at: Int[np.ndarray, ' T'], order: int
    ) -> Float[np.ndarray, ' T']:
        """The negative log-likelihood, in nats, of the tokens at some places of a stream, given the
        `order - 1` tokens before each of them.
        """
        known = np.zeros(len(stream), np.int64)  # number of the n-gram that ends here, or -1
        likelihood = np.full(len(at), 1 / self._vocab)
        for n, grams in enumerate(self._orders[:order], 1):
            counts = grams.often if n == order else grams.preceded
            context = known[np.maximum(at - 1, 0)] if n > 1 else np.zeros_like(at)
            context = np.where(at >= n - 1, context, -1)
            known = _look_up(grams, known, stream, n)
            total = np.bincount(grams.context, weights=counts)
            types = np.bincount(grams.context, weights=counts > 0)
            # The last tokens of the training text are the context of nothing.
            has = (context >= 0) & (context < len(total)) & (total[context % len(total)] > 0)
            total, types = total[context[has]], types[context[has]]
            number = known[at[has]]
            count = np.where(number >= 0, counts[number], 0)
            once, twice = (int((counts == k).sum()) for k in (1, 2))
            discount = once / (once + 2 * twice) if once and twice else _FEW
            likelihood[has] *= discount * types / total
            likelihood[has] += np.maximum(count - discount, 0) / total
        return -np.log(likelihood)


def _unique(key: Int[np.ndarray, ' N'], largest: int):
    """The keys in order, the place of each given key among them, and how often it occurs."""
    if largest > _COUNTED:
        return np.unique(key, return_inverse=True, return_counts=True)
    often = np.bincount(key, minlength=largest)
    keys = np.flatnonzero(often)
    return keys, (np.cumsum(often > 0) - 1)[key], often[keys]


def _look_up(grams: _Order, shorter, stream, n):
    own = np.full(len(stream), -1, np.int64)
    rest = shorter[n - 1 :]
    key = stream[: len(stream) - n + 1].astype(np.int64) * grams.base + rest
    place = np.minimum(np.searchsorted(grams.keys, key), len(grams.keys) - 1)
    own[n - 1 :] = np.where((rest >= 0) & (grams.keys[place] == key), place, -1)
    return own


@functools.lru_cache(maxsize=2)
def table(task: Language) -> KneserNey:
    """The table of the training text of a task."""
    return KneserNey(task.tokens('train'), task.vocab_size, max(TABLES.values()))
