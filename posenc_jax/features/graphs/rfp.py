"""Random feature propagation: random features of nodes, and what a graph makes of them."""

import dataclasses
from typing import Annotated, Literal, get_args

import numpy as np
from jaxtyping import Float

from posenc_jax.features.graphs.adjacency import Operator, graph_operator
from posenc_jax.features.graphs.encoder import MAX_GRAPH_FEATURES, Features, GraphEncoder
from posenc_jax.features.graphs.rfp_learned import LearnedPropagation, Normalise
from posenc_jax.protocol.bounds import Count, Ge, Le, Size
from posenc_jax.protocol.errors import SpecError, check_choice, check_number
from posenc_jax.protocol.registry import Card, register

Propagation = Literal[Operator, 'learned']
MAX_DRAWS = 1024
_DEFICIENT = 1e-10  # |R_ii| over the largest, below which a column counts as dependent
_JITTER = 1e-8


def positive_qr(y: Float[np.ndarray, 'n r']) -> Float[np.ndarray, 'n r']:
    """Q of the thin QR decomposition whose R has a positive diagonal, which makes it unique."""
    q, r = np.linalg.qr(y)
    return q * np.where(np.diagonal(r) < 0, -1.0, 1.0)


def rfp_features(
    operator: Float[np.ndarray, 'n n'],
    start: Float[np.ndarray, 'n r'],
    steps: int,
    normalise: Normalise = 'qr',
) -> Float[np.ndarray, 'n F']:
    """`[X_0 | X_1 | ... | X_P]`, `X_t = normalise(S X_(t-1))`, float64, F = r (P + 1).

    'qr' takes the Q of the thin QR decomposition with diag(R) > 0. Where S X has dependent columns
    (S of a low rank: isolated nodes, bipartite graphs), Q is not determined; there S + 1e-8 I takes
    the place of S, which has the same eigenvectors. 'l2' divides every column by its norm, and
    leaves columns of zeros.

    Args:
      operator: S, see `graph_operator`.
      start: X_0.
      steps: P.
      normalise: 'qr', 'l2' or 'none'.

    Raises:
      SpecError: an unknown `normalise`.
      ValueError: more columns than nodes under 'qr'.
    """
    check_choice('rfp normalise', normalise, get_args(Normalise))
    n, r = start.shape
    if normalise == 'qr' and r > n:
        raise ValueError(
            f"normalise='qr' needs at most as many features as nodes, got {r} features and {n} "
            f'nodes; use at most {n} features'
        )
    x = np.asarray(start, np.float64)
    parts = [x]
    for _ in range(steps):
        y = operator @ x
        if normalise == 'l2':
            norm = np.linalg.norm(y, axis=0)
            y = y / np.where(norm > 0, norm, 1.0)
        elif normalise == 'qr':
            size = np.abs(np.diagonal(np.linalg.qr(y, mode='r')))
            if (size <= _DEFICIENT * size.max(initial=0)).any():
                y = y + _JITTER * x
            y = positive_qr(y)
        x = y
        parts.append(x)
    return np.concatenate(parts, axis=1)


