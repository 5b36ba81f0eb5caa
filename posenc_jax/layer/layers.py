"""Parts of a transformer block: norms, feed-forward networks, matrix products, initial weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.products import linear
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.tokens import Tokens

NORMS = ('rmsnorm', 'layernorm', 'layernorm_scale')
NORM_PLACES = ('before', 'after', 'both')
GATES = {'swiglu': jax.nn.silu, 'geglu': jax.nn.gelu}  # gelu in its tanh form
MLPS = ('gelu', 'gelu_erf', *GATES, 'mix_ffn')
BIASES = ('none', 'qkv', 'all')


def rms_norm(
    x: Float[Array, '... D'], scale: Float[Array, 'D'], *, epsilon: float = 1e-6
) -> Float[Array, '... D']:
    """`x / rms(x) * scale`, in float32 inside; the result has the dtype of `x`.

    Example:
      >>> rms_norm(jnp.array([2.0, -2.0]), jnp.ones(2)).round(3).tolist()
      [1.0, -1.0]
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    return (y * scale).astype(x.dtype)


def layer_norm(
    x: Float[Array, '... D'],
    scale: Float[Array, 'D'],
    bias: Float[Array, 'D'] | Float[Array, ''],
    *,
    epsilon: float = 1e-6,
) -> Float[Array, '... D']:
    """`(x - mean(x)) / std(x) * scale + bias`, in float32 inside; the result has the dtype of `x`.

    Example:
      >>> layer_norm(jnp.array([1.0, 3.0]), jnp.ones(2), jnp.zeros(2)).round(3).tolist()
      [-1.0, 1.0]
    """
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    return (y * scale + bias).astype(x.dtype)


def linear_rows(x: Float[Array, '... D'], rows: Float[Array, 'F D']) -> Float[Array, '... F']:
    """`x rows^T`, in the dtype of `x`. With few vectors, as in decoding, a CPU reads this layout of
    the weights fastest.
    """
    return jnp.einsum('...d,fd->...f', x, rows.astype(x.dtype))


def as_rows(*weights: Float[Array, '1 ...'], inputs: int = 1) -> nnx.Param:
    """Joins projections of one input into one matrix for `linear_rows`, a row for each output.

    Args:
      *weights: [1, inputs, outputs] each, with one or more dimensions of inputs and of outputs.
      inputs: how many of the dimensions are inputs.

    Raises:
      ValueError: weights of several layers.

    Example:
      >>> as_rows(jnp.ones((1, 3, 2, 4)), jnp.ones((1, 3, 5))).shape
      (1, 13, 3)
    """
    if several := [len(w) for w in weights if len(w) != 1]:
        raise ValueError(
            f'projections are joined layer by layer, got a stack of {several[0]}; call '
            'unstacked() first'
        )
    flat = [w.reshape(1, math.prod(w.shape[1 : 1 + inputs]), -1) for w in weights]
    return nnx.Param(jnp.swapaxes(jnp.concatenate(flat, axis=-1), 1, 2), axes=(None, None))


def gelu_mlp(
    x: Float[Array, '... D'],
    w_in: Float[Array, 'D F'],
    w_out: Float[Array, 'F D'],
    b_in: Float[Array, 'F'] | None = None,
    *,
    approximate: bool = True,
) -> Float[Array, '... D']:
    """`gelu(x w_in + b_in) w_out`, with the tanh form of the gelu if `approximate`."""
    return _output(
        lambda h: jax.nn.gelu(h, approximate=approximate), w_out, shifted(linear(x, w_in), b_in)
    )


def shifted(
    x: Float[Array, '... D'], bias: Float[Array, '*heads D'] | None
) -> Float[Array, '... D']:
    """`x + bias` in the dtype of `x`; `x` where there is no bias."""
    return x if bias is None else x + bias.astype(x.dtype)


def gated_mlp(
    x: Float[Array, '... D'],
    w_gate: Float[Array, 'D F'],
    w_in: Float[Array, 'D F'],
    w_out: Float[Array, 'F D'],
    *,
    kind: str = 'swiglu',
) -> Float[Array, '... D']:
    """`(silu(x w_gate) * x w_in) w_out`; with the kind 'geglu', the tanh form of gelu for silu."""
    return _output(lambda gate, h: GATES[kind](gate) * h, w_out, linear(x, w_gate), linear(x, w_in))


