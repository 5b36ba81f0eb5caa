"""Random-walk structural encoding: how likely a random walk is back at its start after k steps."""

import dataclasses

import numpy as np
from jaxtyping import Float

from posenc_jax.features.graphs.adjacency import graph_operator
from posenc_jax.features.graphs.encoder import Features, GraphEncoder
from posenc_jax.protocol.registry import Card, register


def rwse_probabilities(
    adjacency: Float[np.ndarray, 'n n'], steps: int
) -> Float[np.ndarray, 'n {steps}']:
    """`diag(P^k)` for k = 1 .. steps, P = D^-1 A, float64; 0 for isolated nodes.

    `diag(P^(a+b))` is the row sum of P^a and the transpose of P^b, so only half of the powers are
    formed. No number is negative, and odd steps in a bipartite graph are exactly 0.
    """
    walk = graph_operator(adjacency, 'rw')
    power, columns = walk, [np.diagonal(walk)]
    while len(columns) < steps:
        columns.append((power * power.T).sum(1))
        if len(columns) < steps:
            longer = power @ walk
            columns.append((longer * power.T).sum(1))
            power = longer
    return np.stack(columns, axis=1)


@register('rwse', kind='graph', card=Card(name='RWSE', example='rwse(steps=5)', share='model'))
@dataclasses.dataclass(frozen=True)
class Rwse(GraphEncoder):
    """The probabilities that a random walk from a node is back after 1, ..., K steps.

    `p_i = [P_ii, (P^2)_ii, ..., (P^K)_ii]`, `P = D^-1 A`, 0 for isolated nodes. Differs from the
    paper: nothing; it calls the method RWPE, and its P is the transpose, with the same diagonal.

    Args:
      steps: K.

    Reference: Dwivedi et al., arXiv 2110.07875.

    Example:
      >>> from posenc_jax.features.graphs import make_graph_features
      >>> make_graph_features('rwse(steps=3)').encode(1 - np.eye(3))[0].tolist()
      [0.0, 0.5, 0.25]
    """

    steps: Features = 16

    @property
    def width(self):
        return self.steps

    def compute(self, adjacency, rng, draw):
        return rwse_probabilities(adjacency, self.steps)
