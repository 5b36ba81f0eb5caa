"""D'OH: all weights of a network as fixed random combinations of one small vector."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from posenc_jax.base.memory import readable
from posenc_jax.fields.network import Dense, FieldNetwork, Width
from posenc_jax.language.spec import CONTEXT, MAX_BYTES
from posenc_jax.protocol.bounds import Count
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.registry import Card, register

Shape = tuple[int, int, bool, float]  # inputs, outputs, whether there are biases, initial std


def doh_weights(
    latent: Float[Array, ' D'], seed: Int[Array, ''], layers: Sequence[Shape]
) -> list[tuple[Float[Array, 'I O'], Float[Array, ' O'] | None]]:
    """`vec(W_l) = s_l P_l z`, `b_l = s_l Q_l z`, `s_l = std_l sqrt(3 / D)`.

    P_l and Q_l have normal entries that the seed alone decides. They are drawn anew at every call,
    one layer at a time, because they have D times as many numbers as the weights.

    Args:
      latent: z, at first uniform in (-1, 1), whose standard deviation is 1 / sqrt(3).
      seed: whole number.
      layers: inputs, outputs, whether there are biases, and the standard deviation of the weights.

    Returns:
      W and b of every layer.
    """
    made, size = [], latent.shape[0]
    for number, (inputs, outputs, biased, std) in enumerate(layers):
        of_weights, of_biases = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))
        product = lambda key, count: (
            std
            * math.sqrt(3 / size)
            * jnp.matmul(
                latent, jax.random.normal(key, (size, count)), precision=jax.lax.Precision.HIGHEST
            )
        )
        weight = product(of_weights, inputs * outputs).reshape(inputs, outputs)
        made.append((weight, product(of_biases, outputs) if biased else None))
    return made


@register(
    'doh',
    kind='field',
    card=Card(
        name="D'OH",
        example='doh(siren(width=16, layers=2), latent=64)',
        use_when=(
            'You have to store a signal in very few numbers; to compare with a small '
            'SIREN, since a measured claim is contrary.'
        ),
        needs_training=True,
    ),
)
class Doh(FieldNetwork):
    """Another network whose weights are fixed random combinations of a latent vector z, the only
    trained variable. A signal is then stored as z and an integer seed.

    `vec(W_l) = s_l P_l z`, `b_l = s_l Q_l z`; P_l and Q_l are normal and drawn from the seed.
    `s_l = std_l sqrt(3 / D)` gives W_l the standard deviation of the initial weights of the inner
    network, while z is uniform in (-1, 1). Differs from the paper: its exact scale was not found,
    so s_l is this package's; biases that an inner network starts at zero are random here too.

    Args:
      inner: the network, made of layers `W x + b` alone: siren, spder, mlp, fcnet or linear.
      latent: D, the size of z.
      seed: of the random matrices.

    Raises:
      ValueError: an inner network with other parameters, or random matrices of a layer that would
        take more than 1 GiB.

    Reference: Gordon et al., arXiv 2403.19163.

    Example:
      >>> from posenc_jax.fields import make_field
      >>> network = make_field('doh(siren(width=16, layers=2), latent=32)', features=2, outputs=1)
      >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))
      32
    """

    def __init__(
        self, inner: FieldNetwork, latent: Width = 1024, seed: Count = 0, rngs: nnx.Rngs = CONTEXT
    ):
        dense = [(path, m) for path, m in nnx.iter_modules(inner) if isinstance(m, Dense)]
        structure, state = nnx.split(inner)
        within = lambda path: any(path[: len(home)] == home for home, _ in dense)
        other = [path for path, _ in nnx.to_flat_state(state) if not within(path)]
        still = [path for path, module in dense if not module.std]
        if other or still:
            name = '.'.join(map(str, (other or still)[0]))
            raise ValueError(
                f'doh makes the weights of networks of layers W x + b alone, with random initial '
                f'weights, such as siren() or mlp(); {type(inner).card.key} has {name}'
            )
        self.takes_features = inner.takes_features
        self.inputs = inner.inputs
        self.outputs = inner.outputs
        self.structure = structure
        self.paths = tuple(path for path, _ in dense)
        self.shapes = tuple(
            (*module.weight.shape, module.bias is not None, module.std) for _, module in dense
        )
        needed = 4 * latent * max(i * o for i, o, _, _ in self.shapes)
        if needed > MAX_BYTES:
            raise ValueError(
                f'doh latent={latent}: the random matrix of the largest layer would take '
                f'{readable(needed)}, at most {readable(MAX_BYTES)} are accepted; make latent or '
                'the inner network smaller'
            )
        self.seed = Constant(jnp.asarray(seed, jnp.int32), axes=())
        drawn = jax.random.uniform(rngs.params(), (latent,), minval=-1.0)
        self.latent = nnx.Param(drawn, axes=(None,))

    def made(self) -> FieldNetwork:
        """The inner network with the weights that z and the seed give it."""
        weights = doh_weights(self.latent[...], self.seed[...], self.shapes)
        flat = {
            (*path, name): value
            for path, pair in zip(self.paths, weights)
            for name, value in zip(('weight', 'bias'), pair)
            if value is not None
        }
        return nnx.merge(self.structure, nnx.traversals.unflatten_mapping(flat))

    def values(self, x, *, key=None, progress=None):
        return self.made().values(x, key=key, progress=progress)
