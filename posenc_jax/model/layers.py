"""What a transformer block is made of: norms, feed-forward, attention with an encoding, and the
pre-norm block.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.core.encoding import Encoding
from posenc_jax.core.tokens import Tokens
from posenc_jax.model.sharding import constrain, sharded_attend

NORMS = ('rmsnorm', 'layernorm', 'layernorm_scale')
MLPS = ('gelu', 'gelu_erf', 'swiglu')
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
    bias: Float[Array, 'D'],
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


@jax.custom_vjp
def project(x: Float[Array, '... D'], w: Float[Array, 'D F']) -> Float[Array, '... F']:
    """`x w`, in the dtype of `x`.

    Its gradient says which operand of the weight gradient is transposed: the narrow one. Automatic
    differentiation transposes that of width F, with all that XLA fuses into it: on CPU a third of a
    train step.
    """
    return x @ w.astype(x.dtype)


def _project_bwd(operands, g):
    x, w = operands
    rows = lambda a: a.reshape(-1, a.shape[-1])
    d_w = rows(x).T @ rows(g) if w.shape[0] <= w.shape[1] else (rows(g).T @ rows(x)).T
    return g @ w.astype(x.dtype).T, d_w.astype(w.dtype)


project.defvjp(lambda x, w: (project(x, w), (x, w)), _project_bwd)


def project_rows(x: Float[Array, '... D'], rows: Float[Array, 'F D']) -> Float[Array, '... F']:
    """`x rows^T`, in the dtype of `x`: the layout that a CPU reads fastest where there are few
    vectors, as in decoding.
    """
    return jnp.einsum('...d,fd->...f', x, rows.astype(x.dtype))


def as_rows(*weights: Float[Array, '1 ...'], inputs: int = 1) -> nnx.Param:
    """Projections of one input side by side, an output a row; `inputs` of the dimensions behind the
    first are inputs.

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
    """`gelu(x w_in + b_in) w_out`, tanh form of the gelu if `approximate`."""
    return _output(
        lambda h: jax.nn.gelu(h, approximate=approximate), w_out, shifted(project(x, w_in), b_in)
    )


def shifted(x: Float[Array, '... D'], bias: Float[Array, 'D'] | None) -> Float[Array, '... D']:
    """`x + bias` in the dtype of `x`; `x` where there is no bias."""
    return x if bias is None else x + bias.astype(x.dtype)


def swiglu_mlp(
    x: Float[Array, '... D'],
    w_gate: Float[Array, 'D F'],
    w_in: Float[Array, 'D F'],
    w_out: Float[Array, 'F D'],
) -> Float[Array, '... D']:
    """`(silu(x w_gate) * x w_in) w_out`."""
    return _output(
        lambda gate, h: jax.nn.silu(gate) * h, w_out, project(x, w_gate), project(x, w_in)
    )


