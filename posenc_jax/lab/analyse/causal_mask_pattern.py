"""The pattern that a causal mask writes into attention: mean logits by query and key."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.analyse.capture import check_causal
from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.protocol import Comparison
from posenc_jax.lab.analyse.report import by_layer, small_legend, some
from posenc_jax.lab.analyse.states import batches, head_maps, over_layers
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import register
from posenc_jax.protocol.tokens import Tokens

KINDS = {  # fields of `MaskPattern`, and what their logits are of
    'score': 'model',
    'content': 'without positions',
    'mean_content': 'positions alone',
}


@dataclasses.dataclass(frozen=True)
class MaskPattern:
    """Mean logits over the sequences, [layers, heads, T, T]; entries of later keys are 0.

    Attributes:
      score: of the model, before the softmax.
      content: q.k / sqrt(H) without positions: what the mask alone has written into the vectors.
      mean_content: of the model, for the mean query and the mean key of a head at all places: what
        the encoding alone writes. NaN in a layer whose encoding reads the vectors of tokens.
    """

    score: Float[np.ndarray, 'layers N T T']
    content: Float[np.ndarray, 'layers N T T']
    mean_content: Float[np.ndarray, 'layers N T T']

    @functools.cached_property
    def shares(self) -> dict[str, Float[np.ndarray, 'layers N']]:
        """The non-relative share of each kind."""
        return {
            kind: np.array([[relative_part(s)[1] for s in layer] for layer in getattr(self, kind)])
            for kind in KINDS
        }


def relative_part(scores: Float[np.ndarray, 'T T']) -> tuple[Float[np.ndarray, ' T'], float]:
    """The mean of the scores at each distance i - j, and the non-relative share:
    `Var(S - mean of its diagonal) / Var(S)` over the pairs j <= i; 0 if the scores are constant.
    """
    i, j = np.tril_indices(len(scores))
    seen, distance = np.asarray(scores, np.float64)[i, j], i - j
    mean = np.bincount(distance, seen) / np.bincount(distance)
    if not np.isfinite(seen).all():
        return mean, float('nan')
    # Rounding of equal numbers is no variance.
    total = seen.var()
    constant = total <= 1e-12 * max(float((seen**2).mean()), 1e-30)
    return mean, 0.0 if constant else float((seen - mean[distance]).var() / total)


def mask_cosine(
    i: int | Int[np.ndarray, '...'], j: int | Int[np.ndarray, '...'], *, residual: bool
):
    """The cosine of the vectors of places j < i (from 1) behind one layer of uniform causal
    attention over independent vectors of wide unit variance, in closed form.

    `sqrt(j / i)` for the output of attention, and `(2 / i) / sqrt((1 + 3/i) (1 + 3/j))` with the
    residual sum. Both grow with j: near keys fit better, though nothing is trained.
    """
    i, j = np.asarray(i, float), np.asarray(j, float)
    return 2 / i / np.sqrt((1 + 3 / i) * (1 + 3 / j)) if residual else np.sqrt(j / i)


@register(
    'causal_mask_pattern',
    kind='analysis',
    card=analysis_card(
        'pattern of the causal mask',
        'causal_mask_pattern(model, tokens)',
        'You want to know what order a causal mask alone gives to a model.',
        causal_only=True,
    ),
)
def causal_mask_pattern(
    model: Transformer, tokens: Int[np.ndarray, 'S T'], *, batch: int = 4
) -> MaskPattern:
    """Mean logits of every head by query i and key j, with and without the encoding.

    `S_ij = mean logit; share = Var(S - mean of its diagonal) / Var(S), j <= i`. The mean over many
    inputs keeps what depends on the places alone. It has a relative part, the mean of each diagonal
    i - j, and a rest, whose share is 0 for an encoding of distances in the first layer. Later
    layers read vectors into which the mask has written the place, so the share grows and near keys
    get larger scores. Differs from the paper: the share is ours; the effect of the encoding without
    the mask is measured with the mean query and key of a head in all places.

    Args:
      model: a decoder whose layers have attention.
      tokens: ids of the sequences, at most 2048 tokens; random ids, or text.
      batch: sequences that are read at a time.

    Raises:
      ValueError: queries see later tokens; fewer than two tokens or more than 2048; a layer without
        attention.

    Reference: Kim, Liu, Lin, Ji, Gong, Choi, arXiv 2509.21042.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> found = causal_mask_pattern(tiny_model('alibi()'), np.arange(16).reshape(2, 8) % 7)
      >>> found.score.shape, bool(found.shares['mean_content'].max() < 1e-6)
      ((1, 2, 8, 8), True)
    """
    check_causal('causal_mask_pattern', model)
    if tokens.shape[1] < 2:
        raise ValueError(f'causal_mask_pattern compares places, got {tokens.shape[1]} token')
    total, queries, keys = [0.0, 0.0], 0.0, 0.0
    for rows in batches(tokens, batch):
        *sums, q, k = map(np.asarray, over_layers(model, rows, _sums))
        total = [one + np.asarray(more, np.float64) for one, more in zip(total, sums)]
        queries, keys = queries + q, keys + k
    count = tokens.size
    alone = _of_means(model, tokens.shape[1], queries / count, keys / count)
    return MaskPattern(total[0] / len(tokens), total[1] / len(tokens), alone)


def _sums(encoding, before, after):
    s, p = head_maps(encoding, *after)
    q, k = (jnp.swapaxes(a.astype(jnp.float32), 1, 2) for a in before)
    seen = jnp.tril(jnp.ones(s.shape[-2:], bool))
    content = jnp.where(seen, scaled_dot_product(q, k), 0.0)
    return s.sum(0), content.sum(0), q.sum((0, 2)), k.sum((0, 2))


def _of_means(model, length, queries, keys) -> Float[np.ndarray, 'layers N T T']:
    """The scores of every layer for one query and one key per head in all places."""
    tok, found = model.place(Tokens.of(length=length)), []
    for number, (layer_type, block) in enumerate(model.layers()):
        q, k = (
            jnp.broadcast_to(a[number][None, None], (1, length, *a[number].shape))
            for a in (queries, keys)
        )
        encoding, own = model.encoding(layer_type, block), tok[layer_type]
        found.append(_of_mean(encoding, q, k, own))
    return np.stack(found)


def _of_mean(encoding: Encoding, q: Array, k: Array, tok: Tokens) -> np.ndarray:
    heads, length = q.shape[2], q.shape[1]
    reads = [
        part
        for part in parts_of(encoding)
        if part.opens('qkv')
        or part.opens('project')
        and not (isinstance(part, Rotary) and type(part).project is Rotary.project)
    ]
    if reads:
        return np.full((heads, length, length), np.nan)
    q, k, _, tq, tk = encoding.project(q, k, k, tok, tok, jnp.zeros((1, length, 1)))
    return np.asarray(head_maps(encoding, q, k, tq, tk)[0][0], np.float64)


def _rows(one):
    for layer, content in enumerate(one.content):
        yield layer + 1, *(one.shares[kind][layer].mean() for kind in KINDS), recency(content)


def _numbers(one):
    mean = lambda layers: [relative_part(s.mean(0))[0] for s in layers]
    by_distance = {kind: mean(getattr(one, kind)) for kind in KINDS}
    return {'shares': one.shares, 'by_distance': by_distance}


def _draw(axes, name, one):
    *maps, right = axes
    for axis, layer in zip(maps, shown := some(len(one.score), 4)):
        s = one.score[layer].mean(0)
        image = axis.imshow(np.where(np.tri(len(s), dtype=bool), s, np.nan), cmap='viridis')
        axis.set_title(f'layer {layer + 1}: mean logit', fontsize=8)
        axis.tick_params(labelsize=6)
        axis.set_xlabel('key', fontsize=7)
        axis.figure.colorbar(image, ax=axis, shrink=0.7).ax.tick_params(labelsize=6)
    for axis in maps[len(shown) :]:
        axis.axis('off')
    maps[0].set_ylabel(f'{name}\nquery', fontsize=7)
    lines = {what: one.shares[kind].mean(-1) for kind, what in KINDS.items()}
    by_layer(right, lines, first=1, label='share of the variance')
    right.set_ylim(-0.03, 1.6)  # room for the legend
    right.set_yticks(np.linspace(0, 1, 6))
    small_legend(right, loc='upper center')


def recency(content: Float[np.ndarray, 'N T T']) -> float:
    """The mean over heads of the score of the nearer half of the keys of the last query, without
    the query's own place, less that of the farther half.
    """
    row = content.mean(0)[-1, :-1]
    half = len(row) // 2
    return float(row[len(row) - half :].mean() - row[:half].mean()) if half else 0.0


ANALYSIS = Comparison(
    measure=causal_mask_pattern,
    batches=16,
    longest=128,
    columns=('layer', *(f'share, {what}' for what in KINDS.values()), 'near - far'),
    rows=_rows,
    draw=_draw,
    panels=lambda found: 1 + max(len(some(len(one.score), 4)) for one in found.values()),
    title='Mean logits, and the share of their variance that is no distance',
    size=(13.0, 2.9),
    numbers=_numbers,
    remarks=lambda found: [
        'share: of the variance of the mean logits that is no function of the distance, mean '
        'over the heads',
        'near - far: logit without positions of the nearer half of the keys less that of the '
        'farther, for the last query',
    ],
)
