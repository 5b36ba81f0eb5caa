"""GRIT's attention: the vectors of nodes and of their pairs change each other."""

from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.base.products import linear
from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.layers import normal
from posenc_jax.layer.stream import StreamingMixer
from posenc_jax.methods.node_pairs import features_of_graph
from posenc_jax.mixers.gin import edges_of
from posenc_jax.protocol.bounds import Count
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

LARGEST_LOGIT = 5.0


def grit_signed_root(x: Float[Array, '...']) -> Float[Array, '...']:
    """`sign(x) sqrt|x|`, with the derivative 0 at 0.

    Example:
      >>> grit_signed_root(jnp.array([-4.0, 0.0, 9.0])).tolist()
      [-2.0, 0.0, 3.0]
    """
    some = x != 0
    return jnp.where(some, jnp.sign(x) * jnp.sqrt(jnp.where(some, jnp.abs(x), 1.0)), 0.0)


def grit_attention(
    q: Float[Array, 'B n N H'],
    k: Float[Array, 'B n N H'],
    v: Float[Array, 'B n N H'],
    scale: Float[Array, 'B n n N H'],
    shift: Float[Array, 'B n n N H'],
    w_a: Float[Array, 'N H'],
    w_e: Float[Array, 'N H H'],
    seen: Bool[Array, '#B n n'],
) -> tuple[Float[Array, 'B n N H'], Float[Array, 'B n n N H']]:
    """`y_i = sum_j a_ij (v_j + W_E e_ij)`, `e_ij = relu(rho((q_i + k_j) * w_ij) + b_ij)` with
    rho = `grit_signed_root`, `a_i = softmax_j(clip(w_A . e_ij, -5, 5))`; returns y and e.

    Args:
      q, k, v: of the nodes.
      scale, shift: w and b, of the pairs (query, key).
      w_a, w_e: for each head.
      seen: which keys a query sees; a query without any gets 0.
    """
    pairs = jax.nn.relu(grit_signed_root((q[:, :, None] + k[:, None]) * scale) + shift)
    # Sums of products, since matrix products for each head would first copy all vectors of pairs
    # into an order with the heads in front.
    s = (pairs * w_a).sum(-1)
    s = jnp.where(seen[..., None], jnp.clip(s, -LARGEST_LOGIT, LARGEST_LOGIT), -1e30)
    a = jnp.where(seen[..., None], jax.nn.softmax(s, axis=2), 0.0)
    of_pairs = (a[..., None] * pairs).sum(2)
    y = jnp.einsum('bijn,bjnh->binh', a, v) + jnp.einsum('binh,nhg->bing', of_pairs, w_e)
    return y, pairs