def _output(activation, w_out, *hidden):
    """`activation(*hidden) w_out`; of the wide arrays only `hidden` is kept for the backward
    pass.
    """
    return jax.checkpoint(lambda w, *hidden: project(activation(*hidden), w), prevent_cse=False)(
        w_out, *hidden
    )


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes entries with probability `rate` and rescales the rest; the identity without a key.

    Example:
      >>> dropout(jnp.ones(3), 0.5, None).tolist()
      [1.0, 1.0, 1.0]
    """
    if key is None or rate == 0.0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0).astype(
        x.dtype
    )


def layer_rows(x: Float[Array, 'B T D'], valid, lookback: int) -> Float[Array, 'B R D']:
    """The rows `Encoding.qkv` and `project` read: padding zeroed, and `lookback` zero rows in
    front.
    """
    if valid is not None:
        x = jnp.where(valid[..., None], x, 0)
    return jnp.pad(x, ((0, 0), (lookback, 0), (0, 0))) if lookback else x


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
    axes: tuple[str, ...],
    *,
    gain: float = 1.0,
    stack: tuple[int, ...] = (),
) -> nnx.Param:
    """Weights drawn from N(0, gain**2 / fan_in), float32, with the roles of their dimensions;
    `stack` leads the shape.
    """
    return nnx.Param(
        gain * fan_in**-0.5 * jax.random.normal(rngs.params(), (*stack, *shape), jnp.float32),
        axes=axes,
    )


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


class MLP(nnx.Module):
    """`gelu_mlp` or `swiglu_mlp` with their variables. `gain` scales the initial output."""

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
            if kind == 'swiglu'
            else None
        )
        self.w_out = normal(rngs, (hidden, width), hidden, ('mlp', 'width'), gain=gain, stack=stack)
        self.b_in = zeros((hidden,), ('mlp',), stack=stack) if bias else None
        self.b_out = zeros((width,), ('width',), stack=stack) if bias else None
        self.rows_in = self.rows_out = None

    def joined(self) -> 'MLP':
        """The same function of one layer, its weights as `project_rows` reads them; for decoding on
        one device.
        """
        mlp = nnx.clone(self)
        hidden = [w[...] for w in (self.w_gate, self.w_in) if w is not None]
        mlp.rows_in, mlp.rows_out = nnx.data(as_rows(*hidden)), nnx.data(as_rows(self.w_out[...]))
        mlp.w_in = mlp.w_gate = mlp.w_out = None
        return mlp

    def __call__(self, x):
        if self.rows_in is not None:
            h = project_rows(x, self.rows_in[...])
            if self.kind == 'swiglu':
                gate, h = jnp.split(h, 2, axis=-1)
                h = jax.nn.silu(gate) * h
            else:
                h = jax.nn.gelu(shifted(h, value(self.b_in)), approximate=self.kind == 'gelu')
            return shifted(project_rows(h, self.rows_out[...]), value(self.b_out))
        if self.kind == 'swiglu':
            return swiglu_mlp(x, self.w_gate[...], self.w_in[...], self.w_out[...])
        approximate = self.kind == 'gelu'
        out = gelu_mlp(
            x, self.w_in[...], self.w_out[...], value(self.b_in), approximate=approximate
        )
        return shifted(out, value(self.b_out))


class Adapter(nnx.Module):
    """A low-rank term beside a projection, `alpha / r (x down) up`; `up` starts at zero, so that
    nothing changes at first.

    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.

    Args:
      weights: of the projection, which says the shapes and their roles.
      inputs: how many of its dimensions, after those of the stack, are inputs.
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
        return self.scale * project(
            project(x, self.down[...].reshape(-1, rank)), self.up[...].reshape(rank, -1)
        )

    def product(self) -> Float[Array, '...']:
        """What the term adds to the projection's weights, in their shape; of all layers at once
        where they are stacked.
        """
        down, up = self.down[...], self.up[...]
        stack, rank = up.shape[: up.ndim - len(self.up.get_metadata()['axes'])], down.shape[-1]
        product = down.reshape(*stack, -1, rank) @ up.reshape(*stack, rank, -1)
        return self.scale * product.reshape(*down.shape[:-1], *up.shape[len(stack) + 1 :])


def merge_adapters(attention: 'Attention') -> 'Attention':
    """The same attention, layer or stack of layers, with its adapters added into the
    projections.
    """
    attention = nnx.clone(attention)
    for name, adapter in ({} if attention.adapters is None else attention.adapters).items():
        weights = getattr(attention, f'w_{name}')
        weights[...] = weights[...] + adapter.product()
    attention.adapters = None
    return attention


class Attention(nnx.Module):
    """The projections around `attend`: x -> q, k, v and attended values -> x. With `rank`, an
    `Adapter` beside each.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        bias: str,
        gain: float,
        stack: tuple[int, ...],
        rngs: nnx.Rngs,
        rank: int = 0,
        alpha: float = 16.0,
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
        self.sizes = heads, kv_heads, head_dim
        self.rows_in = self.rows_out = None
        self.adapters = nnx.Dict() if rank else None
        if rank:
            for name, w in (('q', self.w_q), ('k', self.w_k), ('v', self.w_v), ('out', self.w_out)):
                self.adapters[name] = Adapter(w, 2 if name == 'out' else 1, rank, alpha, rngs=rngs)

    def joined(self) -> 'Attention':
        """The same function of one layer, its weights as `project_rows` reads them; for decoding on
        one device.
        """
        attention = merge_adapters(self)
        attention.rows_in = nnx.data(
            as_rows(*(w[...] for w in (attention.w_q, attention.w_k, attention.w_v)))
        )
        attention.rows_out = nnx.data(as_rows(attention.w_out[...], inputs=2))
        attention.w_q = attention.w_k = attention.w_v = attention.w_out = None
        return attention

    def split(self, x: Float[Array, 'B T D']) -> tuple[Array, Array, Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H]."""
        if self.rows_in is not None:
            heads, kv_heads, head_dim = self.sizes
            out = project_rows(x, self.rows_in[...]).reshape(
                *x.shape[:2], heads + 2 * kv_heads, head_dim
            )
            parts = jnp.split(out, [heads, heads + kv_heads], axis=2)
            return tuple(
                shifted(part, value(b)) for part, b in zip(parts, (self.b_q, self.b_k, self.b_v))
            )

        def heads(name, w, bias):
            out = self._adapted(name, x, project(x, w.reshape(w.shape[0], -1)))
            return shifted(out.reshape(*x.shape[:2], *w.shape[1:]), value(bias))

        projections = (
            ('q', self.w_q, self.b_q),
            ('k', self.w_k, self.b_k),
            ('v', self.w_v, self.b_v),
        )
        q, k, v = (heads(name, w[...], b) for name, w, b in projections)
        return (
            constrain(q, 'batch', 'sequence', 'heads', None),
            constrain(k, 'batch', 'sequence', 'kv_heads', None),
            constrain(v, 'batch', 'sequence', 'kv_heads', None),
        )

    def qkv(self, encoding: Encoding, h: Float[Array, 'B T D'], rows: Array | None, tok):
        """`split` of the layer input `h`, or what `qkv` makes of `rows` (see `layer_rows`)."""
        return encoding.qkv(rows, self.split, tok) if encoding.opens('qkv') else self.split(h)

    def join(self, out: Float[Array, 'B T N H']) -> Float[Array, 'B T D']:
        """The result of the heads, back in the model width."""
        flat = out.reshape(*out.shape[:2], -1)
        if self.rows_out is not None:
            return shifted(project_rows(flat, self.rows_out[...]), value(self.b_out))
        w = self.w_out[...]
        return shifted(
            self._adapted('out', flat, project(flat, w.reshape(-1, w.shape[-1]))), value(self.b_out)
        )

    def _adapted(self, name, x, out):
        return out if self.adapters is None else out + self.adapters[name](x)


