"""Token distance: which rotary planes decide the logits of distant tokens, and which heads attend
far.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.analyse.capture import (
    capture_encodings,
    check_causal,
    check_rotary,
    compiled,
    over_queries,
    weights_of,
    with_valid,
)
from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.correlation import Moments, merge_moments, spearman
from posenc_jax.lab.analyse.protocol import Analysis
from posenc_jax.lab.analyse.report import Report, draw_planes, planes_size
from posenc_jax.lab.analyse.rope_usage import planes
from posenc_jax.lab.analyse.subjects import subject
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.rope import Layout
from posenc_jax.methods.single_rotary import single_rotary
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import register
from posenc_jax.protocol.tokens import Tokens

# Below this ratio of variance to squared mean, float32 cannot tell a quantity from a constant.
_CONSTANT = 1e-12


def plane_logits(
    q: Float[Array, 'B N T H'], k: Float[Array, 'B K S H'], count: int, layout: Layout = 'half'
) -> Float[Array, 'F B N T S']:
    """`c_t(i, j) = <q'_it, k'_jt> / sqrt(H)`: what each of the first `count` planes adds to the
    scaled logits of rotated queries and keys.
    """
    leading = lambda a: jnp.moveaxis(planes(a, count, layout), -2, 0)
    return jax.vmap(functools.partial(_plane_logit, width=q.shape[-1]))(leading(q), leading(k))


def _plane_logit(q, k, width):
    return scaled_dot_product(q, k) * (2 / width) ** 0.5


@dataclasses.dataclass(frozen=True)
class TokenDistance:
    """Sums over pairs and queries of one or more batches. The results are the properties `corr`,
    `score`, `alloc` and `dist`.

    Attributes:
      moments: moments of (c_t, s) over the pairs at least tau apart, [layers, N, F] or broadcast
        against it.
      weighed: sums over all pairs of P |c_t|, [layers, N, F].
      reached: sums over all pairs of P (i - j), [layers, N].
      queries: how many queries were summed.
    """

    moments: Moments
    weighed: Float[np.ndarray, 'layers N F']
    reached: Float[np.ndarray, 'layers N']
    queries: int

    @property
    def corr(self) -> Float[np.ndarray, 'layers N F']:
        """Pearson correlation of c_t and the logit over distant pairs; 0 where one of them is
        constant.
        """
        count, mean_c, mean_s, cc, ss, cs = (np.asarray(a, np.float64) for a in self.moments)
        varies = (cc > _CONSTANT * count * mean_c**2) & (ss > _CONSTANT * count * mean_s**2)
        return np.where(varies, cs / np.sqrt(np.where(varies, cc * ss, 1.0)), 0.0)

    @property
    def score(self) -> Float[np.ndarray, 'layers N']:
        """Mean of `corr` over the half of the planes with the lower frequencies."""
        corr = self.corr
        return corr[..., np.arange(corr.shape[-1]) >= corr.shape[-1] / 2].mean(-1)

    @property
    def alloc(self) -> Float[np.ndarray, 'layers N F']:
        """Share of each plane in `sum_j P(i,j) |c_t(i,j)|`; sums to 1 (to 0 for a head whose planes
        are all 0).
        """
        total = self.weighed.sum(-1, keepdims=True)
        return self.weighed / np.where(total > 0, total, 1.0)

    @property
    def dist(self) -> Float[np.ndarray, 'layers N']:
        """Mean attended distance in tokens."""
        return self.reached / self.queries

    def merge(self, other: 'TokenDistance') -> 'TokenDistance':
        """The sums over the pairs of both."""
        moments = merge_moments(self.moments, other.moments)
        return TokenDistance(
            Moments(*map(np.asarray, moments)),
            self.weighed + other.weighed,
            self.reached + other.reached,
            self.queries + other.queries,
        )


@register(
    'token_distance',
    kind='analysis',
    card=analysis_card(
        'token distance',
        'token_distance(model, tokens)',
        'You want to know which heads of a rotary model read far tokens.',
    ),
)
def token_distance(
    model: Transformer,
    tokens: Int[Array, 'B L'],
    tok: Tokens | None = None,
    *,
    tau: int | None = None,
    block: Size = 128,
) -> TokenDistance:
    """Measures how closely each plane of a head follows the logits of distant tokens, and how far
    the head attends.

    `corr_t = Pearson over i - j >= tau of (c_t, sum_t c_t), c_t = [R(i) q_i]_t . [R(j) k_j]_t /
    sqrt(H)`: c_t is what plane t adds to the logit, and the pairs are the visible ones. The score
    of a head is the mean of `corr_t` over the lower half of the frequencies. One forward pass, in
    blocks of queries: O(L^2 D) time, O(block L) memory. Differs from the paper: its formula could
    not be checked, and the metric here is defined in the same spirit. Distances count tokens of the
    document, not positions, so that a model can be compared with its context extensions.

    Args:
      model: a decoder; every layer has one rotary encoding; grouped-query heads are allowed.
      tokens: token ids. For more text, `merge` the results of several batches.
      tok: positions, documents and padding of the tokens; padding is left out. None: positions from
        0, one document, no padding.
      tau: smallest distance of a pair, in tokens; None for L // 4.
      block: how many queries are evaluated at a time.

    Raises:
      ValueError: a layer without exactly one rotary encoding (the layer's encoding is named);
        queries of the model see later tokens; a tau that no pair has; a block below 1.

    Reference: Hong, Jiang, Qi, Meng, Yu, Zhou, Zhou, arXiv 2410.08703.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> found = token_distance(
      ...     tiny_model('rope()', layers=2, width=16), jnp.arange(14).reshape(2, 7) % 5
      ... )
      >>> found.corr.shape, found.score.shape, found.alloc.sum(-1).round(5).tolist()
      ((2, 2, 4), (2, 2), [[1.0, 1.0], [1.0, 1.0]])
    """
    check_rotary('token_distance', model)
    check_causal('token_distance', model)
    length = tokens.shape[1]
    tau = length // 4 if tau is None else tau
    if not 0 <= tau < length:
        raise ValueError(
            f'token_distance: tau must lie in 0 .. {length - 1} for {length} tokens, got {tau}'
        )
    moments, weighed, reached, queries = _distances(model, tokens, tok, fixed=(tau, block))
    return TokenDistance(
        Moments(*map(np.asarray, moments)),
        np.asarray(weighed),
        np.asarray(reached),
        int(queries[0]),
    )


@compiled
def _distances(model, tau, block, tokens, tok):
    def look(encoding, before, after):
        rotary, (q, k, tq, tk) = single_rotary('token_distance', encoding), after
        return distance_sums(
            encoding, q, k, tq, tk, rotary.rotary_dim // 2, rotary.layout, tau, block
        )

    return capture_encodings(model, tokens, tok, look)


def distance_sums(
    encoding: Encoding,
    q: Float[Array, 'B L N H'],
    k: Float[Array, 'B L K H'],
    tq: Tokens,
    tk: Tokens,
    count: int,
    layout: Layout,
    tau: int,
    block: int,
) -> tuple[Moments, Float[Array, 'N F'], Float[Array, 'N'], Array]:
    """The sums of `TokenDistance` for one layer, from rotated queries and keys; only the mask of
    `encoding` is used.
    """
    batch, _, heads, width = q.shape
    tq, tk = with_valid(tq.without_feats(), batch), with_valid(tk, batch)
    k = jnp.swapaxes(k, 1, 2).astype(jnp.float32)
    k_planes = jnp.moveaxis(planes(k, count, layout), -2, 0)

    def one(sums, start, own):
        q_rows, rows = jnp.swapaxes(own[0], 1, 2), own[1]
        s = scaled_dot_product(q_rows, k)
        seen = rows.valid[:, None, :, None] & tk.valid[:, None, None, :]
        allowed = encoding.mask(rows, tk)
        seen = jnp.broadcast_to(seen if allowed is None else seen & allowed, s.shape)
        p = weights_of(s, seen)
        distance = (rows.rank[:, :, None] - tk.rank[:, None, :])[:, None]
        far = seen & (distance >= tau)
        total = lambda a: a.sum((0, 2, 3))
        pairs = total(far.astype(jnp.float32))
        mean = lambda a: total(jnp.where(far, a, 0.0)) / jnp.maximum(pairs, 1)
        centred = lambda a, m: jnp.where(far, a - m[:, None, None], 0.0)
        mean_s = mean(s)
        d_s = centred(s, mean_s)

        def plane(pair):
            c = _plane_logit(*pair, width)
            m = mean(c)
            d_c = centred(c, m)
            return m, total(d_c * d_c), total(d_c * d_s), total(p * jnp.abs(c))

        q_planes = jnp.moveaxis(planes(q_rows, count, layout), -2, 0)
        mean_c, cc, cs, weighed = (a.T for a in jax.lax.map(plane, (q_planes, k_planes)))
        here = Moments(pairs[:, None], mean_c, mean_s[:, None], cc, total(d_s * d_s)[:, None], cs)
        moments, weighed_before, reached, queries = sums
        return (
            merge_moments(moments, here),
            weighed_before + weighed,
            reached + total(p * distance),
            queries + rows.valid.sum(),
        )

    flat, wide = jnp.zeros((heads, 1)), jnp.zeros((heads, count))
    empty = (
        Moments(flat, wide, flat, wide, flat, wide),
        wide,
        jnp.zeros(heads),
        jnp.zeros((), jnp.int32),
    )
    return over_queries(one, empty, (q.astype(jnp.float32), tq), block)


def positional_heads(
    score: Float[np.ndarray, 'layers N'], fraction: float = 0.05
) -> list[tuple[int, int]]:
    """The (layer, head) pairs with the largest scores, best first: `fraction` of all, rounded up.

    Raises:
      ValueError: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'positional_heads takes a fraction in (0, 1], got {fraction}')
    score = np.asarray(score)
    best = np.argsort(-score, axis=None, kind='stable')[: math.ceil(fraction * score.size)]
    return [tuple(map(int, np.unravel_index(number, score.shape))) for number in best]


