"""The projections around attention, and low-rank adapters beside them."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.products import linear
from posenc_jax.layer.layers import (
    Norm,
    as_rows,
    linear_rows,
    normal,
    shifted,
    unchanged,
    value,
    zeros,
)
from posenc_jax.layer.sharding import constrain

QK_NORMS = ('none', 'head', 'width')


class Adapter(nnx.Module):
    """A low-rank term beside a projection, `alpha / r (x down) up`; `up` starts at zero, so that
    nothing changes at first.

    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.

    Args:
      weights: of the projection, which have the shapes and roles that the adapter takes.
      inputs: how many of their dimensions, after those of the stack, are inputs.
      rank, alpha: r, and the numerator of the scale.
    """

    def __init__(self, weights: nnx.Param, inputs: int, rank: int, alpha: float, *, rngs: nnx.Rngs):
        axes = weights.get_metadata()['axes']
        stack, shape = weights.shape[: -len(axes)], weights.shape[-len(axes) :]
        into = shape[:inputs]
        self.scale = alpha / rank
        self.down = normal(
            rngs, (*into, rank), math.prod(into), (*axes[:inputs], 'rank'), stack=stack
        )
        self.up = zeros((rank, *shape[inputs:]), ('rank', *axes[inputs:]), stack=stack)

    def __call__(self, x: Float[Array, 'B T I']) -> Float[Array, 'B T O']:
        """The term for flattened vectors."""
        rank = self.down.shape[-1]
        return self.scale * linear(
            linear(x, self.down[...].reshape(-1, rank)), self.up[...].reshape(rank, -1)
        )

    def product(self) -> Float[Array, '...']:
        """`alpha / r down up` in the shape of the projection's weights, to which it can be added;
        for all stacked layers at once.
        """
        down, up = self.down[...], self.up[...]
        stack, rank = up.shape[: up.ndim - len(self.up.get_metadata()['axes'])], down.shape[-1]
        product = down.reshape(*stack, -1, rank) @ up.reshape(*stack, rank, -1)
        return self.scale * product.reshape(*down.shape[:-1], *up.shape[len(stack) + 1 :])


def merge_adapters(attention: 'Projections') -> 'Projections':
    """The same attention, layer or stack of layers, with its adapters added into the
    projections.
    """
    attention = nnx.clone(attention)
    for name, adapter in ({} if attention.adapters is None else attention.adapters).items():
        weights = getattr(attention, f'w_{name}')
        weights[...] = weights[...] + adapter.product()
    attention.adapters = None
    return attention


class Projections(nnx.Module):
    """The projections before and behind `attend`: from x to q, k, v, and from its result to x. With
    `rank`, there is an `Adapter` beside each. With `qk_norm`, queries and keys are normed, every
    'head' by itself or over the 'width' of all heads, by a norm of the kind `norm`. With
    `head_norm`, such a norm acts on the result of every head.
    """

    @classmethod
    def of(cls, cfg, *, gain: float, stack: tuple[int, ...], rngs: nnx.Rngs) -> 'Projections':
        """The projections of a layer with the sizes of the config of a model."""
        return cls(
            cfg.width,
            cfg.heads,
            cfg.kv_heads,
            cfg.head_dim,
            gain=gain,
            rngs=rngs,
            bias=cfg.bias,
            stack=stack,
            rank=cfg.lora_rank,
            alpha=cfg.lora_alpha,
            qk_norm=cfg.qk_norm,
            head_norm=cfg.head_norm,
            norm=cfg.norm,
            epsilon=cfg.epsilon,
        )

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        gain: float,
        rngs: nnx.Rngs,
        bias: str = 'none',
        stack: tuple[int, ...] = (),
        rank: int = 0,
        alpha: float = 16.0,
        qk_norm: str = 'none',
        head_norm: bool = False,
        norm: str = 'rmsnorm',
        epsilon: float = 1e-6,
    ):
        into = lambda count, role: normal(
            rngs, (width, count, head_dim), width, ('width', role, 'head_dim'), stack=stack
        )
        self.w_q, self.w_k, self.w_v = (
            into(heads, 'heads'),
            into(kv_heads, 'kv_heads'),
            into(kv_heads, 'kv_heads'),
        )
        out_axes = ('heads', 'head_dim', 'width')
        self.w_out = normal(
            rngs, (heads, head_dim, width), heads * head_dim, out_axes, gain=gain, stack=stack
        )
        shift = lambda count, role: (
            None if bias == 'none' else zeros((count, head_dim), (role, 'head_dim'), stack=stack)
        )
        self.b_q, self.b_k, self.b_v = (
            shift(heads, 'heads'),
            shift(kv_heads, 'kv_heads'),
            shift(kv_heads, 'kv_heads'),
        )
        self.b_out = zeros((width,), ('width',), stack=stack) if bias == 'all' else None
        self.width, self.sizes = width, (heads, kv_heads, head_dim)
        self.qk_norm = qk_norm
        self.q_norm, self.k_norm = (
            unchanged
            if qk_norm == 'none'
            else Norm(
                norm, head_dim * (count if qk_norm == 'width' else 1), epsilon=epsilon, stack=stack
            )
            for count in (heads, kv_heads)
        )
        self.head_norm = (
            Norm(norm, head_dim, epsilon=epsilon, stack=stack) if head_norm else unchanged
        )
        self.rows_in = self.rows_out = None
        self.adapters = nnx.Dict() if rank else None
        if self.adapters is not None:
            for name, w in (('q', self.w_q), ('k', self.w_k), ('v', self.w_v), ('out', self.w_out)):
                self.adapters[name] = Adapter(w, 2 if name == 'out' else 1, rank, alpha, rngs=rngs)

    def joined(self) -> 'Projections':
        """The same function, of one layer, with its weights in the layout of `linear_rows`; for
        decoding on one device.
        """
        attention = merge_adapters(self)
        attention.rows_in = nnx.data(
            as_rows(*(w[...] for w in (attention.w_q, attention.w_k, attention.w_v)))
        )
        attention.rows_out = nnx.data(as_rows(attention.w_out[...], inputs=2))
        attention.w_q = attention.w_k = attention.w_v = attention.w_out = None
        return attention

    def qkv(self, x: Float[Array, 'B T D']) -> tuple[Array, Array, Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H]."""
        if self.rows_in is not None:
            heads, kv_heads, head_dim = self.sizes
            out = linear_rows(x, self.rows_in[...]).reshape(
                *x.shape[:2], heads + 2 * kv_heads, head_dim
            )
            q, k, v = jnp.split(out, [heads, heads + kv_heads], axis=2)
            return (
                self._normed(self.q_norm, shifted(q, value(self.b_q))),
                self._normed(self.k_norm, shifted(k, value(self.b_k))),
                shifted(v, value(self.b_v)),
            )

        def projected(name, w, bias):
            out = self._adapted(name, x, linear(x, w.reshape(w.shape[0], -1)))
            return shifted(out.reshape(*x.shape[:2], *w.shape[1:]), value(bias))

        q = self._normed(self.q_norm, projected('q', self.w_q[...], self.b_q))
        k = self._normed(self.k_norm, projected('k', self.w_k[...], self.b_k))
        v = projected('v', self.w_v[...], self.b_v)
        return (
            constrain(q, 'batch', 'sequence', 'heads', None),
            constrain(k, 'batch', 'sequence', 'kv_heads', None),
            constrain(v, 'batch', 'sequence', 'kv_heads', None),
        )

    def output(self, out: Float[Array, 'B T N H']) -> Float[Array, 'B T D']:
        """The result of the heads, back in the model width."""
        flat = self.head_norm(out).reshape(*out.shape[:2], -1)
        if self.rows_out is not None:
            return shifted(linear_rows(flat, self.rows_out[...]), value(self.b_out))
        w = self.w_out[...]
        return shifted(
            self._adapted('out', flat, linear(flat, w.reshape(-1, w.shape[-1]))), value(self.b_out)
        )

    def _normed(self, norm, x: Float[Array, 'B T heads H']) -> Float[Array, 'B T heads H']:
        if self.qk_norm == 'width':
            return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)
        return norm(x)

    def _adapted(self, name, x, out):
        return out if self.adapters is None else out + self.adapters[name](x)