class Block(nnx.Module):
    """Pre-norm block: `x + attention(norm(x))`, then `x + mlp(norm(x))`, with the encodings this
    layer owns.

    With `cfg.parallel` both branches read the same x: `x + attention(norm(x)) + mlp(norm'(x))`.

    Args:
      cfg: a `TransformerConfig`.
      encodings: the parts of the encoding that have parameters of their own in every layer.
      stack: leading dimensions of all variables, for blocks that are scanned over; `encodings` have
        them already.
    """

    def __init__(
        self, cfg, encodings: list[Encoding], *, stack: tuple[int, ...] = (), rngs: nnx.Rngs
    ):
        drawn = dict(
            gain=(2 * cfg.layers) ** -0.5, stack=stack, rngs=rngs
        )  # the residual stream is of order one at any depth
        self.attention_norm = Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon, stack=stack)
        self.attention = Attention(
            cfg.width,
            cfg.heads,
            cfg.kv_heads,
            cfg.head_dim,
            bias=cfg.bias,
            rank=cfg.lora_rank,
            alpha=cfg.lora_alpha,
            **drawn,
        )
        self.mlp_norm = Norm(cfg.norm, cfg.width, epsilon=cfg.epsilon, stack=stack)
        self.mlp = MLP(cfg.mlp, cfg.width, cfg.mlp_width, bias=cfg.bias == 'all', **drawn)
        self.parallel = cfg.parallel
        self.encodings = nnx.List(encodings)
        self.dropout = cfg.dropout
        self.block = cfg.block or None
        self.implementation = cfg.implementation or None

    def __call__(
        self, x: Float[Array, 'B T D'], tok: Tokens, encoding: Encoding, *, key: Array | None = None
    ) -> Array:
        """The block on whole sequences; `encoding` is the layer's chain, `key` drives dropout."""

        def mix(h):
            rows = layer_rows(h, tok.valid, encoding.lookback)
            q, k, v, tq, tk = encoding.project(
                *self.attention.qkv(encoding, h, rows, tok), tok, tok, rows
            )
            out = sharded_attend(
                encoding, q, k, v, tq, tk, block=self.block, implementation=self.implementation
            )
            return encoding.merge(out)

        return self.around(x, mix, key=key)

    def around(
        self, x: Float[Array, 'B T D'], mix: Callable[[Array], Array], *, key: Array | None = None
    ) -> Array:
        """The block around any mixing of tokens: `mix` takes the normed input to the result of the
        heads [B, T, N, H].

        The cache of a decode step comes in through here.
        """
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        out = self.attention.join(mix(self.attention_norm(x)))
        before, x = (
            x,
            constrain(x + dropout(out, self.dropout, attention_key), 'batch', 'sequence', None),
        )
        out = self.mlp(self.mlp_norm(before if self.parallel else x))
        return constrain(x + dropout(out, self.dropout, mlp_key), 'batch', 'sequence', None)
