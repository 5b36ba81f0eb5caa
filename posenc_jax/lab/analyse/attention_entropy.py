"""Attention entropy: how evenly the queries of a model spread their attention over the keys."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.lab.analyse.capture import attention_of, capture_encodings, compiled, over_queries
from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.decoding.parallel_context_entropy import SelectedAttention
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import register
from posenc_jax.protocol.tokens import Tokens


def row_entropy(p: Float[Array, '... S']) -> Float[Array, '...']:
    """`-sum_j p_j ln p_j` in nats, with 0 ln 0 = 0."""
    p = p.astype(jnp.float32)
    return -(p * jnp.log(jnp.where(p > 0, p, 1.0))).sum(-1)


@dataclasses.dataclass(frozen=True)
class AttentionEntropy:
    """Attention entropies, summed over query rows; `merge` adds the sums of several batches.

    Attributes:
      total: the sum over rows of the entropy of each head, in nats.
      shares: the sum over rows of the entropy over its largest value, ln n for a row that sees n
        keys; 0 for a row that sees one.
      rows: how many query rows were summed.
    """

    total: Float[np.ndarray, 'layers N']
    shares: Float[np.ndarray, 'layers N']
    rows: int

    @property
    def heads(self) -> Float[np.ndarray, 'layers N']:
        """Mean entropy over rows, in nats."""
        return self.total / self.rows

    @property
    def mean(self) -> float:
        """Mean entropy over rows, heads and layers, in nats."""
        return float(self.heads.mean())

    @property
    def relative(self) -> Float[np.ndarray, 'layers N']:
        """Mean over rows of `H_i / ln n_i`, n_i the number of keys that row i sees: 1 where all
        attention is even.
        """
        return self.shares / self.rows

    def merge(self, other: 'AttentionEntropy') -> 'AttentionEntropy':
        """The sums over the rows of both."""
        return AttentionEntropy(
            self.total + other.total, self.shares + other.shares, self.rows + other.rows
        )


@register(
    'attention_entropy',
    kind='analysis',
    card=analysis_card(
        'attention entropy',
        'attention_entropy(model, tokens)',
        'You want to know which heads attend to few tokens and which to many.',
    ),
)
def attention_entropy(
    model: Transformer,
    tokens: Int[Array, 'B L'],
    tok: Tokens | None = None,
    *,
    rows: Bool[Array, '#B L'] | None = None,
    block: Size = 128,
) -> AttentionEntropy:
    """Measures the entropy of the attention of every head, in nats.

    `H_i = -sum_j a_ij ln a_ij, mean over rows, heads, layers`, over all keys j that the query i
    sees, with 0 ln 0 = 0; `relative` divides it by ln of their number, which is the entropy of even
    attention. The probabilities a_ij are those of the model, whatever its encoding does to the
    logits; where a sink or the rest of a stick takes a share, they are those of the keys among
    themselves. One forward pass, in blocks of queries: O(L^2) time, O(block L) memory. Differs from
    the paper: nothing.

    Args:
      model: decoder or encoder.
      tokens: token ids. For more text, `merge` the results of several batches.
      tok: positions, documents and padding of the tokens; padding is not counted. None: positions
        from 0 and no padding.
      rows: which queries are counted; None for all.
      block: how many queries are evaluated at a time.

    Raises:
      ValueError: token ids that the model does not have; `rows` of another shape than the tokens;
        no row that counts; a block below 1.

    Reference: Zhang, Wang, Huang, Fang, Zhang, Deng, Li, Yu, arXiv 2412.16545.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> found = attention_entropy(
      ...     tiny_model('alibi()', layers=2, width=16), jnp.arange(14).reshape(2, 7) % 5
      ... )
      >>> found.heads.shape, found.rows, bool(0 < found.mean < np.log(7))
      ((2, 2), 14, True)
    """
    tok = Tokens.of(length=tokens.shape[1]) if tok is None else tok
    counted = (
        jnp.ones(tokens.shape, bool)
        if tok.valid is None
        else jnp.broadcast_to(tok.valid, tokens.shape)
    )
    if rows is not None:
        if (
            rows.ndim != 2
            or rows.shape[1] != tokens.shape[1]
            or rows.shape[0] not in (1, tokens.shape[0])
        ):
            raise ValueError(
                f'attention_entropy: rows have shape {rows.shape}, tokens {tokens.shape}; expected '
                'the shape of the tokens, or one row for all'
            )
        counted = counted & rows
    if not (count := int(counted.sum())):
        raise ValueError(
            f'attention_entropy: none of the {counted.size} rows counts; at least one must be '
            'valid and in `rows`'
        )
    model.check_ids(tokens, tok.valid)
    attend = model.blocks[0].attention_fn
    if attend is not sharded_attend and not isinstance(attend, SelectedAttention):
        raise ValueError(
            f'attention_entropy: the layers attend by {type(attend).__name__}, whose rows are not '
            'one softmax'
        )
    sums = np.asarray(_entropies(model, tokens, tok, counted, fixed=(block,)), np.float64)
    return AttentionEntropy(sums[:, 0], sums[:, 1], count)


@compiled
def _entropies(model, block, tokens, tok, counted):
    attend = model.blocks[0].attention_fn

    def look(encoding, before, after):
        q, k, tq, tk = after
        if isinstance(attend, SelectedAttention):
            encoding, tq = attend.choose(encoding, q, k, tq, tk)
        return summed_entropies(encoding, q, k, tq, tk, counted, block)

    return capture_encodings(model, tokens, tok, look)


def summed_entropies(
    encoding: Encoding,
    q: Float[Array, 'B L N H'],
    k: Float[Array, 'B L K H'],
    tq: Tokens,
    tk: Tokens,
    counted: Bool[Array, 'B L'],
    block: int,
) -> Float[Array, '2 N']:
    """Entropy of each head of one layer, in nats and over ln of the number of visible keys, summed
    over the rows that are counted, from projected queries and keys.
    """
    k = jnp.swapaxes(k, 1, 2)

    def one(total, start, rows):
        own_tq, own = rows[1:]
        _, p, seen = attention_of(encoding, jnp.swapaxes(rows[0], 1, 2), k, own_tq, tk)
        nats, keys = row_entropy(p), seen.sum(-1)
        share = jnp.where(keys > 1, nats / jnp.log(jnp.maximum(keys, 2)), 0.0)
        both = jnp.stack([nats, share])
        return total + jnp.where(own[:, None], both, 0.0).sum((1, 3))

    return over_queries(one, jnp.zeros((2, q.shape[2])), (q, tq, counted), block)
