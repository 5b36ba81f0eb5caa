"""PEARL: positions of nodes by a network of the graph that reads random or basis signals."""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from posenc_jax.features.graphs.adjacency import graph_operator
from posenc_jax.features.graphs.encoder import (
    MAX_GRAPH_FEATURES,
    Features,
    GraphEncoder,
    GraphNetwork,
)
from posenc_jax.features.graphs.networks import Mlp, SignalGIN, normalised, real_edges
from posenc_jax.features.graphs.rfp import MAX_DRAWS
from posenc_jax.protocol.bounds import Ge, Le, Size
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import Card, register

Layers = Annotated[int, Ge(1), Le(64)]


def pearl_responses(
    laplacian: Float[np.ndarray, 'n n'], signals: Float[np.ndarray, 'n M'], powers: int
) -> Float[np.ndarray, 'n M {powers}']:
    """`[W, L W, ..., L^(K-1) W]` of signals W with K = `powers`, float64.

    Example:
      >>> edge = np.array([[1.0, -1.0], [-1.0, 1.0]])
      >>> pearl_responses(edge, np.array([[1.0], [0.0]]), 3)[:, 0].tolist()
      [[1.0, 1.0, 2.0], [0.0, -1.0, -2.0]]
    """
    found = [signals]
    while len(found) < powers:
        found.append(laplacian @ found[-1])
    return np.stack(found, axis=-1)


class PearlNetwork(GraphNetwork):
    """The trained part of `pearl`; its arguments have the same names."""

    def __init__(self, encoder: 'Pearl', *, rngs: nnx.Rngs):
        self.powers, self.pool, self.norm = encoder.channels, encoder.pool, encoder.norm
        self.width = out = encoder.out
        self.lift = Mlp((self.powers, out), rngs) if encoder.lift else None
        ends = [out if encoder.lift else self.powers]
        ends += [*[encoder.hidden] * (encoder.layers - 1), out]
        inner = [encoder.mlp_hidden] * (encoder.mlp_layers - 1)
        self.gin = SignalGIN([Mlp((a, *inner, b), rngs) for a, b in zip(ends, ends[1:])], self.norm)

    def __call__(self, features, nodes, adjacency, valid):
        x = features.astype(jnp.float32)
        x = x.reshape(*x.shape[:-1], -1, self.powers)  # [..., N, M, K]
        # A signal of zeros is one that a small graph does not have.
        present = (x != 0).any((-3, -1), keepdims=True) & valid[..., None, None]
        if self.lift is not None:
            x = self.lift(x)
            x = jax.nn.relu(normalised(x, valid, self.lift.biases[-1][...]) if self.norm else x)
        x = jnp.where(present, self.gin(x, real_edges(adjacency, valid), valid), 0.0)
        x = x.sum(-2)
        if self.pool == 'mean':
            x = x / jnp.maximum(present.any(-3, keepdims=True).sum(-2), 1)
        return x


@register(
    'pearl',
    kind='graph',
    card=Card(
        name='PEARL',
        example='pearl(signals=4, powers=3, layers=2, hidden=8, mlp_hidden=8, out=6)',
        use_when=(
            'You have large graphs and can train a small network of them; with basis signals, '
            'since a measured claim about random signals is contrary.'
        ),
        share='model',
        needs_training=True,
    ),
)
@dataclasses.dataclass(frozen=True)
class Pearl(GraphEncoder):
    """What a network of the graph makes of several signals on the nodes, summed over the signals.

    `p = sum_m GIN([W, L W, ..., L^(K-1) W]_m)`, `L = I - D^-1/2 A D^-1/2`, W [n, M]. The columns of
    W are random, N(0, 1), with new draws at every step of training (R-PEARL), or W = I (B-PEARL).
    Each column is a signal of K channels; a linear map, a norm and relu come first, and the layers
    of the GIN are `x_i <- MLP(x_i + sum of the neighbours' x)`, with the same weights for all
    columns. B-PEARL follows a permutation of the nodes exactly, R-PEARL in distribution. `encode`
    gives the responses, and `network` the module that reads them inside the model, whose `out`
    features replace them. What tells nodes apart are the nonlinearities before the sum: without
    them, the sum of random signals says nothing.

    Differs from the paper: batch norm is replaced. In a norm each channel of a signal gets mean 0
    and deviation 1 over the nodes of its own graph, in evaluation too, where batch norm has the
    nodes and signals of a whole batch in training and running means in evaluation. So a channel
    that is the same at all nodes becomes 0, and no result depends on other graphs. A shift is
    trained, and no scale, which the next map has. The network is summed as in the code; theory has
    the mean, `pool='mean'`.

    Args:
      basis: W = I, and not random columns.
      signals: M; of W = I, the most nodes that a graph may have. Smaller graphs have no more
        columns than nodes there.
      powers: K; None is 1 for random and 7 for basis signals, as in the paper.
      layers, hidden: of the GIN.
      mlp_layers, mlp_hidden: linear maps of the MLP of a layer, and units between them.
      out: features of a node.
      lift: whether there is a linear map in front of the GIN.
      norm: whether there are norms behind this map and between the layers.
      pool: 'sum', which grows with M, or 'mean'.
      draws: B, independent W whose results a model averages (`encode_draws`).

    Without an rng, W comes from the seeds 0, 1, ... of the draws, as for `rfp`: evaluation has one
    fixed draw for all graphs of one size.

    Raises:
      SpecError: more than 2^16 features of a node.
      ValueError: at call, a graph of more than M nodes for W = I.

    Reference: Kanatsoulis et al., arXiv 2502.01122.

    Example:
      >>> from posenc_jax.features.graphs import make_graph_features
      >>> encoder = make_graph_features('pearl(basis=True, signals=4, powers=2)')
      >>> encoder.encode(1 - np.eye(3))[0].tolist()
      [1.0, 1.0, 0.0, -0.5, 0.0, -0.5, 0.0, 0.0]
    """

    basis: bool = False
    signals: Features = 120
    powers: Features | None = None
    layers: Layers = 8
    hidden: Size = 40
    mlp_layers: Layers = 3
    mlp_hidden: Size = 105
    out: Size = 37
    lift: bool = True
    norm: bool = True
    pool: Literal['sum', 'mean'] = 'sum'
    draws: Annotated[int, Ge(1), Le(MAX_DRAWS)] = 1

    standardised = False

    def __post_init__(self):
        if self.width > MAX_GRAPH_FEATURES:
            raise SpecError(
                f'pearl: {self.width} features; at most {MAX_GRAPH_FEATURES} are accepted'
            )

    @property
    def width(self):
        return self.signals * self.channels

    @property
    def channels(self) -> int:
        """K, the number of channels of a signal."""
        return self.powers or (7 if self.basis else 1)

    @property
    def randomised(self):
        return not self.basis

    def compute(self, adjacency, rng, draw):
        n = len(adjacency)
        if not self.basis:
            rng = np.random.default_rng(draw) if rng is None else rng
            w = rng.standard_normal((n, self.signals))
        elif n <= self.signals:
            w = np.eye(n, self.signals)
        else:
            raise ValueError(
                f'pearl with basis=True needs a signal for every node; the graph has {n} nodes, '
                f'signals={self.signals}; use signals={n}'
            )
        return pearl_responses(graph_operator(adjacency, 'lap'), w, self.channels).reshape(n, -1)

    def network(self, node_width, *, rngs):
        return PearlNetwork(self, rngs=rngs)
