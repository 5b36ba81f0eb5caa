"""Tree positional encoding: the branches to a node, weighted by trained powers of the level."""

from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.methods.tree_paths import complete_tree, read_paths
from posenc_jax.protocol.bounds import CONTEXT, Ge, Le, Size
from posenc_jax.protocol.encoding import drawn_uniform
from posenc_jax.protocol.families import Embedding, check_token_width
from posenc_jax.protocol.registry import Card, register

Number = Annotated[int, Ge(1), Le(256)]


def tree_pe_weights(raw: Float[Array, 'm'], levels: int, width: int) -> Float[Array, 'levels m']:
    """`p^l sqrt((1 - p^2) D/2)` with `p = tanh(raw)`, for the levels l, float32.

    Example:
      >>> tree_pe_weights(jnp.arctanh(jnp.array([0.5])), 3, 8).round(4).ravel().tolist()
      [1.7321, 0.866, 0.433]
    """
    raw = raw.astype(jnp.float32)
    p, small = jnp.tanh(raw), jnp.exp(-jnp.abs(raw))
    rest = 2 * small / (1 + small**2)  # sqrt(1 - p^2) = 1 / cosh(raw), also where p rounds to 1
    factors = jnp.concatenate([jnp.ones((1, len(p))), jnp.broadcast_to(p, (levels - 1, len(p)))])
    return jnp.cumprod(factors, axis=0) * (rest * (width / 2) ** 0.5)


def tree_pe_features(
    paths: Int[Array, '#B L levels'], branches: int, weights: Float[Array, 'levels m']
) -> Float[Array, '#B L F']:
    """For each level, each branch and each of m weights, the weight of the level if the path takes
    that branch there, else 0; in this order, F = levels branches m.

    Args:
      paths: the branches from the node to the root, see `tree_paths`.
    """
    taken = (paths[..., None] == 1 + jnp.arange(branches)).astype(jnp.float32)
    return (taken[..., None] * weights[:, None]).reshape(*paths.shape[:2], -1)


@register(
    'tree_pe',
    kind='encoding',
    card=Card(
        name='Tree positional encoding',
        example='tree_pe(levels=8)',
        share='model',
        needs_training=True,
    ),
)
class TreePE(Embedding):
    """Adds a code of the branches on the way from a node up to the root of its tree.

    `x_u + y_u`, `y_u[l, b, f] = [b_l = b] p_f^l sqrt((1 - p_f^2) D/2)`, `p = tanh(raw)`, where b_l
    is the branch l levels above the node, and `raw` is trained. The step to a child is one affine
    map for all nodes: what is there moves one level further, times p. The root has zeros, to which
    a linear map (`features`) adds its bias, as to all codes. Positions are paths, which
    `tree_paths` makes; with `cut=True` it keeps the nearest `levels` steps of deeper nodes, as the
    paper does, so that nodes which differ beyond them have one code. A token in front of a tree
    gets the code of the root.

    Differs from the paper: there are 16 levels; the default of the released code, 256, needs D of
    at least 512. Without `features` m is D / (levels branches), which must be whole; the code
    always maps linearly where widths differ.

    Args:
      branches: largest number n of children of a node.
      levels: number of components of a position, one for each level.
      features: m, the number of trained powers. If levels branches m is not D, a trained linear map
        with a bias brings the code to D. None takes m = D / (levels branches), without a map.
      model_dim: D, from the model.
      rngs: draws `raw`, uniform within sqrt(3/m) as in the released code, and the map.

    Raises:
      ValueError: features=None and a D that is no multiple of levels branches; at call, positions
        that are not integers [B, L, levels] or, where they are known, no paths (those that are
        traced give NaN), or token vectors that are not D wide.

    Reference: Shiv and Quirk, Novel positional encodings to enable tree-based transformers, NeurIPS
      2019.
    """

    def __init__(
        self,
        branches: Number = 2,
        levels: Number = 16,
        features: Size | None = None,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        slots = levels * branches
        if features is None and model_dim % slots:
            raise ValueError(
                f'tree_pe has levels * branches = {slots} entries, which must divide '
                f'model_dim={model_dim}; give features=1 or more, which a linear map brings to '
                'model_dim, or another number of levels'
            )
        count = model_dim // slots if features is None else features
        self.branches, self.levels, self.width = branches, levels, model_dim
        self.raw = drawn_uniform(rngs, (count,), (3 / count) ** 0.5, (None,))
        rows = slots * count
        mapped, most = rows != model_dim, (6 / (rows + model_dim)) ** 0.5
        draw = lambda: drawn_uniform(rngs, (rows, model_dim), most, (None, 'width'))
        zeros = lambda: nnx.Param(jnp.zeros(model_dim, jnp.float32), axes=('width',))
        self.map: Any = draw() if mapped else None
        self.bias: Any = zeros() if mapped else None

    def sample_positions(self, length: int) -> Int[np.ndarray, '1 L levels']:
        """Positions for a picture: the nodes of a complete tree, level by level."""
        return complete_tree(length, self.branches, self.levels)[None]

    def table(self, tok, width):
        check_token_width('tree_pe', self.width, width)
        paths, known = read_paths('tree_pe', tok, self.branches, self.levels, cut=True)
        weights = tree_pe_weights(self.raw[...], self.levels, self.width)
        code = tree_pe_features(paths, self.branches, weights)
        if self.map is not None:
            code = jnp.matmul(code, self.map[...], precision='highest') + self.bias[...]
        return jnp.where(known[..., None], code, jnp.nan)
