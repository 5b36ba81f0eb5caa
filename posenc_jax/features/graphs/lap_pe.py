"""Laplacian positional encoding: eigenvectors of the normalised Laplacian of a graph."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from posenc_jax.features.graphs.adjacency import graph_operator
from posenc_jax.features.graphs.encoder import Features, GraphEncoder
from posenc_jax.protocol.registry import Card, register

Signs = Literal['random', 'canonical', 'abs']


def lap_pe_eigenvectors(
    adjacency: Float[np.ndarray, 'n n'], count: int
) -> tuple[Float[np.ndarray, 'm'], Float[np.ndarray, 'n m']]:
    """The `m = min(count, n - 1)` smallest eigenvalues of `L = I - D^-1/2 A D^-1/2` after the
    first, ascending, and their eigenvectors of unit norm; float64.

    The first, which is left out, is `u = D^1/2 1 / |D^1/2 1|` with eigenvalue 0. It is moved to the
    other end of the spectrum, L + 3 u u^T, so a graph of several components, which has more
    eigenvectors for 0, loses this one and not an arbitrary mixture. An isolated node has the row of
    I in L.
    """
    n = len(adjacency)
    first = np.sqrt(adjacency.sum(1))
    first = first if first.any() else np.ones(n)  # a graph without edges, L = I
    first = first / np.linalg.norm(first)
    # The eigenvalues of L lie in 0 .. 2.
    moved = graph_operator(adjacency, 'lap') + 3 * np.outer(first, first)
    values, vectors = np.linalg.eigh(moved)
    kept = min(count, n - 1)
    return values[:kept], vectors[:, :kept]


def canonical_signs(vectors: Float[np.ndarray, 'n m']) -> Float[np.ndarray, 'm']:
    """The signs 1 and -1 that make the entry of largest magnitude of each column positive; of
    entries that differ by less than 1e-9 of it, the first decides.
    """
    size = np.abs(vectors)
    largest = (size >= size.max(0) * (1 - 1e-9)).argmax(0)
    return np.where(np.take_along_axis(vectors, largest[None], axis=0)[0] < 0, -1.0, 1.0)


def lap_pe_sign_invariant(
    phi: Callable[[Float[Array, '... F']], Float[Array, '... G']], v: Float[Array, '... F']
) -> Float[Array, '... G']:
    """`phi(v) + phi(-v)`, which does not depend on the sign of v (the sum of SignNet).

    Args:
      phi: a network; to leave the sign of each eigenvector open, v has an eigenvector per row.
    """
    return phi(v) + phi(-v)


@register(
    'lap_pe',
    kind='graph',
    card=Card(
        name='LapPE',
        example='lap_pe(vectors=3)',
        use_when=(
            'You have graphs without an order and want the usual baseline, whose signs '
            'are arbitrary.'
        ),
        share='model',
    ),
)
@dataclasses.dataclass(frozen=True)
class LapPe(GraphEncoder):
    """The eigenvectors of the k smallest eigenvalues of the normalised Laplacian after the first.

    `p_i = [v_1(i), ..., v_k(i)]`, `(I - D^-1/2 A D^-1/2) v_j = lambda_j v_j`; a graph of n <= k
    nodes has n - 1 of them and columns of zeros. Eigenvectors are determined up to their signs,
    and those of one eigenvalue up to a rotation, so only the projector `V V^T` does not depend on
    the order of the nodes, and this only if lambda_k < lambda_(k+1). Differs from the paper: a
    graph of several components loses `D^1/2 1`, where the paper's code loses an arbitrary
    eigenvector for 0; signs are chosen by `signs`.

    Args:
      vectors: k.
      signs: 'random' draws the sign of every eigenvector if there is an rng, as for training, and
        is 'canonical' otherwise; 'canonical' makes the entry of largest magnitude positive; 'abs'
        takes absolute values. `signnet` is a network that does not depend on them, and
        `lap_pe_sign_invariant` makes one of yours so.

    Reference: Dwivedi et al., arXiv 2003.00982.

    Example:
      >>> from posenc_jax.features.graphs import make_graph_features
      >>> path = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
      >>> np.abs(make_graph_features('lap_pe(vectors=2)').encode(path)).round(3).tolist()
      [[0.707, 0.5], [0.0, 0.707], [0.707, 0.5]]
    """

    vectors: Features = 8
    signs: Signs = 'random'

    @property
    def width(self):
        return self.vectors

    @property
    def randomised(self):
        return self.signs == 'random'

    def compute(self, adjacency, rng, draw):
        v = lap_pe_eigenvectors(adjacency, self.vectors)[1]
        if self.signs == 'abs':
            v = np.abs(v)
        elif self.signs == 'random' and rng is not None:
            v = v * rng.choice([-1.0, 1.0], v.shape[1])
        else:
            v = v * canonical_signs(v)
        return np.pad(v, ((0, 0), (0, self.vectors - v.shape[1])))
