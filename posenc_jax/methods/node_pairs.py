"""Biases of pairs of nodes: what encodings have in common that read features of a graph's pairs."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Shaped

from posenc_jax.attention.buckets import take_bucket
from posenc_jax.base.products import heads_first, over_batch
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tables import known_range
from posenc_jax.protocol.tokens import Tokens


def features_of_graph(user: str, tok: Tokens, name: str, encoder: str) -> Shaped[Array, '...']:
    """The feature of a graph that tokens have, of each node, [#B, L, ...].

    Args:
      user: who reads it, for the message.
      tok: the nodes.
      name: of the feature.
      encoder: where it comes from, for the message.

    Raises:
      ValueError: these tokens have no such feature.
    """
    if name not in tok.feats:
        known = ', '.join(map(repr, sorted(tok.feats))) or 'none'
        raise ValueError(
            f'{user} reads the feature {name!r} of a graph, and these tokens have {known}; use a '
            f'task of graphs{encoder}, or tok.with_feats({name}=array[:, :, None])'
        )
    return tok.feats[name][:, :, 0]


class NodePairBias(Encoding):
    """Adds a bias of the pair of nodes to the logits. A subclass defines `rows`.

    The tokens of a graph have the feature `feature`, [#B, L, 1, n, ...]: a token has the row of its
    node i, the features of the pairs (i, j) with all n nodes. The node of a key is its `rank`,
    which counts the tokens of its document, so graphs may be packed and padded. `rows` maps a row
    to the biases of all heads, token by token, and a block of pairs then looks them up.

    Attributes:
      feature: the name of the feature that is read.
    """

    feature: ClassVar[str]

    @property
    def graph_encoder(self) -> str:
        """The spec string of the encoder of graphs that gives the feature."""
        return f'{self.card.key}()'

    def rows(self, pairs: Shaped[Array, '#B L n ...']) -> Float[Array, '#B L heads n']:
        """The biases of a node with all nodes, float32."""
        raise NotImplementedError

    def project(self, q, k, v, tq, tk, x=None):
        key = self.card.key
        given = f' with features={self.graph_encoder!r}'
        rows = self.rows(features_of_graph(key, tq, self.feature, given))
        if rows.shape[2] != q.shape[2]:
            raise ValueError(
                f'{key} has parameters of {rows.shape[2]} heads, the queries have {q.shape[2]}'
            )
        # A compiled program gives NaN, see `logits`.
        known = None if isinstance(rows, Tracer) else known_range(tk.rank, tk.valid)
        if known is not None and known[1] >= rows.shape[3]:
            raise ValueError(
                f'{key}: node {known[1]} is not in 0 .. {rows.shape[3] - 1}, the nodes of the '
                f'feature {self.feature!r}; a document has one token for each node'
            )
        # Blocks of pairs need the biases alone, which are smaller.
        tq, tk = (_without(tok, self.feature) for tok in (tq, tk))
        return q, k, v, tq.with_feats(**{key: rows}), tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        rows = heads_first(tq.feats[self.card.key])
        count = rows.shape[3]
        node = jnp.broadcast_to(tk.rank[:, None], (len(tk.rank), s.shape[2], s.shape[3]))
        bias = take_bucket(rows, jnp.minimum(node, count - 1))
        bias = jnp.where((node < count)[:, None], bias, jnp.nan)
        return s + over_batch(bias, s.shape[0]), carry


def _without(tok: Tokens, name: str) -> Tokens:
    return dataclasses.replace(tok, feats={n: a for n, a in tok.feats.items() if n != name})