@register(
    'grit',
    kind='mixer',
    card=Card(
        name='GRIT',
        example='grit()',
        use_when=(
            'You have graphs whose pairs of nodes have codes of their own, such as random walks.'
        ),
        needs_training=True,
    ),
)
class Grit(StreamingMixer):
    """Attention among the nodes of a graph in which every pair of nodes has a vector of its own.

    `y_i = sum_j a_ij (W_V x_j + W_E e'_ij)`, `a_i = softmax_j(clip(w_A . e'_ij, -5, 5))`,
    `e'_ij = relu(rho((W_Q x_i + W_K x_j) * W_w e_ij) + W_b e_ij)`, rho(x) = sign(x) sqrt|x|. A
    layer returns `W_h (theta_1 y_i + log(1 + deg(i)) theta_2 y_i)` and passes `e_ij + W_O e'_ij`
    on to the next one, as a stream. The pairs begin as random walk probabilities R_ij, from query i
    to key j, in their first K entries. A task has the features `features='rrwp(steps=K)'`. Where
    tokens have features of edges, 'graph_edges' [B, L, 1, n, F], these are the next F entries, and
    0 for pairs without an edge. Nodes see all nodes of their graph, and memory is quadratic in
    their number.

    Differs from the paper: the linear maps of R_ij and of the features of edges, which it adds, are
    left to W_w and W_b of the first layer, which follow them; tasks here have graphs without
    features of edges. There are no bias vectors, and no batch norm, by which graphs of one batch
    would change each other. The layer stands in a pre-norm block, and the stream has no norm.
    theta_1 is 1 and theta_2 is 0 at first.

    Args:
      pair_width: entries of the vector of a pair, at least K, or K + F; 0 is model_dim.
      model_dim, heads, head_dim, layers, rngs: from the model.

    Raises:
      ValueError: at call, tokens that are no nodes of a graph, or have no feature 'graph_rrwp';
        more features of a pair than its vector has entries.

    Reference: Ma et al., arXiv 2305.17589.
    """

    sees_later: ClassVar[bool] = True

    def __init__(
        self,
        pair_width: Count = 0,
        model_dim: int = CONTEXT,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.pair_width = pair_width or model_dim
        inner, gain = heads * head_dim, (2 * layers) ** -0.5
        of_nodes = lambda: normal(
            rngs, (model_dim, heads, head_dim), model_dim, ('width', 'heads', None)
        )
        of_pairs = lambda: normal(
            rngs, (self.pair_width, heads, head_dim), self.pair_width, (None, 'heads', None)
        )
        self.w_q, self.w_k, self.w_v = of_nodes(), of_nodes(), of_nodes()
        self.w_scale, self.w_shift = of_pairs(), of_pairs()
        self.w_a = normal(rngs, (heads, head_dim), head_dim, ('heads', None))
        self.w_e = normal(rngs, (heads, head_dim, head_dim), head_dim, ('heads', None, None))
        number = lambda value: nnx.Param(
            jnp.full((heads, head_dim), value, jnp.float32), axes=('heads', None)
        )
        self.theta_1, self.theta_2 = number(1.0), number(0.0)
        self.w_out = normal(rngs, (inner, model_dim), inner, (None, 'width'), gain=gain)
        self.w_pairs = normal(rngs, (inner, self.pair_width), inner, (None, None), gain=gain)

    def begin_stream(self, tok: Tokens) -> Float[Array, '#B n n E']:
        """The walk probabilities and the edge features of the pairs, filled up with zeros."""
        given = " with features='rrwp(steps=...)'"
        found = [features_of_graph('grit', tok, 'graph_rrwp', given)]
        if 'graph_edges' in tok.feats:
            found.append(features_of_graph('grit', tok, 'graph_edges', ''))
        steps, *more = (a.shape[-1] for a in found)
        if (missing := self.pair_width - sum((steps, *more))) < 0:
            raise ValueError(
                f'grit has vectors of pair_width={self.pair_width} for pairs, which is less than '
                f'the {steps} steps of the walks'
                + ''.join(f' and the {width} features of an edge' for width in more)
            )
        node = jnp.broadcast_to(tok.rank[:, None, :, None], (len(found[0]), 1, tok.length, 1))
        found = [jnp.take_along_axis(a.astype(jnp.float32), node, axis=2) for a in found]
        if more:
            found[1] = jnp.where(edges_of('grit', tok)[..., None], found[1], 0.0)
        return jnp.pad(jnp.concatenate(found, -1), ((0, 0), (0, 0), (0, 0), (0, missing)))

    def whole(self, x, tok, stream):
        degrees = edges_of('grit', tok).sum(-1)

        def wide(a, w):
            found = linear(a.astype(jnp.float32), w[...].reshape(w.shape[0], -1))
            return found.reshape(*a.shape[:-1], *w.shape[1:])

        q, k, v = (wide(x, w) for w in (self.w_q, self.w_k, self.w_v))
        scale, shift = (wide(stream, w) for w in (self.w_scale, self.w_shift))
        w_a, w_e = self.w_a[...], self.w_e[...]
        y, pairs = grit_attention(q, k, v, scale, shift, w_a, w_e, _seen(tok))
        more = jnp.log1p(degrees.astype(jnp.float32))[..., None, None] * self.theta_2[...]
        y = y * (self.theta_1[...] + more)
        out = linear(y.reshape(*y.shape[:2], -1), self.w_out[...]).astype(x.dtype)
        return out, stream + linear(pairs.reshape(*pairs.shape[:3], -1), self.w_pairs[...])

    def start(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refuses to decode, and so do `fill` and `step`."""
        raise ValueError(
            'grit reads all nodes of a graph at once, so it cannot decode token by token; use '
            "attention with an encoding, e.g. 'nope()'"
        )

    fill = start
    step = start


def _seen(tok: Tokens) -> Bool[Array, '#B n n']:
    """Which nodes see which: real ones of the same graph."""
    same = jnp.ones((*tok.index.shape, tok.length), bool)
    if tok.segment is not None:
        same &= tok.segment[:, :, None] == tok.segment[:, None]
    if tok.valid is not None:
        same &= tok.valid[:, None]
    return same