def without_heads(model: Transformer, heads: Sequence[tuple[int, int]]) -> Transformer:
    """The same model with the outputs of these (layer, head) pairs set to zero, to measure what the
    heads contribute.

    Raises:
      ValueError: a layer or head that does not exist, or a layer without attention.
    """
    changed, period = nnx.clone(model), len(model.blocks)
    for layer, head in heads:
        if not (0 <= layer < model.cfg.layers and 0 <= head < model.cfg.heads):
            last = f'layers 0 .. {model.cfg.layers - 1}, heads 0 .. {model.cfg.heads - 1}'
            raise ValueError(f'without_heads: there is no head ({layer}, {head}); {last}')
        at = layer % period, changed.blocks[layer % period]
        w_out = changed.attention(*at).projections.w_out
        w_out[...] = w_out[...].at[layer // period, head].set(0.0)
    return changed


def _reports(known: argparse.Namespace, rest: list[str]) -> Iterator[Report]:
    read = subject(known, rest, known.run)
    texts = read.sequences(known)
    model = read.load()
    found = functools.reduce(
        lambda a, b: a.merge(b), (token_distance(model, text[None]) for text in texts)
    )
    heads = ', '.join(f'{layer}.{head}' for layer, head in positional_heads(found.score))
    label = 'correlation with the logit'
    yield Report(
        key='token_distance',
        arrays={name: getattr(found, name) for name in ('corr', 'score', 'alloc', 'dist')},
        draw=lambda figure: draw_planes(figure.subplots(), found.corr, label=label, low=None),
        title='What each plane decides of far logits',
        size=planes_size(found.corr.shape),
        remarks=[
            f'positional heads (layer.head): {heads}; rank correlation of score and attended '
            f'distance: {spearman(found.score, found.dist):.2f}'
        ],
    )


ANALYSIS = Analysis(
    key='token_distance',
    says='which rotary planes decide the logits of distant tokens, and which heads attend far',
    reports=_reports,
)