def _output(activation, w_out, *hidden):
    """`activation(*hidden) w_out`. Of the wide arrays, the backward pass keeps only `hidden`."""
    return jax.checkpoint(lambda w, *hidden: linear(activation(*hidden), w), prevent_cse=False)(
        w_out, *hidden
    )


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes entries with probability `rate` and rescales the rest; the identity without a key.

    Example:
      >>> dropout(jnp.ones(3), 0.5, None).tolist()
      [1.0, 1.0, 1.0]
    """
    return nnx.Dropout(rate, deterministic=key is None)(x, rngs=key)


def pooled(x: Float[Array, 'B T D'], tok: Tokens | None, pool: str) -> Float[Array, 'B 1 D']:
    """The 'mean' of the valid tokens of each row in float32, or the 'first' or 'last' of them. For
    'token' it is the first: the class token.

    Example:
      >>> tok = Tokens.of(valid=[[True, True, False]])
      >>> pooled(jnp.array([[[1.0], [3.0], [9.0]]]), tok, 'mean').tolist()
      [[[2.0]]]
    """
    valid = jnp.ones(x.shape[:2], bool)
    if tok is not None and tok.valid is not None:
        valid = jnp.broadcast_to(tok.valid, valid.shape)
    if pool == 'mean':
        share = valid / jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
        return jnp.einsum('bt,btd->bd', share, x.astype(jnp.float32)).astype(x.dtype)[:, None]
    order = valid[:, ::-1] if pool == 'last' else valid
    at = jnp.argmax(order, axis=1)
    at = at if pool != 'last' else x.shape[1] - 1 - at
    return jnp.take_along_axis(x, at[:, None, None], axis=1)


def unchanged(x: Array) -> Array:
    """What stands where a model has no norm."""
    return x


def zeros(
    shape: tuple[int, ...], axes: tuple[str, ...], *, stack: tuple[int, ...] = ()
) -> nnx.Param:
    """A bias, float32, with the roles of its dimensions."""
    return nnx.Param(jnp.zeros((*stack, *shape), jnp.float32), axes=axes)


def value(parameter: nnx.Param | None):
    """The array of a parameter that may be absent."""
    return None if parameter is None else parameter[...]


def normal(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    fan_in: int,
    axes: tuple[str | None, ...],
    *,
    gain: float = 1.0,
    stack: tuple[int, ...] = (),
) -> nnx.Param:
    """Weights drawn from N(0, gain**2 / fan_in), float32, with the roles of their dimensions;
    `stack` leads the shape.
    """
    return drawn_normal(rngs, (*stack, *shape), gain * fan_in**-0.5, axes)


class Norm(nnx.Module):
    """`rms_norm` or `layer_norm` with their variables; 'layernorm_scale' has no bias."""

    def __init__(
        self, kind: str, width: int, *, epsilon: float = 1e-6, stack: tuple[int, ...] = ()
    ):
        self.centred, self.epsilon = kind != 'rmsnorm', epsilon
        self.scale = nnx.Param(jnp.ones((*stack, width), jnp.float32), axes=('norm',))
        self.bias = (
            nnx.Param(jnp.zeros((*stack, width), jnp.float32), axes=('norm',))
            if kind == 'layernorm'
            else None
        )

    def __call__(self, x):
        if not self.centred:
            return rms_norm(x, self.scale[...], epsilon=self.epsilon)
        bias = jnp.zeros((), jnp.float32) if self.bias is None else self.bias[...]
        return layer_norm(x, self.scale[...], bias, epsilon=self.epsilon)


def branch_norms(cfg, stack: tuple[int, ...]) -> tuple[Any, Any]:
    """The norms before and after a branch of a block, by `cfg.norm_place`."""
    make = lambda place: (
        Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon, stack=stack)
        if cfg.norm_place in (place, 'both')
        else unchanged
    )
    return make('before'), make('after')


class MLP(nnx.Module):
    """`gelu_mlp` or `gated_mlp` with their variables. `gain` scales the initial output."""

    def __init__(
        self,
        kind: str,
        width: int,
        hidden: int,
        *,
        bias: bool,
        gain: float,
        stack: tuple[int, ...],
        rngs: nnx.Rngs,
    ):
        self.kind = kind
        self.w_in = normal(rngs, (width, hidden), width, ('width', 'mlp'), stack=stack)
        self.w_gate = (
            normal(rngs, (width, hidden), width, ('width', 'mlp'), stack=stack)
            if kind in GATES
            else None
        )
        self.w_out = normal(rngs, (hidden, width), hidden, ('mlp', 'width'), gain=gain, stack=stack)
        self.b_in = zeros((hidden,), ('mlp',), stack=stack) if bias else None
        self.b_out = zeros((width,), ('width',), stack=stack) if bias else None
        self.rows_in = self.rows_out = None

    def joined(self) -> 'MLP':
        """The same function, of one layer, with its weights in the layout of `linear_rows`; for
        decoding on one device.
        """
        mlp = nnx.clone(self)
        hidden = [w[...] for w in (self.w_gate, self.w_in) if w is not None]
        mlp.rows_in, mlp.rows_out = nnx.data(as_rows(*hidden)), nnx.data(as_rows(self.w_out[...]))
        mlp.w_in = mlp.w_gate = mlp.w_out = None
        return mlp

    def before(self, x: Float[Array, '... D']) -> Float[Array, '... F']:
        """The input of the non-linearity, or of the gate; not of a `joined` network."""
        w = self.w_in if self.w_gate is None else self.w_gate
        return shifted(linear(x, w[...]), value(self.b_in))

    def __call__(self, x):
        if self.rows_in is not None and self.rows_out is not None:
            h = linear_rows(x, self.rows_in[...])
            if self.kind in GATES:
                gate, h = jnp.split(h, 2, axis=-1)
                h = GATES[self.kind](gate) * h
            else:
                h = jax.nn.gelu(shifted(h, value(self.b_in)), approximate=self.kind == 'gelu')
            return shifted(linear_rows(h, self.rows_out[...]), value(self.b_out))
        if self.w_gate is not None:
            return gated_mlp(x, self.w_gate[...], self.w_in[...], self.w_out[...], kind=self.kind)
        approximate = self.kind == 'gelu'
        out = gelu_mlp(
            x, self.w_in[...], self.w_out[...], value(self.b_in), approximate=approximate
        )
        return shifted(out, value(self.b_out))
