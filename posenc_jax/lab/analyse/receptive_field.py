"""The empirical receptive field (ERF) of a trained causal model with any encoding: how many of the
nearest keys hold all but a share epsilon of the attention of a query.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from posenc_jax.lab.analyse.capture import (
    attention_of,
    capture_encodings,
    check_causal,
    compiled,
    over_queries,
    with_valid,
)
from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.decay_kernel import check_epsilon
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import register
from posenc_jax.protocol.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """Sums over the queries of one or more batches. The results are the properties `erf` and
    `profile`.

    Attributes:
      widths: sums of J, how many of the nearest keys hold more than 1 - epsilon of the attention of
        a query, [layers, N].
      rows: how many queries were summed, [layers, N].
      mass: sums of the attention at each distance, [layers, N, L].
      having: how many queries have a token of their document at each distance, [L].
      epsilon: the share of the attention that may lie beyond J keys.
    """

    widths: Float[np.ndarray, 'layers N']
    rows: Float[np.ndarray, 'layers N']
    mass: Float[np.ndarray, 'layers N L']
    having: Int[np.ndarray, 'L']
    epsilon: float

    @property
    def erf(self) -> Float[np.ndarray, 'layers N']:
        """Mean J, in keys."""
        return self.widths / np.maximum(self.rows, 1)

    @property
    def profile(self) -> Float[np.ndarray, 'layers N L']:
        """Mean attention to the token at each distance, over the queries that have one."""
        return self.mass / np.maximum(self.having, 1)

    def merge(self, other: 'ReceptiveField') -> 'ReceptiveField':
        """The sums over the queries of both.

        Raises:
          ValueError: the two differ in shape or in epsilon.
        """
        if self.mass.shape != other.mass.shape or self.epsilon != other.epsilon:
            mine, theirs = (self.mass.shape, self.epsilon), (other.mass.shape, other.epsilon)
            raise ValueError(
                f'receptive fields of {mine} and {theirs} (layers, heads, length; epsilon) '
                'cannot be merged'
            )
        sums = (
            getattr(self, name) + getattr(other, name)
            for name in ('widths', 'rows', 'mass', 'having')
        )
        return ReceptiveField(*sums, self.epsilon)


@register(
    'receptive_field',
    kind='analysis',
    card=analysis_card(
        'receptive fields',
        'receptive_field(model, tokens)',
        'You want to know how far the heads of a model look back.',
    ),
)
def receptive_field(
    model: Transformer,
    tokens: Int[Array, 'B L'],
    tok: Tokens | None = None,
    *,
    epsilon: float = 0.05,
    block: Size = 128,
) -> ReceptiveField:
    """Measures the empirical receptive field of every head: how many of the nearest keys hold all
    but epsilon of the attention of a query.

    `TRF = min J: sum_(d<J) exp(r_d) > (1 - eps) sum_d exp(r_d); ERF = mean_i min J: sum_(d<J)
    p_(i,i-d) > 1 - eps`, where p are the attention probabilities of the model, whatever its
    encoding. One forward pass, in blocks of queries: O(L^2 D) time, O(block L) memory. The
    theoretical field TRF of a bias r, `theoretical_field`, needs no model. Differs from the paper:
    the paper's epsilon and averages are not known; epsilon = 0.05 and the mean over all queries are
    choices of this project.

    Args:
      model: a decoder.
      tokens: token ids. For more text, `merge` the results of several batches.
      tok: positions, documents and padding of the tokens; padding is not counted, and a query sees
        its own document alone. None: positions from 0, one document, no padding.
      epsilon: share of the attention that may lie beyond the field, in (0, 1).
      block: how many queries are evaluated at a time.

    Raises:
      ValueError: queries of the model see later tokens; an epsilon outside (0, 1); a block below 1.

    Reference: Qin, Zhong, Deng, arXiv 2307.10156.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> found = receptive_field(
      ...     tiny_model('alibi()', layers=2, width=16), jnp.arange(14).reshape(2, 7) % 5
      ... )
      >>> found.erf.shape, found.profile.shape, found.mass.sum(-1).round(3).tolist()
      ((2, 2), (2, 2, 7), [[14.0, 14.0], [14.0, 14.0]])
    """
    check_epsilon(epsilon)
    check_causal('receptive_field', model)
    widths, rows, mass, having = _fields(model, tokens, tok, fixed=(epsilon, block))
    return ReceptiveField(*map(np.asarray, (widths, rows, mass, having[0])), epsilon)


@compiled
def _fields(model, epsilon, block, tokens, tok):
    def look(encoding, before, after):
        return attention_fields(encoding, *after, epsilon, block)

    return capture_encodings(model, tokens, tok, look)


def attention_fields(
    encoding: Encoding,
    q: Float[Array, 'B L N H'],
    k: Float[Array, 'B L K H'],
    tq: Tokens,
    tk: Tokens,
    epsilon: float,
    block: int,
) -> tuple[Float[Array, 'N'], Float[Array, 'N'], Float[Array, 'N L'], Int[Array, 'L']]:
    """The sums behind `ReceptiveField` for one layer, from projected queries and keys."""
    batch, length, heads, _ = q.shape
    tq, tk = with_valid(tq, batch), with_valid(tk, batch)
    k, distance = jnp.swapaxes(k, 1, 2), jnp.arange(length)

    def one(sums, start, own):
        rows = own[1]
        _, p, _ = attention_of(encoding, jnp.swapaxes(own[0], 1, 2), k, rows, tk)
        p = jnp.where(rows.valid[:, None, :, None], p, 0.0)
        at = (start + jnp.arange(rows.length))[:, None] - distance
        p = jnp.where(
            at >= 0, jnp.take_along_axis(p, jnp.clip(at, 0, length - 1)[None, None], axis=-1), 0.0
        )
        width = 1 + (jnp.cumsum(p, axis=-1) <= 1 - epsilon).sum(-1)
        looks = p.sum(-1) > 0.5  # a row without any visible key has the sum 0
        has = rows.valid[..., None] & (rows.rank[..., None] >= distance)
        has = jnp.broadcast_to(has, (batch, rows.length, length))
        here = (
            jnp.where(looks, width, 0).sum((0, 2)),
            looks.sum((0, 2)),
            p.sum((0, 2)),
            has.sum((0, 1)),
        )
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, here)

    empty = (
        jnp.zeros(heads),
        jnp.zeros(heads),
        jnp.zeros((heads, length)),
        jnp.zeros(length, jnp.int32),
    )
    return over_queries(one, empty, (q, tq), block)
