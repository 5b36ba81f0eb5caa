"""Language modelling at several context lengths, by the protocols of `lab/config/protocols.py`."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from posenc_jax.lab.config import protocols
from posenc_jax.lab.config.protocols import Windows, plan
from posenc_jax.lab.evaluate import ngrams
from posenc_jax.lab.evaluate.measurement import Measurement, perplexity
from posenc_jax.lab.evaluate.scoring import Scorer
from posenc_jax.lab.evaluate.series import TABLES
from posenc_jax.lab.tasks.language.language import Language
from posenc_jax.lab.tasks.language.vocabulary import Bytes
from posenc_jax.protocol.tokens import Tokens


def evaluate_language(
    score: Scorer,
    stream: Int[np.ndarray, ' N'],
    lengths: tuple[int, ...],
    names: tuple[str, ...] = protocols.PROTOCOLS,
    *,
    tokens: int,
    rows: Callable[[int], int],
    stride: int,
    buckets: int = 8,
    bytes_of: Int[np.ndarray, ' V'] | None = None,
    key: jax.Array | None = None,
    places: Callable[[Int[np.ndarray, 'B L']], Int[np.ndarray, 'B L *P']] | None = None,
    documents: Int[np.ndarray, ' N'] | None = None,
) -> list[Measurement]:
    """Measures perplexity for each protocol and length.

    `nonoverlapping` scores `tokens` targets, in stretches of the longest length that are spread
    evenly over the stream; `within_blocks`, only on request, leaves out the first token of each
    window. `per_position` scores the targets of `nonoverlapping` in windows of the longest length.
    `sliding`, in stretches of at least four times the longest length, and `same_tokens` score fewer
    targets if their overlapping windows would read more than 4 x `tokens` tokens at the longest
    length. Except for `within_blocks`, a protocol scores the same targets at every length. All
    tokens enter the likelihood. Bits per byte divides it by the number of bytes that the tokens
    stand for.

    Args:
      score: see `scoring.scorer`.
      stream: tokens of the text.
      lengths: context lengths, in tokens.
      names: protocols, of `protocols.CHOICES`.
      tokens: the most targets that are scored, or the longest length if that is more.
      rows: length -> how many windows of it are read at once.
      stride: step of `sliding`, at each length at most that length, and how many targets
        `same_tokens` scores in a window, at most the shortest length.
      buckets: how many buckets of positions `per_position` reports.
      bytes_of: how many bytes each token id stands for; None leaves bits per byte out.
      key: draws random positions; None uses the evaluation rule of the encoding.
      places: positions of the windows, see `Language.places`; None for plain positions.
      documents: number of the document of each token of the stream, for the intervals; None if it
        is not known.

    Raises:
      SpecError: an unknown protocol.
      ValueError: the stream is shorter than the longest length, or the stride is below 1.
    """
    results = []
    for name, length, windows in plan(
        len(stream) - 1, lengths, names, tokens=tokens, stride=stride
    ):
        nll, correct, scored, index = score_windows(
            score, stream, windows, rows(length), key, places
        )
        targets = stream[index + 1]
        edges = protocols.position_edges(length, buckets) if name == 'per_position' else (0, length)
        for low, high in zip(edges[:-1], edges[1:]):
            at = np.s_[:, low:high]
            position = (int(low), int(high)) if name == 'per_position' else (None, None)
            byte_count = (
                0 if bytes_of is None else int(np.where(scored[at], bytes_of[targets[at]], 0).sum())
            )
            own = None if documents is None else documents[index[at] + 1]
            results.append(
                perplexity(
                    name, length, nll[at], correct[at], scored[at], byte_count, position, own
                )
            )
    return results


def of_tables(
    task: Language,
    split: str,
    lengths: tuple[int, ...],
    names: tuple[str, ...],
    *,
    tokens: int,
    stride: int,
) -> dict[str, float]:
    """Name in `TABLES` -> perplexity of this table of n-grams of the training text, on the targets
    that the first protocol scores at the longest length. {} for models that do not read bytes, and
    on the training text itself.
    """
    if split == 'train' or task.vocab_size != Bytes.size:
        return {}
    stream = task.tokens(split)
    plans = plan(len(stream) - 1, lengths, names[:1], tokens=tokens, stride=stride)
    windows = next(windows for _, length, windows in plans if length == max(lengths))
    ends = windows.start + windows.size
    at = np.concatenate([np.arange(end - n, end) for end, n in zip(ends, windows.scored)]) + 1
    table = ngrams.table(task)
    return {
        name: float(np.exp(table.nll(stream, at, order).mean())) for name, order in TABLES.items()
    }


def score_windows(
    score: Scorer, stream, windows: Windows, rows: int, key=None, places=None
) -> tuple[np.ndarray, ...]:
    """Scores windows in batches of one shape.

    Returns:
      For each target [W, length]: its negative log-likelihood, whether it is the first choice,
      whether it is scored, and the index of the token before it in the stream.
    """
    scored, order = [], []
    for size in np.unique(windows.size)[::-1]:
        # All rows of a batch have the same padding. So they share positions, and biases are
        # computed once.
        found = np.flatnonzero(windows.size == size)
        for first in range(0, len(found), rows):
            numbers = found[first : first + rows]
            batch = protocols.window_batch(stream, windows, np.resize(numbers, rows))
            tok = Tokens.of(
                length=windows.length, positions=None if places is None else places(batch['index'])
            )
            tok = dataclasses.replace(tok, valid=jnp.asarray(batch['valid'][:1]))
            own = None if key is None else jax.random.fold_in(key, len(order))
            nll, correct = score(batch['tokens'], batch['targets'], tok, own)
            arrays = (np.asarray(nll), np.asarray(correct), batch['scored'], batch['index'])
            scored.append(tuple(a[: len(numbers)] for a in arrays))
            order.extend(numbers)
    back = np.argsort(order)
    return tuple(np.concatenate(column)[back] for column in zip(*scored))
