"""The encoder of SeqPE: a small causal transformer that reads the decimal digits of a position."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.protocol.encoding import drawn_normal

EPSILON = 1e-5  # of the layer norms
MAX_DIGITS = 9  # of integers of 32 bits


def seqpe_digits(pos: Int[Array, '... P'], digits: int) -> Int[Array, '... m']:
    """The decimal digits of all components one after the other, most significant first.

    Every component has `digits` digits, zeros in front.
    """
    powers = 10 ** jnp.arange(digits - 1, -1, -1)
    return (pos[..., None] // powers % 10).reshape(*pos.shape[:-1], -1)


def seqpe_positions(digits: Int[Array, '... m'], components: int) -> Int[Array, '... {components}']:
    """The position with these digits; the inverse of `seqpe_digits`."""
    parts = digits.reshape(*digits.shape[:-1], components, -1)
    return (parts * 10 ** jnp.arange(parts.shape[-1] - 1, -1, -1)).sum(-1)


def seqpe_padding(digits: Int[Array, '... m'], components: int) -> Bool[Array, '... m']:
    """Which digits are zeros in front of a component; the last digit of a component never is."""
    parts = digits.reshape(*digits.shape[:-1], components, -1)
    zeros = (jnp.cumsum(parts, axis=-1) == 0).at[..., -1].set(False)
    return zeros.reshape(digits.shape)


def _linear(x, weights, name):
    out = jnp.matmul(x, weights[name], precision=jax.lax.Precision.HIGHEST)
    return out + weights[f'{name}_bias']


def _norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * scale + bias


def _kept(shape, dropout, key):
    if key is None or dropout == 0:
        return jnp.ones(2)
    return jax.random.bernoulli(key, 1 - dropout, shape) / (1 - dropout)


def seqpe_block(
    x: Float[Array, '*B t d'],
    weights: Mapping[str, Float[Array, '...']],
    seen: Bool[Array, '*#B t t'],
    heads: int,
    rows: int,
    *,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Float[Array, '*B {rows} d']:
    """A pre-norm block of GPT-2, `x + attention(norm(x))` and then `x + MLP(norm(x))`, float32.

    Args:
      x: the vectors of t digits.
      weights: of one layer, see `SeqPEEncoder.layers`.
      seen: which digits (last axis) a digit attends to; each one at least to itself.
      heads: of attention.
      rows: how many vectors, from the end, are computed.
      dropout, key: rate on the two added terms; none without a key.
    """
    h = _norm(x, weights['norm_1'], weights['norm_1_bias'])
    q, k, v = (
        a.reshape(*a.shape[:-1], heads, -1)
        for a in jnp.split(_linear(h, weights, 'qkv'), 3, axis=-1)
    )
    x, q, seen = x[..., -rows:, :], q[..., -rows:, :, :], seen[..., -rows:, :]
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    s = exact('...tnh,...snh->...nts', q, k) * q.shape[-1] ** -0.5
    w = jax.nn.softmax(jnp.where(seen[..., None, :, :], s, -jnp.inf), axis=-1)
    out = exact('...nts,...snh->...tnh', w, v).reshape(x.shape)
    kept = _kept((2, *x.shape), dropout, key)
    x = x + kept[0] * _linear(out, weights, 'out')
    h = _norm(x, weights['norm_2'], weights['norm_2_bias'])
    h = jax.nn.gelu(_linear(h, weights, 'up'), approximate=True)
    return x + kept[1] * _linear(h, weights, 'down')


class SeqPEEncoder(nnx.Module):
    """Maps the digits of a position to one vector, that of a learned mark behind the digits.

    A digit is `digit[c] + place[i]`, plus `axis[a]` of its component where there are several; the
    mark is a vector of its own without a place. Pre-norm blocks, a final layer norm, and a linear
    map of the mark follow.

    Args:
      width: d, of the result and of all vectors inside.
      digits: of one component.
      components: P, of a position.
      layers: number of blocks.
      std: standard deviation of the initial weights and vectors; biases start at zero.
      rngs: draws the weights.
    """

    def __init__(
        self, width: int, digits: int, components: int, layers: int, *, std: float, rngs: nnx.Rngs
    ):
        drawn = lambda shape, *axes: drawn_normal(rngs, shape, std, axes)

        def constant(value, *shape, axes=()):
            return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes or (None,) * len(shape))

        self.components = components
        self.digit = drawn((10, width), None, 'width')
        self.place = drawn((components * digits, width), None, 'width')
        self.axis = drawn((components, width), None, 'width') if components > 1 else None
        self.mark = drawn((width,), None)
        for name in ('norm_1', 'norm_2'):
            setattr(self, name, constant(1.0, layers, width))
            setattr(self, f'{name}_bias', constant(0.0, layers, width))
        for name, (rows, columns), roles in (
            ('qkv', (width, 3 * width), ('width', None)),
            ('out', (width, width), (None, 'width')),
            ('up', (width, 4 * width), ('width', 'mlp')),
            ('down', (4 * width, width), ('mlp', 'width')),
        ):
            setattr(self, name, drawn((layers, rows, columns), None, *roles))
            setattr(self, f'{name}_bias', constant(0.0, layers, columns))
        self.norm, self.norm_bias = constant(1.0, width), constant(0.0, width)
        self.final = drawn((width, width), None, 'width')
        self.final_bias = constant(0.0, width)

    @property
    def layers(self) -> list[dict[str, Array]]:
        """The weights of every block."""
        names = ('norm_1', 'norm_2', 'qkv', 'out', 'up', 'down')
        names = [*names, *(f'{name}_bias' for name in names)]
        return [{name: getattr(self, name)[n] for name in names} for n in range(self.qkv.shape[0])]

    def __call__(
        self,
        digits: Int[Array, '*B m'],
        heads: int,
        *,
        causal: bool = True,
        mask_padding: bool = False,
        dropout: float = 0.0,
        key: Array | None = None,
    ) -> Float[Array, '*B d']:
        """The vectors of positions, float32.

        Args:
          digits: as `seqpe_digits` makes them.
          heads: of attention.
          causal: whether a digit attends only to digits in front of it, and itself.
          mask_padding: whether zeros in front of a component are hidden from the other digits.
          dropout, key: see `seqpe_block`.
        """
        x = self.digit[...][digits] + self.place[...]
        if self.axis is not None:
            x = x + jnp.repeat(self.axis[...], digits.shape[-1] // self.components, axis=0)
        mark = jnp.broadcast_to(self.mark[...], (*x.shape[:-2], 1, x.shape[-1]))
        x = jnp.concatenate([x, mark], axis=-2)
        t = x.shape[-2]
        seen = jnp.tri(t, dtype=bool) if causal else jnp.ones((t, t), bool)
        if mask_padding:
            hidden = seqpe_padding(digits, self.components)
            hidden = jnp.pad(hidden, [(0, 0)] * (digits.ndim - 1) + [(0, 1)])
            seen = (seen & ~hidden[..., None, :]) | jnp.eye(t, dtype=bool)
        seen = jnp.broadcast_to(seen, (*digits.shape[:-1], t, t))
        layers = self.layers
        for number, weights in enumerate(layers):
            own = None if key is None else jax.random.fold_in(key, number)
            rows = 1 if number == len(layers) - 1 else t
            x = seqpe_block(x, weights, seen, heads, rows, dropout=dropout, key=own)
        x = _norm(x[..., 0, :], self.norm[...], self.norm_bias[...])
        return _linear(x, {'final': self.final[...], 'final_bias': self.final_bias[...]}, 'final')
