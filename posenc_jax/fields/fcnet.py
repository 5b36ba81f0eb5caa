"""FcNet: residual blocks of rectified linear units, from location encoders."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.fields.network import Dense, Depth, FieldNetwork, Width, affine, usual_bound
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.bounds import Ge, Lt
from posenc_jax.protocol.registry import Card, register


def residual_block(
    x: Float[Array, '... D'],
    first: tuple[Array, Array],
    second: tuple[Array, Array],
    dropout: float = 0.0,
    key: Array | None = None,
) -> Float[Array, '... D']:
    """`x + relu(W2 drop(relu(W1 x + b1)) + b2)`.

    Args:
      first, second: matrix and vector of both layers.
      dropout: probability that a unit is dropped.
      key: draws which; None drops none.
    """
    h = jax.nn.relu(affine(x, *first))
    if key is not None and dropout:
        kept = jax.random.bernoulli(key, 1 - dropout, h.shape)
        h = jnp.where(kept, h / (1 - dropout), 0.0)
    return x + jax.nn.relu(affine(h, *second))


@register(
    'fcnet',
    kind='field',
    card=Card(
        name='FcNet',
        example='fcnet(width=32, blocks=2)',
        use_when=(
            'You predict from places on the globe and want the network of the papers on this.'
        ),
        needs_training=True,
    ),
)
class FcNet(FieldNetwork):
    """A layer of rectified linear units, residual blocks with dropout, and a head without bias.

    `h = relu(W x + b)`, `h = h + relu(W2 drop(relu(W1 h + b1)) + b2)` for every block, and `y = V
    h`. Weights and biases are uniform within 1 / sqrt(d), d the inputs of a layer. Differs from the
    paper: nothing.

    Args:
      width: units of a hidden layer.
      blocks: how many residual blocks.
      dropout: probability that training drops a unit within a block.

    Reference: Rußwurm et al., arXiv 2310.06743.

    Example:
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('fcnet(width=16)', features=9, components=2, outputs=4)
      >>> network(jnp.zeros((5, 9)), jnp.zeros((5, 2))).shape
      (5, 4)
    """

    def __init__(
        self,
        width: Width = 256,
        blocks: Depth = 4,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.5,
        features: int = CONTEXT,
        outputs: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.inputs, self.outputs, self.dropout = features, outputs, dropout
        own = usual_bound(width)
        self.first = Dense(features, width, usual_bound(features), usual_bound(features), rngs)
        self.blocks = nnx.List(Dense(width, width, own, own, rngs) for _ in range(2 * blocks))
        self.head = Dense(width, outputs, own, None, rngs)

    def values(self, x, *, key=None, progress=None):
        h = jax.nn.relu(self.first(x))
        layers = [layer.weights for layer in self.blocks]
        for number, (one, two) in enumerate(zip(layers[::2], layers[1::2])):
            own = None if key is None else jax.random.fold_in(key, number)
            h = residual_block(h, one, two, self.dropout, own)
        return self.head(h)
