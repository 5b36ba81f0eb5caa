"""A measurement with its interval: perplexity of scored tokens, exact match of answers, or what is
measured of the points of a field.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int

# Metrics between 0 and 1: rows whose scored tokens are all correct, and scored tokens.
SHARES = ('exact_match', 'token_accuracy')
# Metrics of fields. A protocol is the metric, or METRIC_PART for some of the points.
POINTS = ('psnr', 'accuracy', 'bit_error_rate', 'lossless')
_RESAMPLES = 2000  # of a bootstrap
# With fewer documents a bootstrap is far too narrow: with three, its interval of 95 % contains the
# mean of normal numbers in 71 % of all cases.
FEWEST = 10
BY_PLANE = 'bit_errors_by_plane'  # the protocol of the bit error rate of every plane


def is_of_points(protocol: str) -> bool:
    """Whether a protocol measures points of a field.

    Example:
      >>> is_of_points('psnr_outside'), is_of_points('sliding')
      (True, False)
    """
    return protocol == BY_PLANE or protocol.startswith(POINTS)


def is_share(protocol: str) -> bool:
    """Whether a protocol measures a share, which lies between 0 and 1."""
    return protocol in SHARES or (is_of_points(protocol) and not protocol.startswith('psnr'))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The result of one protocol at one length.

    Attributes:
      protocol: 'nonoverlapping', 'within_blocks', 'sliding', 'same_tokens', 'per_position', or one
        of `SHARES` for tasks other than language; one of `POINTS` (perhaps with the name of a part)
        or `BY_PLANE` for fields.
      length: context length in language modelling, otherwise the task length.
      metric: 'perplexity', or one of `SHARES` or `POINTS`; 'psnr' in decibels, with the peak 2 of
        values in [-1, 1].
      value: the metric.
      low, high: its 95 % interval, or a range, see `spread_of_mean`; None for perplexity of one
        window.
      nll: mean loss per scored token or point: negative log-likelihood in nats, or squared error.
      bits_per_byte: in language modelling, if the bytes of the tokens are known.
      token_accuracy: share of scored tokens that are the first choice of the model; None for
        values and bits.
      tokens: how many tokens or points were scored.
      samples: how many windows or answers they came from.
      position_low, position_high: bucket of `per_position`: low <= position < high; the plane of
        `BY_PLANE`.
      depth: where in the text the answer lay, from 0 (first) to 1 (last); None if `eval.depths`
        does not set it.
      drawn: 'documents' or 'windows': what is drawn again for the interval of a perplexity.
      groups: (number, tokens, sum of the loss) of each of them.
    """

    protocol: str
    length: int
    metric: str
    value: float
    low: float | None
    high: float | None
    nll: float
    bits_per_byte: float | None
    token_accuracy: float | None
    tokens: int
    samples: int
    position_low: int | None = None
    position_high: int | None = None
    depth: float | None = None
    drawn: str | None = None
    groups: tuple[tuple[int, int, float], ...] = ()

    @property
    def spread(self) -> str | None:
        """What `low` and `high` are, such as '95 % interval'; None where there are none."""
        if self.low is None:
            return None
        return spread_name(len(self.groups), self.drawn) if self.groups else '95 % interval'


def spread_name(groups: int, drawn: str | None) -> str:
    """What `spread_of_mean` returns for so many groups.

    Example:
      >>> spread_name(3, 'documents'), spread_name(30, 'documents')
      ('range of 3 documents', '95 % interval')
    """
    return '95 % interval' if groups >= FEWEST else f'range of {groups} {drawn}'


def perplexity(
    protocol: str,
    length: int,
    nll: Float[np.ndarray, 'W L'],
    correct: Bool[np.ndarray, 'W L'],
    scored: Bool[np.ndarray, 'W L'],
    bytes_scored: int,
    position: tuple[int | None, int | None] = (None, None),
    documents: Int[np.ndarray, 'W L'] | None = None,
) -> Measurement:
    """Perplexity `exp(sum nll / tokens)`, with bits per byte `sum nll / (ln 2 * bytes)`.

    The interval is the 95 % percentile interval of a bootstrap over documents, because the tokens
    of a document are not independent. It is one over windows where the scored targets lie in fewer
    than two documents or where documents are not known, and there is none for a single window. For
    fewer than `FEWEST` documents or windows it is the range of their own perplexities.

    Args:
      protocol, length: see `Measurement`.
      nll: negative log-likelihood of each target, in nats.
      correct: whether the target is the first choice.
      scored: whether the target counts.
      bytes_scored: how many bytes the scored targets stand for; 0 if that is not known.
      position: bucket of positions, for `per_position`.
      documents: number of the document of each target.

    Raises:
      ValueError: a scored target has no finite likelihood.
    """
    _check_finite(protocol, length, nll, scored)
    windows = int(scored.any(axis=1).sum())
    row, column = np.nonzero(scored)
    losses = nll[row, column].astype(np.float64)
    tokens, total = len(losses), float(losses.sum())
    mean = total / tokens
    group = row if documents is None else documents[row, column]
    by_document = documents is not None and len(np.unique(group)) > 1
    group = group if by_document else row
    numbers, group = np.unique(group, return_inverse=True)
    counts, sums = np.bincount(group), np.bincount(group, weights=losses)
    interval = spread_of_mean(sums, counts)
    low, high = map(_exp, interval) if interval else (None, None)
    return Measurement(
        protocol=protocol,
        length=length,
        metric='perplexity',
        value=_exp(mean),
        low=low,
        high=high,
        nll=mean,
        bits_per_byte=total / (math.log(2) * bytes_scored) if bytes_scored else None,
        token_accuracy=float(correct[scored].mean()),
        tokens=tokens,
        samples=windows,
        position_low=position[0],
        position_high=position[1],
        drawn='documents' if by_document else 'windows',
        groups=tuple(zip(numbers.tolist(), counts.tolist(), sums.tolist())),
    )


