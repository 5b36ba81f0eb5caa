"""Positional neurons: units of the feed-forward networks that are active at some places of a text,
whatever stands there.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.protocol import Comparison
from posenc_jax.lab.analyse.report import small_legend, whole_numbers
from posenc_jax.lab.analyse.states import batches, layer_states
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.registry import register

THRESHOLD = 0.05  # nats


class Neurons(NamedTuple):
    """Attributes:
    frequency: share of the sequences in which a neuron is active, at every place.
    count: sequences.
    """

    frequency: Float[np.ndarray, 'layers F T']
    count: int

    @property
    def information(self) -> Float[np.ndarray, 'layers F']:
        """See `position_information`."""
        return position_information(self.frequency)

    @property
    def dead(self) -> Bool[np.ndarray, 'layers F']:
        """Which neurons are never active."""
        return ~self.frequency.any(-1)

    @property
    def positional(self) -> Bool[np.ndarray, 'layers F']:
        """Which neurons have more than 0.05 nats, beyond the bias of so many sequences."""
        return self.information > THRESHOLD + 1 / (2 * self.count)


def position_information(frequency: Float[np.ndarray, '*rest T']) -> Float[np.ndarray, '*rest']:
    """The mutual information of the place and of being active, in nats.

    `I = mean over places of fr_pos ln(fr_pos / fr) + (1 - fr_pos) ln((1 - fr_pos) / (1 - fr))` with
    fr the mean of fr_pos and 0 ln 0 = 0. With N sequences it is too large by about 1 / (2 N).

    Raises:
      ValueError: frequencies outside 0 .. 1.
    """
    if not ((frequency >= 0) & (frequency <= 1)).all():
        raise ValueError('frequencies lie in 0 .. 1')

    def part(own, mean):
        ratio = np.divide(own, mean, out=np.ones_like(own), where=(own > 0) & (mean > 0))
        return own * np.log(ratio)

    own = np.asarray(frequency, np.float64)
    mean = np.broadcast_to(own.mean(-1, keepdims=True), own.shape)
    return (part(own, mean) + part(1 - own, 1 - mean)).mean(-1)


def shape_of(frequency: Float[np.ndarray, ' T']) -> str:
    """The shape of a frequency over the places: 'step' if it crosses the middle of its range once,
    'oscillating' if more often; 'strong ...' if it reaches 0 and 0.95. A crossing counts when it
    leads from a quarter of the range to three quarters, or back.
    """
    low, high = float(frequency.min()), float(frequency.max())
    scaled = (frequency - low) / max(high - low, 1e-30)
    sides = np.where(scaled < 0.25, -1, np.where(scaled > 0.75, 1, 0))
    sides = sides[sides != 0]
    shape = 'oscillating' if (np.diff(sides) != 0).sum() > 1 else 'step'
    return f'strong {shape}' if low == 0 and high >= 0.95 else shape


@register(
    'positional_neurons',
    kind='analysis',
    card=analysis_card(
        'positional neurons',
        'positional_neurons(model, tokens)',
        (
            'You want to know whether neurons of a model respond to places; the measured '
            'claim is open.'
        ),
    ),
)
def positional_neurons(
    model: Transformer, tokens: Int[np.ndarray, 'S T'], *, batch: int = 4
) -> Neurons:
    """How often every neuron of the feed-forward networks is active at every place.

    `I(n) = mean_pos KL(Bernoulli(fr_pos) || Bernoulli(fr)); positional: I > 0.05`, in nats (see
    `position_information`). A neuron is active where the input of its non-linearity is positive (in
    a swiglu, that of the gate); one that is never active is dead. Differs from the paper: the bias
    of 1 / (2 N) that N sequences bring is added to the threshold; shapes are told by crossings
    (`shape_of`).

    Args:
      model: a decoder or encoder with any encodings.
      tokens: ids of the sequences, 100 or more where the threshold matters.
      batch: sequences that are read at a time.

    Raises:
      ValueError: see `layer_states`.

    Reference: Voita, Ferrando, Nalmpantis, arXiv 2309.04827.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> found = positional_neurons(tiny_model('nope()'), np.arange(16).reshape(2, 8) % 7)
      >>> found.frequency.shape
      (1, 32, 8)
    """

    def active(rows):
        (mlp,) = layer_states(model, rows, ('mlp',), batch=batch)
        return (mlp > 0).sum(1)

    total = functools.reduce(np.add, map(active, batches(tokens, batch)))
    return Neurons(np.swapaxes(total, 1, 2) / len(tokens), len(tokens))


def _rows(one):
    for layer, positional in enumerate(one.positional):
        shapes = [shape_of(f) for f in one.frequency[layer, positional]]
        strong, waves = (sum(kind in s for s in shapes) for kind in ('strong', 'oscillating'))
        counts = len(shapes), strong, waves, int(one.dead[layer].sum())
        yield layer + 1, *counts, one.information[layer].max()


def _draw(axes, name, one):
    left, right = axes
    layers = np.arange(1, len(one.frequency) + 1)
    left.bar(layers - 0.2, one.positional.sum(-1), 0.4, label='positional')
    left.bar(layers + 0.2, one.dead.sum(-1), 0.4, label='dead')
    left.set(xlabel='layer', ylabel='neurons')
    # Whole numbers, also without neurons, and room for the legend.
    left.set_ylim(0, max(1.0, 1.15 * left.get_ylim()[1]))
    left.set_title(f'{name}: of {one.frequency.shape[1]} in a layer', fontsize=8)
    whole_numbers(left.xaxis, left.yaxis)
    small_legend(left, loc='upper right', ncols=2)
    best = np.argsort(-one.information, axis=None)[:5]
    for layer, neuron in zip(*np.unravel_index(best, one.information.shape)):
        label = f'{layer + 1}.{neuron}: {one.information[layer, neuron]:.2f}'
        right.plot(one.frequency[layer, neuron], linewidth=1, label=label)
    right.set(xlabel='position', ylabel='share of sequences active', ylim=(-0.03, 1.03))
    title = dict(title='layer.neuron: nats', title_fontsize=7)
    small_legend(right, **title, loc='center left', bbox_to_anchor=(1, 0.5))


ANALYSIS = Comparison(
    measure=positional_neurons,
    batches=128,
    longest=128,
    columns=('layer', 'positional', 'strong', 'oscillating', 'dead', 'largest I'),
    rows=_rows,
    draw=_draw,
    panels=2,
    title='Neurons that are active at some positions, and at none',
    size=(10.0, 3.4),
    numbers=lambda one: {
        'sequences': one.count,
        'positional': one.positional.sum(-1),
        'dead': one.dead.sum(-1),
        'neurons': one.information.shape[1],
        'largest_information': one.information.max(-1),
    },
    remarks=lambda found: [
        f'{name}: {one.count} sequences, {int(one.positional.sum())} of '
        f'{one.positional.size} neurons are positional'
        for name, one in found.items()
    ],
)
