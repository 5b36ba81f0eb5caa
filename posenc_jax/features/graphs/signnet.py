"""SignNet: a network of the eigenvectors of a graph that does not depend on their signs."""

import dataclasses
from typing import Annotated, Literal

import jax.numpy as jnp
from flax import nnx

from posenc_jax.features.graphs.encoder import Features, GraphEncoder, GraphNetwork
from posenc_jax.features.graphs.lap_pe import LapPe, lap_pe_sign_invariant
from posenc_jax.features.graphs.networks import Mlp, SignalGIN, real_edges
from posenc_jax.protocol.bounds import Ge, Le, Size
from posenc_jax.protocol.registry import Card, register

Combine = Literal['concat', 'sum']
Layers = Annotated[int, Ge(1), Le(64)]


class SignNetwork(GraphNetwork):
    """The trained part of `signnet`; its arguments have the same names."""

    def __init__(
        self,
        vectors: int,
        layers: int,
        hidden: int,
        channels: int,
        combine: Combine,
        norm: bool,
        *,
        rngs: nnx.Rngs,
    ):
        self.width, self.combine = vectors, combine
        ends = [1, *[hidden] * (layers - 1), channels]
        phi = [Mlp((a, hidden, b), rngs) for a, b in zip(ends, ends[1:])]
        self.phi = SignalGIN(phi, norm)
        read = channels * (vectors if combine == 'concat' else 1)
        self.rho = Mlp((read, *[hidden] * (layers - 1), vectors), rngs)

    def __call__(self, features, nodes, adjacency, valid):
        edges = real_edges(adjacency, valid)
        v = features.astype(jnp.float32)  # a signal for each eigenvector
        # Of v and -v the same one comes first, so that rounding is the same too.
        first = jnp.take_along_axis(v, jnp.argmax(v != 0, -2, keepdims=True), -2)
        v = jnp.where(first < 0, -v, v)
        x = lap_pe_sign_invariant(lambda v: self.phi(v[..., None], edges, valid), v)
        # A column of zeros is an eigenvector that a small graph does not have.
        present = (v != 0).any(-2, keepdims=True)[..., None] & valid[..., None, None]
        x = jnp.where(present, x, 0.0)  # [..., N, k, c]
        x = x.reshape(*x.shape[:-2], -1) if self.combine == 'concat' else x.sum(-2)
        return jnp.where(valid[..., None], self.rho(x), 0.0)


@register(
    'signnet',
    kind='graph',
    card=Card(
        name='SignNet',
        example='signnet(vectors=3, layers=2, hidden=8)',
        use_when=(
            'You use eigenvectors of graphs and want a result that does not depend on their signs.'
        ),
        share='model',
        needs_training=True,
    ),
)
@dataclasses.dataclass(frozen=True)
class SignNet(GraphEncoder):
    """A trained function of Laplacian eigenvectors that is the same for both signs of each of them.

    `f(v_1, ..., v_k) = rho([phi(v_j) + phi(-v_j)]_(j=1..k))`. phi is a network of the graph, shared
    by all eigenvectors, `x_i <- MLP(x_i + sum of the neighbours' x)` with one channel at first; its
    MLPs have two maps, and there is no nonlinearity between the layers. The results of a node are
    concatenated, and rho is an MLP of them. So all 2^k choices of signs have the same result,
    exactly. A rotation of eigenvectors of one eigenvalue still changes it. `encode` gives the
    eigenvectors of `lap_pe`, and `network` the module that reads them inside the model, whose k
    features replace them.

    Differs from the paper: batch norm is replaced. Between the layers of phi each channel of a
    signal gets mean 0 and deviation 1 over the nodes of its own graph, in evaluation too, where
    batch norm has the nodes and signals of a whole batch in training and running means in
    evaluation. So a channel that is the same at all nodes becomes 0, and no result depends on other
    graphs. A shift is trained, and no scale, which the next map has. rho has no norm. Graphs of
    several components are those of `lap_pe`, where the code leaves out an arbitrary eigenvector for
    0. Eigenvectors that a graph of n <= k nodes lacks are zeros behind phi, also where results are
    concatenated.

    Args:
      vectors: k.
      layers: of phi, and linear maps of rho.
      hidden: units of both; the paper has the model's width.
      channels: results of phi for an eigenvector and a node.
      combine: 'concat'; 'sum' adds the results of the eigenvectors up before rho, which suits
        graphs of different sizes.
      norm: whether phi has a norm between its layers.

    Reference: Lim et al., arXiv 2202.13013.

    Example:
      >>> import numpy as np
      >>> from posenc_jax.features.graphs import make_graph_features
      >>> encoder = make_graph_features('signnet(vectors=2, layers=2, hidden=4)')
      >>> path = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
      >>> network = encoder.network(1, rngs=nnx.Rngs(0))
      >>> given = jnp.ones((3, 1)), jnp.asarray(path, bool), jnp.ones(3, bool)
      >>> v = jnp.asarray(encoder.encode(path))
      >>> bool((network(v, *given) == network(v * jnp.array([1, -1]), *given)).all())
      True
    """

    vectors: Features = 8
    layers: Layers = 8
    hidden: Size = 64
    channels: Size = 4
    combine: Combine = 'concat'
    norm: bool = True

    standardised = False

    @property
    def width(self):
        return self.vectors

    def compute(self, adjacency, rng, draw):
        return LapPe(self.vectors, signs='canonical').compute(adjacency, rng, draw)

    def network(self, node_width, *, rngs):
        return SignNetwork(
            self.vectors,
            self.layers,
            self.hidden,
            self.channels,
            self.combine,
            self.norm,
            rngs=rngs,
        )
