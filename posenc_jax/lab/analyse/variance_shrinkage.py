"""Variance shrinkage: a causal mean over more tokens has less variance, which tells positions."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.protocol import Comparison
from posenc_jax.lab.analyse.report import doublings, small_legend, some, tick_counts
from posenc_jax.lab.analyse.states import batches, layer_states
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.registry import register


class Shrinkage(NamedTuple):
    """Attributes:
    before: variance of what attention adds, over sequences and features, at every place.
    after: the same behind the residual sum.
    """

    before: Float[np.ndarray, 'layers T']
    after: Float[np.ndarray, 'layers T']

    @property
    def slopes(self) -> tuple[Float[np.ndarray, ' layers'], Float[np.ndarray, ' layers']]:
        """Of log variance on log m, m = 1, 2, ..., before and after the sum; see `log_slope`."""
        return log_slope(self.before), log_slope(self.after)


def log_slope(variance: Float[np.ndarray, '*rest T']) -> Float[np.ndarray, '*rest']:
    """The least-squares slope of log variance on log m, where m = 1 .. T is how many tokens a
    causal query sees: -1 for means of independent vectors, 0 where places do not differ.
    """
    m = np.log(np.arange(1, variance.shape[-1] + 1))
    m -= m.mean()
    return np.log(variance) @ m / (m @ m)


class _Sums:
    """Count, sum and sum of squares over sequences and features, in float64."""

    def __init__(self):
        self.count, self.sums = 0, 0.0

    def add(self, x):
        x = np.asarray(x, np.float64)
        self.count += x.shape[1] * x.shape[3]
        self.sums = self.sums + np.stack([x.sum((1, 3)), (x * x).sum((1, 3))])

    def variance(self):
        mean, square = self.sums / self.count
        return square - mean**2


@register(
    'variance_shrinkage',
    kind='analysis',
    card=analysis_card(
        'variance shrinkage',
        'variance_shrinkage(model, tokens)',
        ('You want to know how a causal model without positions marks the places of its tokens.'),
    ),
)
def variance_shrinkage(
    model: Transformer, tokens: Int[np.ndarray, 'S T'], *, batch: int = 8
) -> Shrinkage:
    """The variance, at every place, of what attention adds in each layer.

    `Var(o_m) = Var(v) / m; slope of log Var(o_m) on log m`. A causal query without positions and
    with small logits averages the values of the m tokens that it sees. If the values are
    independent, the variance falls so, and later layers can read m from it; the slope is -1.
    Measured over sequences and features together, before and after the residual sum. Tokens that
    repeat put a floor under it. Differs from the paper: nothing.

    Args:
      model: a decoder or encoder with any encodings; without a causal mask the slope is 0.
      tokens: ids of the sequences. The paper draws them independently.
      batch: sequences that are read at a time.

    Raises:
      ValueError: fewer than two places; a place of no variance; see `layer_states`.

    Reference: Chi, Fan, Chen, Rudnicky, Ramadge, arXiv 2305.13571.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> tokens = np.random.default_rng(0).integers(7, size=(8, 8))
      >>> variance_shrinkage(tiny_model('nope()'), tokens).before.shape
      (1, 8)
    """
    if tokens.shape[1] < 2:
        raise ValueError(f'variance_shrinkage compares places, got {tokens.shape[1]} token')
    before, after = _Sums(), _Sums()
    for rows in batches(tokens, batch):
        attention, residual = layer_states(model, rows, ('attention', 'residual'), batch=batch)
        before.add(attention)
        after.add(residual)
    found = Shrinkage(before.variance(), after.variance())
    if (np.minimum(*found) <= 0).any():
        raise ValueError('variance_shrinkage: the outputs of a layer do not vary at some place')
    return found


def _draw(figure, found):
    from matplotlib import colormaps

    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (name, one) in zip(axes, found.items()):
        shown = some(len(one.before), 6)
        m = np.arange(1, one.before.shape[1] + 1)
        for colour, layer in zip(np.linspace(0, 0.9, len(shown)), shown):
            style = dict(color=colormaps['viridis'](colour), linewidth=1.2)
            label = f'layer {layer + 1}: slope {one.slopes[0][layer]:.2f}'
            axis.loglog(m, one.before[layer], **style, label=label)
        style = dict(color='0.5', linewidth=1)
        axis.loglog(m, one.before[shown[0], 0] / m, '--', **style, label='1 / m')
        axis.set(xlabel='m, tokens seen', ylabel='variance of what attention adds')
        axis.set_title(name, fontsize=8)
        tick_counts(axis, doublings(len(m)))
        small_legend(axis, loc='center left', bbox_to_anchor=(1, 0.5))


ANALYSIS = Comparison(
    measure=variance_shrinkage,
    batches=16,
    longest=256,
    columns=('layer', 'slope', 'slope after the sum'),
    rows=lambda one: [(layer + 1, *both) for layer, both in enumerate(zip(*one.slopes))],
    draw=_draw,
    title='Variance of what attention adds, by the tokens seen',
    size=lambda found: (5.6 * len(found), 3.6),
    numbers=lambda one: {**one._asdict(), 'slopes': one.slopes},
)
