"""The difference of the losses of two series of runs on the same tokens, with an interval.

Two models find the same documents easy or hard. So the interval of their difference is far
narrower than those of their perplexities, and it alone says whether one of them is better on texts
of this kind.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from posenc_jax.lab.evaluate.measurement import Measurement, spread_of_mean
from posenc_jax.lab.evaluate.series import Series

# Fields of a run that, beside its task, data set and split, say which tokens it reads.
_OF_THE_TEXT = ('data.data_dir', 'data.tokenizer', 'data.packing')


@dataclasses.dataclass(frozen=True)
class Difference:
    """What the loss of a series is above that of another.

    Attributes:
      label, against: the two series.
      protocol, length: see `Measurement`.
      value: mean loss per token of `label` minus that of `against`, in nats. Each is the mean over
        the runs of the series.
      low, high: the 95 % interval of a bootstrap over the documents, which are drawn for both sides
        at once, or their range; see `spread_of_mean`. Windows take their place where all tokens lie
        in one document.
      drawn: 'documents' or 'windows'.
      groups: how many of them there are.
    """

    label: str
    against: str
    protocol: str
    length: int
    value: float
    low: float
    high: float
    drawn: str
    groups: int


def differences(series: Sequence[Series], protocols: Sequence[str]) -> tuple[Difference, ...]:
    """The differences of all series from the first one, for each protocol and length.

    Lengths are left out at which the two have not scored the same numbers of tokens of the same
    documents, as models with other texts or tokenizers do, and at which documents are not known.

    Example:
      >>> differences((), ('sliding',))
      ()
    """
    found = []
    for protocol in protocols:
        first, *others = [_sums(s, protocol) for s in series] or [{}]
        for own, by_length in zip(series[1:], others):
            for length in sorted(by_length.keys() & first.keys()):
                (scored, losses), (other, other_losses) = by_length[length], first[length]
                if scored != other:
                    continue
                _, drawn, groups = scored
                more, counts = losses - other_losses, np.array([tokens for _, tokens in groups])
                interval = spread_of_mean(more, counts)
                if interval is not None:
                    value = float(more.sum() / counts.sum())
                    names = own.label, series[0].label
                    found.append(
                        Difference(*names, protocol, length, value, *interval, drawn, len(groups))
                    )
    return tuple(found)


def _sums(series: Series, protocol: str) -> dict[int, tuple[tuple, np.ndarray]]:
    """Length -> the text, what is drawn of it and (number, tokens) of each, and the sums of their
    losses as means over the runs. Lengths at which the runs scored different tokens are left out.
    """
    by_length: dict[int, list[Measurement]] = {}
    texts = {
        (run.task, run.dataset, run.split, *map(run.settings.get, _OF_THE_TEXT))
        for run in series.runs
    }
    for run in series.runs:
        for m in run.measurements:
            if m.protocol == protocol and m.groups and m.position_low is None:
                by_length.setdefault(m.length, []).append(m)
    out = {}
    for length, measured in by_length.items():
        scored = {
            (text, m.drawn, tuple(group[:2] for group in m.groups))
            for text in texts
            for m in measured
        }
        if len(scored) == 1 and len(measured) == len(series.runs):
            losses = np.array([[loss for _, _, loss in m.groups] for m in measured])
            out[length] = scored.pop(), losses.mean(axis=0)
    return out
