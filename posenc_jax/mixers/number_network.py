"""The small network on lists of numbers of the paper on positional attention. It has no residual
stream and no norms.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.attention.attend import attend
from posenc_jax.language.make import make
from posenc_jax.protocol.encoding import TOKEN_STAGE
from posenc_jax.protocol.tokens import Tokens


def concatenating_layer(
    x: Float[Array, 'B L D'],
    mixed: Float[Array, 'B L D'],
    w_in: Float[Array, 'twoD F'],
    b_in: Float[Array, 'F'],
    w_out: Float[Array, 'F D'],
    b_out: Float[Array, 'D'],
) -> Float[Array, 'B L D']:
    """`relu([x ; mixed] w_in + b_in) w_out + b_out`, `mixed` being the output of attention on x."""
    return jax.nn.relu(jnp.concatenate([x, mixed], axis=-1) @ w_in + b_in) @ w_out + b_out


def _linear(rngs, width_in, width_out):
    bound = (6 / (width_in + width_out)) ** 0.5
    kernel = jax.random.uniform(rngs.params(), (width_in, width_out), jnp.float32, -bound, bound)
    return nnx.Dict(w=nnx.Param(kernel), b=nnx.Param(jnp.zeros(width_out, jnp.float32)))


def _apply(linear, x):
    return x @ linear['w'][...] + linear['b'][...]


class NumberNetwork(nnx.Module):
    """Maps n numbers to n numbers through layers `x <- MLP([x ; attention(x)])`.

    A scratch token with zero input follows the n numbers and is dropped at the end; attention is
    not causal.

    Args:
      numbers: n.
      standard: False: attention weights depend on positions only (`positional_attention`), and the
        input holds only the values. True: the baseline, softmax attention with queries and keys
        from x; the input holds each value beside its one-hot position.
      width, heads, layers: D, N, and the number of layers.
      hidden: width of the hidden layer of the MLP; None for D.

    Raises:
      ValueError: no numbers or layers, or a width that the heads do not divide.

    Reference: Back de Luca, Giapitzakis, Yang, Veličković, Fountoulakis, arXiv 2410.01686.

    Example:
      >>> NumberNetwork(8, standard=False, rngs=nnx.Rngs(0))(jnp.ones((2, 8))).shape
      (2, 8)
    """

    def __init__(
        self,
        numbers: int,
        *,
        standard: bool,
        width: int = 64,
        heads: int = 2,
        layers: int = 4,
        hidden: int | None = None,
        rngs: nnx.Rngs,
    ):
        if numbers < 1 or layers < 1:
            raise ValueError(
                f'NumberNetwork needs at least 1 number and 1 layer, got {numbers=}, {layers=}'
            )
        if width % heads:
            raise ValueError(f'{heads} heads do not divide a width of {width}')
        self.standard, self.heads, self.tokens = standard, heads, numbers + 1
        hidden = hidden or width
        spec = 'nope()' if standard else f'positional_attention(max_len={self.tokens})'
        sizes = dict(heads=heads, head_dim=width // heads)
        self.encodings = nnx.List(
            [make(spec, causal=False, rngs=rngs, **sizes) for _ in range(layers)]
        )
        self.inputs = _linear(rngs, 1 + self.tokens * standard, width)
        names = ('q', 'k', 'v', 'out') if standard else ('v', 'out')
        self.attention = nnx.List(
            [nnx.Dict({name: _linear(rngs, width, width) for name in names}) for _ in range(layers)]
        )
        self.mlps = nnx.List(
            [
                nnx.Dict(
                    first=_linear(rngs, 2 * width, hidden), second=_linear(rngs, hidden, width)
                )
                for _ in range(layers)
            ]
        )
        self.outputs = _linear(rngs, width, 1)

    def __call__(self, x: Float[Array, 'B n']) -> Float[Array, 'B n']:
        """The n numbers of the output."""
        tok = Tokens.of(length=self.tokens)
        h = jnp.pad(x, ((0, 0), (0, 1)))[..., None]
        if self.standard:
            code = jnp.broadcast_to(jnp.eye(self.tokens), (len(x), self.tokens, self.tokens))
            h = jnp.concatenate([h, code], axis=-1)
        h = _apply(self.inputs, h)
        for encoding, attention, mlp in zip(self.encodings, self.attention, self.mlps):
            heads = lambda a: a.reshape(*a.shape[:2], self.heads, -1)
            v = heads(_apply(attention['v'], h))
            q, k = (
                heads(_apply(attention[name], h)) if self.standard else v for name in 'qk'
            )  # positional attention does not use q and k
            mixed = attend(
                encoding, *encoding.project(q, k, v, encoding.place(tok), tok), applied=TOKEN_STAGE
            )
            mixed = _apply(attention['out'], mixed.reshape(h.shape))
            first, second = mlp['first'], mlp['second']
            h = concatenating_layer(
                h, mixed, first['w'][...], first['b'][...], second['w'][...], second['b'][...]
            )
        return _apply(self.outputs, h)[:, :-1, 0]