def spread_of_mean(
    sums: Float[np.ndarray, ' G'], counts: Int[np.ndarray, ' G']
) -> tuple[float, float] | None:
    """The 95 % percentile interval of `sum of sums / sum of counts` if groups are drawn again with
    replacement. For fewer than `FEWEST` groups it is the range of their own means, and None for
    one group.

    Example:
      >>> spread_of_mean(np.array([3.0, 6.0]), np.array([3, 3]))
      (1.0, 2.0)
    """
    from scipy import stats

    if len(counts) < 2:
        return None
    if len(counts) < FEWEST:
        return float((sums / counts).min()), float((sums / counts).max())
    found = stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        n_resamples=_RESAMPLES,
        batch=max(1, 2**20 // len(counts)),
        paired=True,
        vectorized=True,
        method='percentile',
        random_state=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The interval of 95 % of a share, by Wilson.

    Example:
      >>> [round(end, 3) for end in wilson(8, 10)]
      [0.49, 0.943]
    """
    from scipy import stats

    found = stats.binomtest(right, count).proportion_ci(0.95, method='wilson')
    return float(found.low), float(found.high)


def exact_match(
    length: int,
    nll: Float[np.ndarray, 'B M'],
    correct: Bool[np.ndarray, 'B M'],
    scored: Bool[np.ndarray, 'B M'],
    depth: float | None = None,
) -> Measurement:
    """Share of rows whose scored tokens are all correct, with its Wilson interval.

    Args: as `perplexity`; M is the largest number of scored tokens of a row.

    Raises:
      ValueError: a scored target has no finite likelihood.
    """
    _check_finite('exact_match', length, nll, scored)
    right = np.where(scored, correct, True).all(axis=1)
    low, high = wilson(int(right.sum()), len(right))
    return Measurement(
        protocol='exact_match',
        length=length,
        metric='exact_match',
        value=float(right.mean()),
        low=low,
        high=high,
        nll=float(nll[scored].mean(dtype=np.float64)),
        bits_per_byte=None,
        token_accuracy=float(correct[scored].mean()),
        tokens=int(scored.sum()),
        samples=len(right),
        depth=depth,
    )


def token_accuracy(
    length: int,
    nll: Float[np.ndarray, 'B M'],
    correct: Bool[np.ndarray, 'B M'],
    scored: Bool[np.ndarray, 'B M'],
    depth: float | None = None,
) -> Measurement:
    """Share of scored tokens that are correct. The interval is that of a ratio (linearised) and
    takes rows as independent samples; it is cut at 0 and 1.

    Args: as `exact_match`.
    """
    whole = exact_match(length, nll, correct, scored, depth)
    counts, right = scored.sum(axis=1), (scored & correct).sum(axis=1)
    rows, mean = len(counts), whole.token_accuracy
    low = high = None
    if rows > 1:
        squares = float(((right - mean * counts) ** 2).sum())
        error = 1.96 * math.sqrt(rows / (rows - 1) * squares) / whole.tokens
        low, high = max(0.0, mean - error), min(1.0, mean + error)
    name = 'token_accuracy'
    return dataclasses.replace(whole, protocol=name, metric=name, value=mean, low=low, high=high)


def _check_finite(protocol, length, nll, scored):
    wrong = np.argwhere(scored & ~np.isfinite(nll))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(
            f'{protocol} at length {length}: {len(wrong)} of {int(scored.sum())} scored targets '
            'have no finite likelihood, '
            f'the first is {nll[row, column]} at token {column} of sequence {row}. Positions '
            'beyond a learned table give '
            'NaN, and so do parameters that are not finite'
        )


def _exp(x):
    return math.exp(x) if x < 700 else math.inf
