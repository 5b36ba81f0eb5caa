"""Nearby similarity: whether vectors of tokens are the more alike the nearer the tokens are."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.protocol import Comparison
from posenc_jax.lab.analyse.report import by_layer, small_legend, some
from posenc_jax.lab.analyse.states import batches, layer_states
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.registry import register

LONGEST = 512  # places: the score compares about T^3 / 6 pairs


class Similarity(NamedTuple):
    """Attributes:
    maps: S, mean cosine of the vectors at two places; entry 0 is the input of the first layer.
    scores: adjacency score of every map.
    """

    maps: Float[np.ndarray, 'L T T']
    scores: Float[np.ndarray, ' L']


def mean_cosines(h: Float[np.ndarray, '... S T D']) -> Float[np.ndarray, '... T T']:
    """`S_ij = mean over sequences of cos(h_i, h_j)`; a vector of zeros is like no other."""
    size = np.linalg.norm(h, axis=-1, keepdims=True)
    unit = h / np.where(size > 0, size, 1)
    return (unit @ np.swapaxes(unit, -1, -2)).mean(-3)


def adjacency_score(similarity: Float[np.ndarray, 'T T']) -> float:
    """How well similarity orders the places around each place.

    The share of triples (i; j, k), with j and k on one side of i and |i - j| < |i - k|, for which
    S_ij > S_ik; equal values count one half. 0.5 says nothing about positions, 1 is a perfect
    order.

    Raises:
      ValueError: fewer than three places, which have no triple, or more than 512.
    """
    length = len(similarity)
    if not 3 <= length <= LONGEST:
        raise ValueError(f'the adjacency score takes 3 .. {LONGEST} places, got {length}')
    right, total = 0.0, 0
    for i in range(length):
        for side in (similarity[i, :i][::-1], similarity[i, i + 1 :]):  # from near to far
            differ = np.sign(side[:, None] - side)[np.triu_indices(len(side), 1)]
            right, total = right + ((differ + 1) / 2).sum(), total + len(differ)
    return float(right / total)


@register(
    'nearby_similarity',
    kind='analysis',
    card=analysis_card(
        'similarity of nearby embeddings',
        'nearby_similarity(model, tokens)',
        ('You want to know whether a model without positions keeps the order of its tokens.'),
    ),
)
def nearby_similarity(
    model: Transformer, tokens: Int[np.ndarray, 'S T'], *, batch: int = 8
) -> Similarity:
    """The mean cosine of the vectors at any two places behind every layer, and whether it orders
    the places.

    `S_ij = mean cos(h_i, h_j); score = share of |i-j| < |i-k| with S_ij > S_ik`. Differs from the
    paper: the score is ours, see `adjacency_score`.

    Args:
      model: a decoder or encoder with any encodings.
      tokens: ids of the sequences, of 3 to 512 tokens; random ids or text.
      batch: sequences that are read at a time.

    Raises:
      ValueError: another length; see `layer_states`.

    Reference: Zuo, Guerzhoy, Guerzhoy, arXiv 2501.00073.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> nearby_similarity(tiny_model('nope()'), np.arange(16).reshape(2, 8) % 7).maps.shape
      (2, 8, 8)
    """
    length = tokens.shape[1]
    if not 3 <= length <= LONGEST:
        raise ValueError(f'nearby_similarity takes 3 .. {LONGEST} tokens, got {length}')
    total = 0.0
    for rows in batches(tokens, batch):
        (hidden,) = layer_states(model, rows, batch=batch)
        total = total + np.stack([mean_cosines(h) for h in hidden]) * len(rows)
    maps = total / len(tokens)
    return Similarity(maps, np.array([adjacency_score(one) for one in maps]))


def _draw(axes, name, one):
    *maps, scores = axes
    for axis, layer in zip(maps, layers := some(len(one.maps), 4)):
        shown = axis.imshow(one.maps[layer], vmin=-1, vmax=1, cmap='RdBu_r')
        axis.set_title(f'layer {layer}', fontsize=8)
        axis.tick_params(labelsize=6)
        axis.set_xlabel('position', fontsize=7)
    maps[0].set_ylabel(f'{name}\nposition', fontsize=7)
    for axis in maps[len(layers) :]:
        axis.axis('off')
    scores.figure.colorbar(shown, ax=maps, shrink=0.7, label='mean cosine')
    by_layer(scores, {'score': one.scores}, first=0, label='adjacency score')
    scores.axhline(0.5, color='0.5', linestyle='--', linewidth=1, label='no order')
    scores.set_ylim(0.4, 1.02)
    small_legend(scores)


def by_distance(maps: Float[np.ndarray, 'L T T']) -> Float[np.ndarray, 'L T']:
    """The mean of each map over the pairs at every distance."""
    diagonals = [np.diagonal(maps, -d, 1, 2).mean(-1) for d in range(maps.shape[1])]
    return np.stack(diagonals, axis=-1)


ANALYSIS = Comparison(
    measure=nearby_similarity,
    batches=16,
    longest=128,
    columns=('layer', 'adjacency score'),
    rows=lambda one: enumerate(one.scores),
    draw=_draw,
    panels=lambda found: 1 + max(len(some(len(one.maps), 4)) for one in found.values()),
    title='Similarity of the vectors of two positions',
    size=(12.0, 2.7),
    numbers=lambda one: {'scores': one.scores, 'by_distance': by_distance(one.maps)},
)
