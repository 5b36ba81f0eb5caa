"""A gated recurrent unit with biases on input and state, and its run along a padded sequence."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


def uniform(rngs: nnx.Rngs, bound: float, *shape: int) -> nnx.Param:
    """A parameter drawn from U(-bound, bound), float32."""
    return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))


def gru_update(
    from_x: Float[Array, '... rzn'], from_h: Float[Array, '... rzn'], h: Float[Array, '... H']
) -> Float[Array, '... H']:
    """`(1 - z) n + z h`, `r = sigmoid(x_r + h_r)`, `z = sigmoid(x_z + h_z)`, `n = tanh(x_n + r
    h_n)`.

    Args:
      from_x: `W_x x + b_x`, the parts r, z, n one after the other.
      from_h: `W_h h + b_h`, in the same order. r multiplies h_n including its bias, so the two
        biases cannot be merged.
      h: the previous state.
    """
    x_r, x_z, x_n = jnp.split(from_x, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(from_h, 3, axis=-1)
    z = jax.nn.sigmoid(x_z + h_z)
    return (1 - z) * jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n) + z * h


class GRU(nnx.Module):
    """A GRU with the parameters of torch.nn.GRU, which include the bias that `nnx.GRUCell` lacks.

    `h <- gru_update(W_x x + b_x, W_h h + b_h, h)`. Weights and biases are drawn from
    `U(-1/sqrt(H), 1/sqrt(H))`.

    Args:
      inputs, features: widths of x and of the state, H.

    Example:
      >>> GRU(2, 3, rngs=nnx.Rngs(0))(jnp.zeros((5, 3)), jnp.ones((5, 2))).shape
      (5, 3)
    """

    def __init__(self, inputs: int, features: int, *, rngs: nnx.Rngs):
        draw = lambda *shape: uniform(rngs, features**-0.5, *shape)
        self.w_x, self.w_h = draw(inputs, 3 * features), draw(features, 3 * features)
        self.b_x, self.b_h = draw(3 * features), draw(3 * features)
        self.features = features

    def __call__(self, h: Float[Array, '... H'], x: Float[Array, '... I']) -> Float[Array, '... H']:
        """The state after one input."""
        return gru_update(x @ self.w_x[...] + self.b_x[...], h @ self.w_h[...] + self.b_h[...], h)

    def run(
        self, x: Float[Array, 'B S I'], valid: Bool[Array, 'B S'], *, reverse: bool = False
    ) -> tuple[Float[Array, 'B S H'], Float[Array, 'B H']]:
        """The states along the valid rows, starting from zero, and the state after all of them.

        Rows that are not valid do not change the state and are zero in the result. `reverse` runs
        from the last row to the first.
        """
        w, b = self.w_h[...], self.b_h[...]  # the scan closes over arrays, not over NNX variables

        def step(h, row):
            from_x, valid = row
            h = jnp.where(valid[:, None], gru_update(from_x, h @ w + b, h), h)
            return h, jnp.where(valid[:, None], h, 0)

        rows = jnp.swapaxes(x @ self.w_x[...] + self.b_x[...], 0, 1)
        last, states = jax.lax.scan(
            step, jnp.zeros((len(x), self.features), x.dtype), (rows, valid.T), reverse=reverse
        )
        return jnp.swapaxes(states, 0, 1), last
