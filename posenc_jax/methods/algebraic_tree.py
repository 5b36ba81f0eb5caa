"""Algebraic positional encodings of trees: products of trained rotations along paths."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num

from posenc_jax.methods.algebraic_pe import Decay, algebraic_pe_start, branch_less_one, decayed
from posenc_jax.methods.tree_paths import complete_tree, read_paths, root_first, tree_steps
from posenc_jax.methods.turned import Turned, moved_by
from posenc_jax.protocol.bounds import CONTEXT, Ge, Le, Multiple
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens


@jax.checkpoint
def algebraic_tree(
    x: Num[Array, 'B L heads H'], paths: Int[Array, '#B L levels'], b: Float[Array, 'n K H H']
) -> Float[Array, 'B L heads H']:
    """`W_b1^T W_b2^T .. W_bm^T x`, where b1 .. bm are the branches from the root to the node and
    `W_b = exp(B_b - B_b^T)`, float32.

    Each level multiplies by the matrices of all n branches and keeps one of the products, so the
    work grows with n; to gather a matrix for each token would take H^2 numbers in the place of H.

    Args:
      paths: the branches from the node to the root, see `tree_paths`.
      b: a matrix for each branch and key head.
    """
    less_one, numbers = branch_less_one(b), 1 + jnp.arange(len(b))

    def step(x, taken):
        def child(moved, branch):
            number, u = branch
            on = (taken == number).astype(jnp.float32)[..., None, None]
            return moved + on * moved_by(x, u, transposed=True), None

        return jax.lax.scan(child, x, (numbers, less_one))[0], None

    return jax.lax.scan(step, x.astype(jnp.float32), jnp.moveaxis(paths, -1, 0))[0]


@register(
    'algebraic_tree',
    kind='encoding',
    card=Card(name='Algebraic PE, trees', example='algebraic_tree(levels=8)', needs_training=True),
)
class AlgebraicTree(Turned):
    """Multiplies queries and keys by the product of the rotations of the branches to their node.

    `q'_u = M(u) q_u`, `k'_v = M(v) k_v`, `M(u) = W_b1^T W_b2^T .. W_bm^T` for the branches from the
    root to the node, `W_b = exp(B_b - B_b^T)`. Logits have `M(u)^T M(v)`, in which the way from the
    root to the nearest common ancestor cancels. So they depend on the way from u up to it and down
    to v alone. With one branch it is `algebraic_pe` with W^T. Positions are paths, which
    `tree_paths` makes. Each W_b starts as that of `algebraic_pe`.

    Differs from the paper: each head has matrices of its own for all branches, as the paper says;
    those of its code are shared by all heads. As `algebraic_pe`.

    Args:
      branches: largest number n of children of a node.
      levels: number of components of a position. Deeper trees are refused, also as the paths that
        `tree_paths(cut=True)` makes: the way to a common ancestor is not known from them.
      decay: multiplies each logit by decay^(number of steps between the nodes), 0.98 in the
        released code; None does not.
      head_dim, kv_heads: H and K, from the model.

    Raises:
      ValueError: at call, positions that are not integers [B, L, levels] or, where they are known,
        no paths; those that are traced give NaN.

    Reference: Kogkalidis, Bernardy, Garg, arXiv 2312.16045.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('algebraic_tree(levels=2)', head_dim=2, kv_heads=1)
      >>> nodes = pj.Tokens.of(positions=[[[0, 0], [1, 0], [2, 1]]])
      >>> part.turned(jnp.ones((1, 3, 1, 2)), nodes)[0, :, 0].round(2).tolist()
      [[1.0, 1.0], [-0.3, 1.38], [-1.33, 0.49]]
    """

    def __init__(
        self,
        branches: Annotated[int, Ge(1), Le(256)] = 2,
        levels: Annotated[int, Ge(1), Le(256)] = 16,
        decay: Decay = None,
        head_dim: Annotated[int, Multiple(2)] = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        self.branches, self.components = branches, levels
        self.decay, self.head_dim = decay, head_dim
        first = jnp.broadcast_to(
            algebraic_pe_start(head_dim), (branches, kv_heads, head_dim, head_dim)
        )
        self.b = nnx.Param(first, axes=(None, 'kv_heads', None, None))

    def sample_positions(self, length: int) -> Int[np.ndarray, '1 L levels']:
        """Positions for a picture: the nodes of a complete tree, level by level."""
        return complete_tree(length, self.branches, self.components)[None]

    def paths(self, tok: Tokens) -> tuple[Int[Array, '#B L levels'], Bool[Array, '#B L']]:
        """Paths of tokens, and which are paths, see `read_paths`."""
        return read_paths('algebraic_tree', tok, self.branches, self.components)

    def turned(self, x, tok):
        paths, known = self.paths(tok)
        found = algebraic_tree(x, paths, self.b[...])
        return jnp.where(known[..., None, None], found, jnp.nan).astype(x.dtype)


class DecayedTree(AlgebraicTree, where=lambda given: given['decay'] is not None):
    """With `decay`, which changes the logits. Paths from the root are features of the tokens."""

    logits = decayed

    def project(self, q, k, v, tq, tk, x=None):
        q, k, v, tq, tk = super().project(q, k, v, tq, tk, x)
        down = lambda tok: tok.with_feats(algebraic_tree=root_first(self.paths(tok)[0])[:, :, None])
        return q, k, v, down(tq), down(tk)

    def steps(self, tq, tk) -> Num[Array, '#B T S']:
        """Numbers of steps between nodes."""
        return tree_steps(*(tok.feats['algebraic_tree'][:, :, 0] for tok in (tq, tk)))
