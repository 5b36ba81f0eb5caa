"""Language modelling at several context lengths, by the protocols of `run/protocols.py`."""

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
    """Measures perplexity for each protocol and length.

    `nonoverlapping` scores the first `tokens` targets of the stream; `within_blocks`, only on
    request, leaves out the first token of each window. `per_position` scores the same
    targets in windows of the longest length. `sliding` and `same_tokens` score fewer targets if
    their overlapping windows would read more than 4 x `tokens` tokens at the longest length. Except
    for `within_blocks`, a protocol scores the same targets at every length. All tokens enter the
    likelihood. Bits per byte divides it by the number of bytes that the tokens stand for.

    Args:
      score: see `scoring.scorer`.
      stream: tokens of the text.
      lengths: context lengths, in tokens.
      names: protocols, of `protocols.CHOICES`.
      tokens: the most targets that are scored, or the longest length if that is more.
      rows: length -> how many windows of it are read at once.
      stride: step of `sliding`, and how many targets `same_tokens` scores in a window.
      buckets: how many buckets of positions `per_position` reports.
      bytes_of: how many bytes each token id stands for; None leaves bits per byte out.
      key: draws random positions; None uses the evaluation rule of the encoding.
      places: positions of the windows, see `Language.places`; None for plain positions.

    Raises:
      SpecError: an unknown protocol.
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
    """Scores windows in batches of one shape. Returns the negative log-likelihood of each target,
    whether it is the first choice, whether it is scored, and the targets, each [W, length].
    """
    whole = int((windows.size == windows.length).sum())  # only the last window may be shorter
    parts = []
    for first in [*range(0, whole, rows), *range(whole, len(windows))]:
        last = min(first + rows, whole) if first < whole else len(windows)
        batch = protocols.window_batch(
            stream, windows, np.minimum(np.arange(first, first + rows), last - 1)
        )
        # All rows have the same padding. So they share positions, and biases are computed once.
        tok = Tokens.of(
            length=windows.length, positions=None if places is None else places(batch['index'])
        )
        tok = dataclasses.replace(tok, valid=jnp.asarray(batch['valid'][:1]))  # padded on the right
        own = None if key is None else jax.random.fold_in(key, first)
        nll, correct = score(batch['tokens'], batch['targets'], tok, own)
        arrays = (np.asarray(nll), np.asarray(correct), batch['scored'], batch['targets'])
        parts.append(tuple(a[: last - first] for a in arrays))
    return tuple(np.concatenate(column) for column in zip(*parts))
