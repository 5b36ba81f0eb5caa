"""Language modelling at several context lengths, by the protocols of `protocols.py`."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from posenc_jax.core.tokens import Tokens
from posenc_jax.evaluation.measurement import Measurement, perplexity
from posenc_jax.evaluation.scoring import Scorer
from posenc_jax.run import protocols
from posenc_jax.run.protocols import Windows, plan


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
) -> list[Measurement]:
    """Perplexity for each protocol and length.

    `nonoverlapping` scores the first `tokens` targets of the stream, `per_position` the same ones
    in windows of the longest length. `sliding` and `same_tokens` score fewer where their
    overlapping windows would read more than 4 x `tokens` at the longest length. Every protocol
    scores the same targets at every length. All tokens enter the likelihood; bits per byte divides
    by the bytes they stand for.

    Args:
      score: see `scoring.scorer`.
      stream: tokens of the text.
      lengths: context lengths.
      names: protocols.
      tokens: how many targets are scored at most; raised to the longest length where that is more.
      rows: how many windows of a length are read at once.
      stride: step of `sliding`, and targets that `same_tokens` scores in a window.
      buckets: position buckets of `per_position`.
      bytes_of: how many bytes each token id stands for; None where that is not known (then there
        are no bits per byte).
      key: draws random positions; None is the evaluation rule.
      places: see `Language.places`.

    Raises:
      SpecError: unknown protocol.
      ValueError: the stream is shorter than the longest length, or the stride does not fit the
        shortest.
    """
    results = []
    for name, length, windows in plan(
        len(stream) - 1, lengths, names, tokens=tokens, stride=stride
    ):
        nll, correct, scored, targets = score_windows(
            score, stream, windows, rows(length), key, places
        )
        edges = protocols.position_edges(length, buckets) if name == 'per_position' else (0, length)
        for low, high in zip(edges[:-1], edges[1:]):
            at = np.s_[:, low:high]
            position = (int(low), int(high)) if name == 'per_position' else (None, None)
            byte_count = (
                0 if bytes_of is None else int(np.where(scored[at], bytes_of[targets[at]], 0).sum())
            )
            results.append(
                perplexity(name, length, nll[at], correct[at], scored[at], byte_count, position)
            )
    return results


def score_windows(
    score: Scorer, stream, windows: Windows, rows: int, key=None, places=None
) -> tuple[np.ndarray, ...]:
    """nll, correct, scored, and the targets, [W, length] each; every batch has the same shape."""
    whole = int((windows.size == windows.length).sum())  # only the last window can be cut short
    parts = []
    for first in [*range(0, whole, rows), *range(whole, len(windows))]:
        last = min(first + rows, whole) if first < whole else len(windows)
        batch = protocols.window_batch(
            stream, windows, np.minimum(np.arange(first, first + rows), last - 1)
        )
        # All rows are padded alike, so that they share positions and biases are computed once for
        # them.
        tok = Tokens.of(
            length=windows.length, positions=None if places is None else places(batch['index'])
        )
        tok = dataclasses.replace(tok, valid=jnp.asarray(batch['valid'][:1]))  # padded on the right
        own = None if key is None else jax.random.fold_in(key, first)
        nll, correct = score(batch['tokens'], batch['targets'], tok, own)
        arrays = (np.asarray(nll), np.asarray(correct), batch['scored'], batch['targets'])
        parts.append(tuple(a[: last - first] for a in arrays))
    return tuple(np.concatenate(column) for column in zip(*parts))
