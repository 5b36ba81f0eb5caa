"""The protocol of encoders of graphs, and `make_graph_features`, which builds one from a spec
string.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

from posenc_jax.features.graphs.adjacency import check_adjacency
from posenc_jax.language import spec as spec_language
from posenc_jax.protocol.bounds import Ge, Le
from posenc_jax.protocol.errors import LARGEST, SpecError, shortened
from posenc_jax.protocol.registry import Card, entries

MAX_GRAPH_FEATURES = 2**16  # of a node
PAIRS = 'graph_'  # with which the names of features of pairs begin, in batches and in `Tokens`
Features = Annotated[int, Ge(1), Le(MAX_GRAPH_FEATURES)]


class GraphNetwork(nnx.Module):
    """The trained part of an encoder of graphs, which runs inside the model.

    Attributes:
      width: features of a node after it.
    """

    width: int

    def __call__(
        self,
        features: Float[Array, '*B N F'],
        nodes: Float[Array, '*B N D'],
        adjacency: Bool[Array, '*B N N'],
        valid: Bool[Array, '*B N'],
    ) -> Float[Array, '*B N W']:
        """The features of the model.

        Args:
          features: what `encode` has given, with rows of zeros for padding.
          nodes: the node features of the data, which the weights read.
          adjacency: which nodes are joined.
          valid: False on padding.
        """
        raise NotImplementedError


class GraphEncoder:
    """Features of the nodes of a graph: `encode(adjacency, rng) -> features [n, F]`.

    Encoders are frozen dataclasses whose fields are their options, registered with kind 'graph'. A
    subclass has `width` and writes `compute`, in float64 on the host; `encode` checks the graph and
    gives float32. Features are computed once a graph, apart from those of `randomised` encoders, of
    which training draws new ones every time.

    Attributes:
      card: the catalogue entry, set by `register`.
      spec_kind: tells the registry that spec strings build it.
      width: F, the columns of `encode` for a graph of any size; those that a small graph does not
        fill are 0. An encoder of pairs alone has none.
      randomised: whether `encode` draws from `rng`. Without `rng` the features are those of
        evaluation, the same at every call.
      draws: how many independent draws a model reads by shared weights and averages, see
        `encode_draws`.
      standardised: whether a task makes mean and deviation of the features 0 and 1. Not where the
        network relies on what they are, such as the sign of an eigenvector.
    """

    card: ClassVar[Card]
    spec_kind: ClassVar[str] = 'graph'
    draws: int = 1
    standardised: ClassVar[bool] = True

    @property
    def width(self) -> int:
        raise NotImplementedError

    @property
    def randomised(self) -> bool:
        return False

    def compute(
        self, adjacency: Float[np.ndarray, 'n n'], rng: np.random.Generator | None, draw: int
    ) -> Float[np.ndarray, 'n F']:
        """The features of a graph that has been checked, in float64."""
        raise NotImplementedError

    def encode(
        self,
        adjacency: Shaped[np.ndarray, 'n n'],
        rng: np.random.Generator | None = None,
        *,
        draw: int = 0,
    ) -> Float[np.ndarray, 'n F']:
        """The features of the nodes of a graph, float32.

        Args:
          adjacency: symmetric, 0 and 1 (or False and True), with a diagonal of 0.
          rng: draws what is random; without it the rule of evaluation holds.
          draw: number of the draw, which tells draws apart where there is no `rng`.

        Raises:
          ValueError: a matrix that is no adjacency, see `check_adjacency`; features beyond the
            numbers of float32; what the encoder itself refuses.
        """
        features = self.compute(check_adjacency(adjacency), rng, draw)
        if not (np.abs(features) <= LARGEST).all():
            largest = np.abs(features).max()
            raise ValueError(
                f'{shortened(repr(self), 80)}: features of up to {largest:.3g} are no numbers of '
                'float32'
            )
        return features.astype(np.float32)

    def encode_draws(
        self, adjacency: Shaped[np.ndarray, 'n n'], rng: np.random.Generator | None = None
    ) -> Float[np.ndarray, 'draws n F']:
        """The features of `draws` independent draws; arguments as for `encode`."""
        return np.stack([self.encode(adjacency, rng, draw=i) for i in range(self.draws)])

    def compute_pairs(self, adjacency: Float[np.ndarray, 'n n']) -> dict[str, np.ndarray]:
        """Features [n, n, ...] of the pairs of nodes of a graph that has been checked, by name."""
        return {}

    def pairs(self, adjacency: Shaped[np.ndarray, 'n n']) -> dict[str, np.ndarray]:
        """Features [n, n, ...] of the pairs of nodes, float32 or int32, which an encoding of
        attention reads; the names begin with `PAIRS`. {} where the encoder has none.

        Raises:
          ValueError: a matrix that is no adjacency, see `check_adjacency`.
        """
        found = self.compute_pairs(check_adjacency(adjacency))
        single = lambda a: a.astype(np.float32 if a.dtype.kind == 'f' else np.int32)
        return {name: single(array) for name, array in found.items()}

    def network(self, node_width: int, *, rngs: nnx.Rngs) -> GraphNetwork | None:
        """The trained part for nodes with `node_width` features of the data, or None where there is
        none and the features are complete.
        """
        return None


@dataclasses.dataclass(frozen=True)
class JoinedGraphFeatures(GraphEncoder):
    """Several encoders of the same graph, whose features are concatenated."""

    parts: tuple[GraphEncoder, ...]

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    @property
    def randomised(self) -> bool:
        return any(part.randomised for part in self.parts)

    @property
    def draws(self) -> int:
        return max(part.draws for part in self.parts)

    def compute(self, adjacency, rng, draw):
        return np.concatenate([part.compute(adjacency, rng, draw) for part in self.parts], axis=1)

    def compute_pairs(self, adjacency):
        found = {}
        for part in self.parts:
            own = part.compute_pairs(adjacency)
            if twice := sorted(found.keys() & own.keys()):
                raise ValueError(f'two encoders give the feature {twice[0]!r} of pairs of nodes')
            found |= own
        return found

    def encode_draws(self, adjacency, rng=None):
        draws = self.draws
        parts = [  # what is not drawn is the same in every draw, and is computed once
            [part.encode(adjacency, rng, draw=i) for i in range(draws if part.randomised else 1)]
            for part in self.parts
        ]
        whole = [np.repeat(part, draws // len(part), axis=0) for part in parts]
        return np.concatenate(whole, axis=-1)

    def network(self, node_width, *, rngs):
        networks = [part.network(node_width, rngs=rngs) for part in self.parts]
        if all(network is None for network in networks):
            return None
        return JoinedGraphNetwork([part.width for part in self.parts], networks)


class JoinedGraphNetwork(GraphNetwork):
    """The trained parts of joined encoders; features of the others pass through."""

    def __init__(self, widths: Sequence[int], networks: Sequence[GraphNetwork | None]):
        self.cuts = tuple(int(cut) for cut in np.cumsum(widths)[:-1])
        self.networks = nnx.List(networks)
        self.width = sum(
            width if network is None else network.width for width, network in zip(widths, networks)
        )

    def __call__(self, features, nodes, adjacency, valid):
        parts = jnp.split(features, self.cuts, axis=-1)
        return jnp.concatenate(
            [
                part if network is None else network(part, nodes, adjacency, valid)
                for part, network in zip(parts, self.networks)
            ],
            axis=-1,
        )


def make_graph_features(spec: str) -> GraphEncoder:
    """Builds an encoder of graphs from a spec string; `|` concatenates features.

    Args:
      spec: e.g. 'lcp() | rwse(steps=16)'.

    Raises:
      SpecError: the string is wrong, or names a code of graphs that needs more than a graph.
    """
    nodes = spec_language.parse(spec, ('graph',)).nodes
    for node in nodes:
        if not node.entry.in_specs:
            valid = ', '.join(repr(entry.key) for entry in entries('graph') if entry.in_specs)
            raise SpecError(
                f'{node.entry.key} needs more than a graph and is called as '
                f'{node.entry.card.example}; encoders of graphs: {valid}'
            )
    parts = tuple(spec_language.build(node, {}) for node in nodes)
    return parts[0] if len(parts) == 1 else JoinedGraphFeatures(parts)


def feature_scale(
    features: Sequence[Float[np.ndarray, '_ F']],
) -> tuple[Float[np.ndarray, 'F'], Float[np.ndarray, 'F']]:
    """The mean and the standard deviation of each feature over all nodes of a data set, by which
    features of different units are made comparable before they are joined to others: `(f - mean) /
    std`. A feature that is the same everywhere has std 1, so that it becomes 0.

    Args:
      features: of each graph, without padding.

    Raises:
      ValueError: no graphs.
    """
    if not features:
        raise ValueError('feature_scale needs the features of at least one graph, got none')
    rows = np.concatenate([np.asarray(one, np.float64) for one in features])
    mean, std = rows.mean(0), rows.std(0)
    # Rounding leaves a standard deviation that is not quite 0.
    constant = std <= 1e-12 * np.maximum(np.abs(rows).max(0), 1e-300)
    return mean.astype(np.float32), np.where(constant, 1.0, std).astype(np.float32)
