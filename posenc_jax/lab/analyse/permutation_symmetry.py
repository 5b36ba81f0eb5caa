"""Permutation symmetry: whether the last prediction depends on the order of the tokens before it,
and whether a token's vector stays with its place from layer to layer.
"""

from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.nope_deep_lm import orders_of
from posenc_jax.lab.analyse.protocol import Comparison
from posenc_jax.lab.analyse.report import small_legend, whole_numbers
from posenc_jax.lab.analyse.states import batches, layer_states
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.registry import register


class Symmetry(NamedTuple):
    """Attributes:
    delta: how much the last logits change, for every permutation.
    same: mean cosine of a token's vectors in front of and behind each layer.
    other: the same with the vectors of other tokens behind the layer.
    """

    delta: Float[np.ndarray, ' orders']
    same: Float[np.ndarray, ' layers']
    other: Float[np.ndarray, ' layers']


def slice_cosines(
    below: Float[np.ndarray, 'S T D'], above: Float[np.ndarray, 'S T D']
) -> tuple[float, float]:
    """Mean cosine of `below[t]` with `above[t]`, and with `above[t']` of other places t'."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
    cosines = np.asarray(unit(below) @ np.swapaxes(unit(above), 1, 2), np.float64).mean(0)
    same, length = np.trace(cosines), len(cosines)
    return float(same / length), float((cosines.sum() - same) / (length * (length - 1)))


@register(
    'permutation_symmetry',
    kind='analysis',
    card=analysis_card(
        'permutation symmetry',
        'permutation_symmetry(model, tokens)',
        'You want to know whether a model can tell the order of its tokens at all.',
    ),
)
def permutation_symmetry(
    model: Transformer,
    tokens: Int[np.ndarray, 'S T'],
    *,
    orders: Size = 8,
    seed: int = 0,
    batch: int = 8,
) -> Symmetry:
    """How much the last logits change if the tokens before the last are permuted, and whether the
    vectors of one place belong together.

    `delta = max |f(x) - f(pi x)| / max |f(x)|, f the last logits, pi a permutation of the tokens
    before`, over sequences and logits. Without positions it is 0 up to rounding for a model that
    sees all tokens, and for one causal layer, which is a function of the set of the tokens; two
    causal layers break the symmetry. The second measure is about residual sums, which keep a vector
    with its place: the cosine of h_t in front of a layer with h_t behind it, and with h_t' of other
    places. Differs from the paper, which trains models: both measures are ours.

    Args:
      model: a decoder or encoder with any encodings.
      tokens: ids of the sequences, at least three tokens.
      orders: number of permutations.
      seed: draws them.
      batch: sequences that are read at a time.

    Raises:
      ValueError: fewer than three tokens, no permutation; see `layer_states`.

    Reference: Zuo, Guerzhoy, arXiv 2402.05969.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> found = permutation_symmetry(
      ...     tiny_model('nope()', train_len=6), np.arange(6)[None], orders=2
      ... )
      >>> bool(found.delta.max() < 1e-5)
      True
    """
    length = tokens.shape[1]
    if length < 3:
        raise ValueError(
            f'permutation_symmetry permutes the tokens before the last, got {length} tokens'
        )
    graphdef, state = nnx.split(model)
    call = jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids, last=1)[:, -1])
    last = lambda ids: np.concatenate(
        [np.asarray(call(state, rows), np.float64) for rows in batches(ids, batch)]
    )
    plain, cosines = last(tokens), 0.0
    delta = [
        np.abs(last(tokens[:, order]) - plain).max() for order in orders_of(length, orders, seed)
    ]
    for rows in batches(tokens, batch):
        (hidden,) = layer_states(model, rows, batch=batch)
        own = [slice_cosines(below, above) for below, above in zip(hidden, hidden[1:])]
        cosines = cosines + np.array(own).T * len(rows) / len(tokens)
    return Symmetry(np.array(delta) / np.abs(plain).max(), *cosines)


def _draw(figure, found):
    left, right = figure.subplots(1, 2)
    for number, (name, one) in enumerate(found.items()):
        left.semilogy(np.full(len(one.delta), number), np.maximum(one.delta, 1e-9), 'o')
        layers = np.arange(1, len(one.same) + 1)
        (line,) = right.plot(layers, one.same, marker='o', markersize=3, label=name)
        right.plot(layers, one.other, '--', color=line.get_color(), linewidth=1)
    left.axhline(1e-5, color='0.5', linestyle=':', linewidth=1, label='rounding of float32')
    small_legend(left)
    label, limits = 'change of the last logits / the largest', (-0.6, len(found) - 0.4)
    left.set(ylabel=label, xlim=limits, ylim=(1e-9, 10))
    left.set_xticks(range(len(found)), list(found), fontsize=7, rotation=15)
    right.set(xlabel='layer', ylabel='mean cosine across the layer', ylim=(None, 1.02))
    whole_numbers(right.xaxis)
    right.plot([], [], '-', color='0.3', label='same place')
    right.plot([], [], '--', color='0.3', label='other places')
    small_legend(right)


ANALYSIS = Comparison(
    measure=permutation_symmetry,
    batches=4,
    longest=128,
    columns=('delta', 'cosine, same place', 'cosine, other places'),
    rows=lambda one: [(one.delta.mean(), one.same.mean(), one.other.mean())],
    draw=_draw,
    title='Change with the order of the tokens before the last one',
    size=(8.4, 3.6),
)
