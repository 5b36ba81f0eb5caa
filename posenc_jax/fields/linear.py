"""One linear layer of features, the smallest network of location encoders."""

from flax import nnx

from posenc_jax.fields.network import Dense, FieldNetwork, usual_bound
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.registry import Card, register


@register(
    'linear',
    kind='field',
    card=Card(
        name='Linear',
        example='linear()',
        use_when='You want to know what the features alone can say.',
        needs_training=True,
    ),
)
class Linear(FieldNetwork):
    """A linear layer, which shows what the features alone can say.

    `y = V x + c`, weights and biases uniform within 1 / sqrt(F). Differs from the paper: nothing.

    Reference: Rußwurm et al., arXiv 2310.06743.

    Example:
      >>> import jax.numpy as jnp
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('linear()', features=9, components=2, outputs=4)
      >>> network(jnp.zeros((5, 9)), jnp.zeros((5, 2))).shape
      (5, 4)
    """

    def __init__(self, features: int = CONTEXT, outputs: int = CONTEXT, rngs: nnx.Rngs = CONTEXT):
        self.inputs, self.outputs = features, outputs
        bound = usual_bound(features)
        self.layer = Dense(features, outputs, bound, bound, rngs)

    def values(self, x, *, key=None, progress=None):
        return self.layer(x)
