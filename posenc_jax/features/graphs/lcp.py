"""Local curvature profile: statistics of the curvatures of the edges at a node."""

import dataclasses
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int

from posenc_jax.features.graphs.adjacency import edges_of
from posenc_jax.features.graphs.curvature import forman_ricci, ollivier_bounds, ollivier_ricci
from posenc_jax.features.graphs.encoder import GraphEncoder
from posenc_jax.protocol.bounds import Ge, Lt
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import Card, register

Curvature = Literal['orc', 'frc', 'afrc3', 'afrc4', 'orc_approx']


def lcp_profile(
    n: int, edges: Int[np.ndarray, 'E 2'], values: Float[np.ndarray, 'E'], alt: bool = False
) -> Float[np.ndarray, 'n 5']:
    """Five statistics of the values at the edges of each node; zeros for isolated nodes.

    `[min, max, mean, standard deviation, median]` of the population, where the median of an even
    number is the mean of the middle two. The variant `alt` has the sorted values themselves: the
    three smallest and the two largest if there are more than five, and zeros at the end if there
    are fewer.
    """
    found = np.zeros((n, 5))
    for node in range(n):
        own = np.sort(values[(edges == node).any(1)])
        if not len(own):
            continue
        if alt:
            kept = own if len(own) <= 5 else np.concatenate([own[:3], own[-2:]])
            found[node, : len(kept)] = kept
        else:
            found[node] = own[0], own[-1], own.mean(), own.std(), np.median(own)
    return found


def bound_profile(
    n: int,
    edges: Int[np.ndarray, 'E 2'],
    lower: Float[np.ndarray, 'E'],
    upper: Float[np.ndarray, 'E'],
) -> Float[np.ndarray, 'n 2']:
    """The smallest lower and the largest upper bound at each node; zeros for isolated nodes."""
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    for end in edges.T:
        np.minimum.at(low, end, lower)
        np.maximum.at(high, end, upper)
    found = np.stack([low, high], axis=1)
    return np.where(np.isfinite(found), found, 0.0)


@register(
    'lcp',
    kind='graph',
    card=Card(
        name='LCP',
        example='lcp()',
        use_when='You have graphs that random walks and eigenvectors do not tell apart.',
        share='model',
    ),
)
@dataclasses.dataclass(frozen=True)
class Lcp(GraphEncoder):
    """Statistics of the curvatures of the edges at a node.

    `[min, max, mean, std, median] of k(u, v) = 1 - W_1(mu_u, mu_v)` over the neighbours v of u,
    with mu_u uniform on the neighbours of u; zeros for isolated nodes. Curvatures are of different
    size from graph to graph, so tasks standardise features by those of training graphs
    (`feature_scale`) before they join them to others. Differs from the paper: the released code
    sets the curvatures of 'afrc3' and 'afrc4' to 0 and counts 4-cycles of nodes that are not
    joined; here they follow the definitions.

    Args:
      curvature: 'orc', exact Ollivier-Ricci; 'frc', 'afrc3' and 'afrc4', see `forman_ricci`;
        'orc_approx', two features for large graphs: the smallest lower and the largest upper bound
        of 'orc' at a node, see `ollivier_bounds`.
      alt: five of the sorted curvatures instead of their statistics, see `lcp_profile`.
      alpha: the laziness of 'orc': the mass that mu_u keeps at u. Above 0 every edge is a linear
        program, which is slower.

    Raises:
      SpecError: an alpha of a curvature other than 'orc'; `alt` of 'orc_approx'.

    Reference: Fesser, Weber, arXiv 2311.14864.

    Example:
      >>> from posenc_jax.features.graphs import make_graph_features
      >>> make_graph_features('lcp()').encode(1 - np.eye(5))[0].tolist()
      [0.75, 0.75, 0.75, 0.0, 0.75]
    """

    curvature: Curvature = 'orc'
    alt: bool = False
    alpha: Annotated[float, Ge(0), Lt(1)] = 0.0

    def __post_init__(self):
        if self.alpha and self.curvature != 'orc':
            raise SpecError(f"lcp alpha={self.alpha} is of curvature='orc', got {self.curvature!r}")
        if self.alt and self.curvature == 'orc_approx':
            raise SpecError("lcp alt=True needs one curvature an edge; 'orc_approx' has two bounds")

    @property
    def width(self):
        return 2 if self.curvature == 'orc_approx' else 5

    def compute(self, adjacency, rng, draw):
        n, edges = len(adjacency), edges_of(adjacency)
        if self.curvature == 'orc_approx':
            return bound_profile(n, edges, *ollivier_bounds(adjacency))
        if self.curvature == 'orc':
            values = ollivier_ricci(adjacency, self.alpha)
        else:
            values = forman_ricci(adjacency, self.curvature)
        return lcp_profile(n, edges, values, self.alt)