@register(
    'rfp',
    kind='graph',
    card=Card(
        name='RFP',
        example='rfp(features=2, steps=3, pad=True)',
        use_when=(
            'You have large graphs and want random features; to compare with random '
            'walks, since a measured claim is partly contrary.'
        ),
        share='model',
    ),
)
@dataclasses.dataclass(frozen=True)
class Rfp(GraphEncoder):
    """Random features of the nodes and all that a power iteration makes of them.

    `[X_0 | X_1 | ... | X_P]`, `X_0 ~ N(0, 1)`, `X_t = normalise(S X_(t-1))`, with X_0 [n, r], are r
    (P + 1) features. With 'qr' the last X_t span the eigenvectors of S with the largest absolute
    eigenvalues. With `operator='learned'`, S is attention among neighbours, whose weights are
    trained: `encode` then gives X_0 alone, and `network` the module that propagates it inside the
    model. Differs from the paper: the form of the learned operator and the treatment of dependent
    columns are ours (`LearnedPropagation`, `rfp_features`).

    Args:
      features: r.
      steps: P.
      normalise: 'qr'; 'l2', by columns; 'none', which grows or vanishes with P.
      operator: S: 'gcn', 'adj', 'sym', 'rw', 'lap', see `graph_operator`; or 'learned'.
      draws: B, independent X_0 whose results a model averages (`encode_draws`).
      pad: for graphs of n < r nodes: n random features, and zeros in the place of the others.
        Without it such graphs are refused under 'qr', whose columns are at most n.
      key_width: d, of the queries and keys of 'learned'.

    Without an rng, X_0 comes from the seeds 0, 1, ... of the draws, so it is the same for all
    graphs of one size.

    Raises:
      SpecError: more than 2^16 features in all; a `key_width` of another operator than 'learned'.
      ValueError: at call, more features than nodes under 'qr' without `pad`.

    Reference: Eliasof et al., arXiv 2303.02918.

    Example:
      >>> from posenc_jax.features.graphs import make_graph_features
      >>> encoder = make_graph_features('rfp(features=2, steps=3)')
      >>> x = encoder.encode(1 - np.eye(4), np.random.default_rng(0))
      >>> x.shape, (x[:, 6:].T @ x[:, 6:]).round(5).tolist()
      ((4, 8), [[1.0, 0.0], [0.0, 1.0]])
    """

    features: Size = 64
    steps: Count = 16
    normalise: Normalise = 'qr'
    operator: Propagation = 'gcn'
    draws: Annotated[int, Ge(1), Le(MAX_DRAWS)] = 1
    pad: bool = False
    key_width: Features | None = None

    def __post_init__(self):
        check_number('rfp steps', self.steps, least=int(self.operator == 'learned'))
        if (width := self.features * (self.steps + 1)) > MAX_GRAPH_FEATURES:
            raise SpecError(f'rfp: {width} features; at most {MAX_GRAPH_FEATURES} are accepted')
        if self.key_width is not None and self.operator != 'learned':
            raise SpecError(
                f"rfp key_width={self.key_width} is of operator='learned', got {self.operator!r}"
            )

    @property
    def width(self):
        return self.features * (1 if self.operator == 'learned' else self.steps + 1)

    @property
    def randomised(self):
        return True

    def start(
        self, n: int, rng: np.random.Generator | None = None, draw: int = 0
    ) -> Float[np.ndarray, 'n r']:
        """X_0 of a graph of n nodes.

        Raises:
          ValueError: n < r under 'qr' without `pad`.
        """
        if n < self.features and self.normalise == 'qr' and not self.pad:
            raise ValueError(
                f"rfp with normalise='qr' needs at most as many features as nodes; the graph has "
                f'{n} nodes, features={self.features}; use features={n}, or pad=True, which fills '
                'up with zeros'
            )
        rng = np.random.default_rng(draw) if rng is None else rng
        return rng.standard_normal((n, min(n, self.features) if self.pad else self.features))

    def compute(self, adjacency, rng, draw):
        x = self.start(len(adjacency), rng, draw)
        missing = self.features - x.shape[1]
        if self.operator == 'learned':
            return np.pad(x, ((0, 0), (0, missing)))
        s = graph_operator(adjacency, self.operator)
        found = rfp_features(s, x, self.steps, self.normalise)
        if not missing:
            return found
        steps = found.reshape(len(x), self.steps + 1, -1)
        return np.pad(steps, ((0, 0), (0, 0), (0, missing))).reshape(len(x), -1)

    def network(self, node_width, *, rngs):
        if self.operator != 'learned':
            return None
        return LearnedPropagation(
            node_width,
            self.features,
            self.steps,
            normalise=self.normalise,
            key_width=self.key_width or 16,
            rngs=rngs,
        )
