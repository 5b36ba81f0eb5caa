"""Relative random walk probabilities: how likely a walk from node i is at node j after k steps."""

import dataclasses

import numpy as np
from jaxtyping import Float

from posenc_jax.features.graphs.adjacency import graph_operator
from posenc_jax.features.graphs.encoder import Features, GraphEncoder
from posenc_jax.protocol.registry import Card, register


def rrwp_probabilities(
    adjacency: Float[np.ndarray, 'n n'], steps: int
) -> Float[np.ndarray, 'n n {steps}']:
    """`[I, P, P^2, ..., P^(K-1)]_ij` with K = `steps`, P = D^-1 A, float64.

    The row of an isolated node is 0, apart from the 1 of I.

    Example:
      >>> rrwp_probabilities(1 - np.eye(3), 3)[0].tolist()
      [[1.0, 0.0, 0.5], [0.0, 0.5, 0.25], [0.0, 0.5, 0.25]]
    """
    walk, powers = graph_operator(adjacency, 'rw'), [np.eye(len(adjacency))]
    while len(powers) < steps:
        powers.append(powers[-1] @ walk)
    return np.stack(powers, axis=-1)


@register('rrwp', kind='graph', card=Card(name='RRWP', example='rrwp(steps=6)', share='model'))
@dataclasses.dataclass(frozen=True)
class Rrwp(GraphEncoder):
    """Probabilities of random walks: of pairs for attention, and of the way back for each node.

    `R_ij = [I, P, P^2, ..., P^(K-1)]_ij`, `P = D^-1 A`, for pairs; the features of a node are R_ii:
    1, and then those of `rwse` from step 1 on. P is not symmetric: R_ij is of walks from i to j.
    The encoding `rrwp` and the layer `grit` read the pairs as the feature 'graph_rrwp'. With K >= 6
    they tell apart graphs that have the same distances, such as the dodecahedron and the Desargues
    graph. Differs from the paper: no edge features are added, since a graph has no labels here;
    a task standardises R_ii.

    Args:
      steps: K; the paper has 21 for ZINC.

    Reference: Ma et al., arXiv 2305.17589.
    """

    steps: Features = 8

    @property
    def width(self):
        return self.steps

    def compute(self, adjacency, rng, draw):
        return np.diagonal(rrwp_probabilities(adjacency, self.steps)).T

    def compute_pairs(self, adjacency):
        return {'graph_rrwp': rrwp_probabilities(adjacency, self.steps)}
