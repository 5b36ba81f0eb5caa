"""Graphormer: vectors of degrees, and biases of distances and of the edges of shortest paths."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.methods.node_pairs import NodePairBias, features_of_graph
from posenc_jax.protocol.bounds import CONTEXT, Ge, Le, Size, Symbols
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.families import Embedding
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import known_range, lookup_rows

STD = 0.02  # of all initial values
UNREACHABLE, GRAPH_TOKEN = -1, -2  # in the place of a distance


def graphormer_spatial(
    table: Float[Array, 'heads C'], distance: Int[Array, '#B L n']
) -> Float[Array, '#B L heads n']:
    """`S[d(i, j), h]`, float32, of every node i with every node j.

    Args:
      table: an entry for each distance 0 .. C - 3, then one for larger distances and for pairs
        without a path (-1), and one for pairs with a token of the whole graph (-2).
      distance: of the pairs; a number below -2 gives NaN.

    Example:
      >>> table = jnp.array([[5.0, 6.0, 7.0, 8.0]])
      >>> graphormer_spatial(table, jnp.array([[[0, 1, -1, -2, 9]]]))[0, 0].tolist()
      [[5.0, 6.0, 7.0, 8.0, 7.0]]
    """
    far = table.shape[1] - 2
    column = jnp.where(distance == UNREACHABLE, far, jnp.minimum(distance, far))
    column = jnp.where(distance == GRAPH_TOKEN, far + 1, column)
    column = jnp.where(distance < GRAPH_TOKEN, far + 2, column)  # in no table
    return jnp.moveaxis(jnp.take(table, column, axis=1, mode='fill', fill_value=jnp.nan), 0, 2)


def graphormer_edge(
    edges: Float[Array, 'E heads'],
    hops: Float[Array, 'hops heads heads'],
    path: Int[Array, '#B L n hops C'],
) -> Float[Array, '#B L heads n']:
    """`1 / m sum_(t < m) (E[e_t] W_t)_h` over the m first edges e_t of the path from i to j.

    float32; 0 where there is no path. Several columns of types are averaged.

    Args:
      edges: E, for each type.
      hops: W, for each place in a path, of heads that are read and heads that are written.
      path: the types of the edges of a path, -1 behind its end.
    """
    # What an edge adds at its place in a path: a row for each place and type.
    added = jnp.einsum('eh,thg->teg', edges, hops, precision=jax.lax.Precision.HIGHEST)
    place = jnp.arange(len(hops))[:, None] * len(edges)
    found = jnp.take(added.reshape(-1, added.shape[2]), place + jnp.maximum(path, 0), axis=0)
    found = jnp.where((path >= 0)[..., None], found, 0.0).mean(-2)  # [B, L, n, hops, heads]
    count = (path[..., 0] >= 0).sum(-1)
    return jnp.swapaxes(found.sum(-2) / jnp.maximum(count, 1)[..., None], 2, 3)


def graphormer_degree(
    into: Float[Array, 'M D'], out_of: Float[Array, 'M D'], degree: Int[Array, '#B L']
) -> Float[Array, '#B L D']:
    """`z_in[deg(i)] + z_out[deg(i)]`, which is added to the vectors of nodes; NaN for a degree that
    is not in the tables.

    Args:
      into, out_of: z_in and z_out, a row for each degree 0 .. M - 1.
      degree: of the nodes, the number of their neighbours.

    Reference: Ying et al., arXiv 2106.05234.

    Example:
      >>> table = jnp.array([[0.0], [1.0], [2.0]])
      >>> graphormer_degree(table, 10 * table, jnp.array([[2, 1, 1]])).ravel().tolist()
      [22.0, 11.0, 11.0]
    """
    return lookup_rows(into, degree) + lookup_rows(out_of, degree)


def _check_below(
    user: str,
    what: str,
    values: Int[Array, '...'],
    count: int,
    argument: str,
    valid: Bool[Array, '#B L'] | None = None,
):
    """Refuses whole numbers of real tokens that are in no table, unless they are traced."""
    known = known_range(values, valid)
    if known is not None and known[1] >= count:
        raise ValueError(
            f'{user}: {what} is {known[1]}, not in 0 .. {count - 1}; use {argument}={known[1] + 1}'
        )


def whole(user: NodePairBias, pairs, ndim: int) -> Int[Array, '#B L n *F']:
    """The whole numbers that a feature of pairs has.

    Raises:
      ValueError: a feature of another type or shape.
    """
    if pairs.ndim != ndim or not jnp.issubdtype(pairs.dtype, jnp.integer):
        raise ValueError(
            f'{user.card.key}: the feature {user.feature!r} must be integers of {ndim} axes, got '
            f'{pairs.dtype} {pairs.shape}'
        )
    return pairs


@register(
    'graphormer_spatial',
    kind='encoding',
    card=Card(
        name='Graphormer, spatial',
        example='graphormer_spatial(distances=4)',
        share='model',
        relative=True,
        needs_training=True,
    ),
)
class GraphormerSpatial(NodePairBias):
    """Adds a trained number for the distance of two nodes to the logits, for nodes of a graph.

    `logit_ij = q_i . k_j / sqrt(H) + S[d(i,j), h]`, d the number of edges of a shortest path. Pairs
    without a path have an entry of their own, which all distances from `distances` on share. Pairs
    with a token of the whole graph, on either side, have another one. A task has the features
    `features='graphormer_spatial()'`. It does not tell apart graphs with the same distances from
    every node, such as the dodecahedron and the Desargues graph.

    Differs from the paper: the rows of the table are not shifted by one for padding, which is
    masked. No pair is hidden: its code can refuse keys beyond a distance that is larger than all
    entries of its table by default. A model here reads the mean of the nodes and has no graph
    token; a caller who puts one in front gives its distances by `graphormer_with_token`.

    Args:
      distances: how many distances have an entry; the code has 510.
      heads, rngs: from the model.

    Raises:
      ValueError: at call, tokens without the feature 'graph_distance', a fractional one, or more
        nodes than it has (NaN in a compiled program).

    Reference: Ying et al., arXiv 2106.05234.
    """

    feature = 'graph_distance'

    def __init__(self, distances: Symbols = 510, heads: int = CONTEXT, rngs: nnx.Rngs = CONTEXT):
        self.distances = drawn_normal(rngs, (heads, distances + 2), STD, ('heads', None))

    def rows(self, pairs):
        return graphormer_spatial(self.distances[...], whole(self, pairs, 3))


@register(
    'graphormer_edge',
    kind='encoding',
    card=Card(
        name='Graphormer, edges',
        example='graphormer_edge(hops=3, types=2)',
        use_when=(
            'You have graphs with features of edges, which a model on pairs of nodes should read.'
        ),
        share='model',
        relative=True,
        needs_training=True,
    ),
)
class GraphormerEdge(NodePairBias):
    """Adds the mean of what the edges of a shortest path say to the logits, for nodes of a graph.

    `logit_ij = q_i . k_j / sqrt(H) + 1/m sum_(t<m) sum_g W_t[g, h] E[e_t, g]` over the first
    `m <= hops` edges e_t of a shortest path from i to j; nothing is added for a node itself and
    where there is no path. A task has the features `features='graphormer_edge(hops=...)'`, whose
    edges have the type 0 alone. Types of a user are read by `graphormer_path_edges`; several
    columns of types are averaged. Among several shortest paths the order of the nodes decides, so
    it is independent of the order where shortest paths are unique or all edges have one type.

    Differs from the paper: places behind the end of a path add nothing. In the code the embedding
    of padding is drawn like the others and never trained, so each such place adds a constant. There
    are matrices for `hops` places, as the others of its 128 are never read.

    Args:
      hops: how many edges of a path are read; m is their number.
      types: how many types of edges there are.
      heads, rngs: from the model.

    Raises:
      ValueError: at call, tokens without the feature 'graph_path', fractional types, paths of
        another number of hops, and more nodes than it has or types beyond the table (NaN in a
        compiled program).

    Reference: Ying et al., arXiv 2106.05234.
    """

    feature = 'graph_path'

    def __init__(
        self,
        hops: Annotated[int, Ge(1), Le(128)] = 5,
        types: Symbols = 1,
        heads: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.edges = drawn_normal(rngs, (types, heads), STD, (None, None))
        self.hops = drawn_normal(rngs, (hops, heads, heads), STD, (None, None, 'heads'))

    @property
    def graph_encoder(self):
        return f'graphormer_edge(hops={len(self.hops[...])})'

    def rows(self, pairs):
        path = whole(self, pairs, 5)
        hops, types = len(self.hops[...]), len(self.edges[...])
        if path.shape[3] != hops:
            raise ValueError(
                f'graphormer_edge reads paths of hops={hops} edges, got {path.shape[3]}; give the '
                'same hops to the features'
            )
        rows = graphormer_edge(self.edges[...], self.hops[...], jnp.minimum(path, types - 1))
        _check_below('graphormer_edge', 'the type of an edge', path, types, 'types')
        beyond = (path >= types).any((-2, -1))[:, :, None]
        return jnp.where(beyond, jnp.nan, rows)


@register(
    'graphormer_degree',
    kind='encoding',
    card=Card(
        name='Graphormer, degrees',
        example='graphormer_degree(degrees=24)',
        use_when='You have graphs in which the number of neighbours of a node tells much.',
        share='model',
        relative=True,
        needs_training=True,
    ),
)
class GraphormerDegree(Embedding):
    """Adds two trained vectors of the degree of a node to its vector, for nodes of a graph.

    `x_i + z_in[deg(i)] + z_out[deg(i)]`: graphs here have no direction, so both degrees are the
    number of neighbours, as for such graphs in the paper. It reads the feature 'adjacency', which
    every task of graphs gives: a token has the row of its node, whose columns are the nodes of its
    graph. They are not the tokens of the row, one by one, so a column of padding must be 0, as it
    is in the tasks; a row of padding is not read. Differs from the paper: nothing.

    Args:
      degrees: rows of each table, for the degrees 0 .. degrees - 1.
      model_dim, rngs: from the model.

    Raises:
      ValueError: at call, tokens without the feature 'adjacency', or a degree beyond the tables
        (NaN in a compiled program).

    Reference: Ying et al., arXiv 2106.05234.

    Example:
      >>> import posenc_jax as pj
      >>> star = jnp.array([[[0, 1, 1], [1, 0, 0], [1, 0, 0]]])
      >>> tok = pj.Tokens.of(length=3).with_feats(adjacency=star[:, :, None])
      >>> x = pj.make('graphormer_degree()', model_dim=2).embed(jnp.zeros((1, 3, 2)), tok)
      >>> bool((x[0, 1] == x[0, 2]).all()), bool((x[0, 0] == x[0, 2]).any())
      (True, False)
    """

    def __init__(self, degrees: Size = 512, model_dim: int = CONTEXT, rngs: nnx.Rngs = CONTEXT):
        table = lambda: drawn_normal(rngs, (degrees, model_dim), STD, (None, 'width'))
        self.into, self.out_of = table(), table()

    @property
    def graph_encoder(self) -> str:
        """No encoder of graphs is needed."""
        return ''

    def table(self, tok, width):
        edges = features_of_graph('graphormer_degree', tok, 'adjacency', '')
        degree = (edges > 0).sum(-1)
        count = len(self.into[...])
        _check_below('graphormer_degree', 'a degree', degree, count, 'degrees', tok.valid)
        return graphormer_degree(self.into[...], self.out_of[...], degree)