@dataclasses.dataclass(frozen=True)
class OwnProjections:
    """The module of a user in the place of `Projections`, whose results are checked."""

    module: Any
    width: int
    heads: int
    kv_heads: int
    head_dim: int

    def qkv(self, x: Float[Array, 'B T D']) -> tuple[Array, Array, Array]:
        """As `Projections.qkv`."""
        found = tuple(self.module.qkv(x))
        if len(found) != 3:
            raise ValueError(
                f'{self._name("qkv")} must return q, k and v, got {len(found)} results'
            )
        for name, a, heads in zip('qkv', found, (self.heads, self.kv_heads, self.kv_heads)):
            self._check(f'qkv: {name}', a, (*x.shape[:2], heads, self.head_dim))
        return found

    def output(self, out: Float[Array, 'B T N H']) -> Float[Array, 'B T D']:
        """As `Projections.output`."""
        result = self.module.output(out)
        self._check('output: the result', result, (*out.shape[:2], self.width))
        return result

    def _name(self, method: str) -> str:
        return f'{type(self.module).__name__}.{method}'

    def _check(self, what: str, a, shape: tuple[int, ...]):
        if jnp.shape(a) != shape:
            raise ValueError(f'{self._name(what)} has shape {jnp.shape(a)}, expected {shape}')


def check_projections(module: Any) -> None:
    """Refuses a module that lacks a method of `Projections` which attention calls.

    Raises:
      ValueError: it lacks `qkv` or `output`.
    """
    for method in ('qkv(x)', 'output(out)'):
        if not callable(getattr(module, method.partition('(')[0], None)):
            raise ValueError(
                f'Attention: projections must have the methods qkv(x) and output(out); '
                f'{type(module).__name__} has no {method}'
            )
