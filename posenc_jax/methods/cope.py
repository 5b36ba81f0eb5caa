"""CoPE (contextual): positions counted by gates that depend on the content."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.attention.buckets import sum_by_bucket, take_bucket
from posenc_jax.attention.kernels.program import in_kernel
from posenc_jax.base.derivatives import own_gradient
from posenc_jax.base.products import heads_first, scaled_dot_product
from posenc_jax.protocol.bounds import CONTEXT, Size
from posenc_jax.protocol.capabilities import Carries
from posenc_jax.protocol.checks import layer_input
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.registry import Card, register

# Sums are taken over runs of this many keys by one small matrix product, and over the sums of runs
# by another one. On a CPU that takes a third of the time of XLA's cumulative sum (measured).
_RUN = 32


def suffix_sum(gates: Float[Array, '... S'] | Bool[Array, '... S']) -> Float[Array, '... S']:
    """Sum over the keys from each key to the last one, inclusive, in float32."""
    return _sums(gates, to_last=True)


def prefix_sum(gates: Float[Array, '... S'] | Bool[Array, '... S']) -> Float[Array, '... S']:
    """Sum over the keys from the first one to each key, inclusive, in float32."""
    return _sums(gates, to_last=False)


def _sums(gates, to_last: bool):
    if in_kernel():
        return jax.lax.cumsum(gates.astype(jnp.float32), axis=gates.ndim - 1, reverse=to_last)
    keys = gates.shape[-1]
    run = min(_RUN, keys) if isinstance(keys, int) else _RUN  # a length may be symbolic
    count = -(-keys // run)
    around = [(0, 0)] * (gates.ndim - 1)
    padded = jnp.pad(gates.astype(jnp.float32), [*around, (0, count * run - keys)])
    runs = padded.reshape(*gates.shape[:-1], count, run)
    triangle = jnp.tril if to_last else jnp.triu
    product = lambda a, those: jnp.einsum('...s,sj->...j', a, those, precision='highest')
    within = product(runs, triangle(jnp.ones((run, run))))
    whole = within[..., 0 if to_last else -1]
    if isinstance(count, int):
        others = product(whole, triangle(jnp.ones((count, count)), -1 if to_last else 1))
    else:
        others = jax.lax.cumsum(whole, axis=gates.ndim - 1, reverse=to_last) - whole
    return (within + others[..., None]).reshape(padded.shape)[..., :keys]


@own_gradient
def interpolate(z: Float[Array, 'B N T P'], p: Float[Array, 'B N T S']) -> Float[Array, 'B N T S']:
    """Linear interpolation of `z` along its last axis at fractional positions `p >= 0`.

    `p` is clamped at P - 1; no gradient reaches a clamped p.
    """
    return _interpolate_fwd(z, p)[0]


def _interpolate_fwd(z, p):
    last = z.shape[-1] - 1
    p = jnp.minimum(p, last)
    low = jnp.floor(p).astype(jnp.int32)
    floor = _take(z, low)
    slope = _take(z, jnp.minimum(low + 1, last)) - floor  # zero where p is clamped
    part = p - low
    return floor + part * slope, (z, low, part, slope)


def _interpolate_bwd(residuals, g):
    z, low, part, slope = residuals
    whole, upper = _sums_by_place(low, g, g * part, z.shape)
    # The share of the upper neighbour. At the last position there is none, and `part` is zero.
    d_z = whole - upper + jnp.pad(upper[..., :-1], [(0, 0)] * (z.ndim - 1) + [(1, 0)])
    return d_z.astype(z.dtype), g * slope


def _take(z, place):
    if in_kernel():  # a gather would make an index [T, S, 1], whose last axis takes a whole lane
        return take_bucket(_rows(z)[:, None], _rows(place)).reshape(place.shape)
    return jnp.take_along_axis(z, place, axis=-1, mode='promise_in_bounds')


def _rows(a):
    """Heads as rows of the batch."""
    return a.reshape(-1, *a.shape[2:])


def _sums_by_place(low, one, other, shape):
    """The sums of two numbers of each pair by its lower position."""
    if in_kernel():
        sums = lambda a: sum_by_bucket(_rows(a)[:, None], _rows(low), shape[-1]).reshape(shape)
        return sums(one), sums(other)
    # One scatter of both serves both neighbours. XLA's transpose of the two gathers takes four
    # times as long.
    updates = jnp.stack([one, other], axis=-1)
    add = lambda low, updates: (
        jnp.zeros((shape[-1], 2), jnp.float32).at[low].add(updates, mode='promise_in_bounds')
    )
    both = jax.vmap(add)(low.reshape(-1, low.shape[-1]), updates.reshape(-1, *updates.shape[-2:]))
    return both[..., 0].reshape(shape), both[..., 1].reshape(shape)


interpolate.defvjp(_interpolate_fwd, _interpolate_bwd)


def cope_bias(
    z: Float[Array, 'B N T P'], gates: Float[Array, 'B N T S'], carry: Float[Array, 'B N T']
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T']]:
    """The bias `z_i[p_ij]` of one block of keys, and the sum of gates for the next farther block.

    Args:
      z: `q_i . E[:, c]` for the integer positions c.
      gates: in [0, 1], 0 where a key is not seen; keys in ascending order.
      carry: sum of the gates of nearer blocks.

    Example:
      >>> bias, counted = cope_bias(
      ...     jnp.arange(4.0).reshape(1, 1, 1, 4), jnp.full((1, 1, 1, 3), 0.5), jnp.ones((1, 1, 1))
      ... )
      >>> bias[0, 0, 0].tolist(), counted.tolist()
      ([2.5, 2.0, 1.5], [[[2.5]]])
    """
    return interpolate(z, suffix_sum(gates) + carry[..., None]), carry + gates.sum(-1)


@register(
    'cope',
    kind='encoding',
    card=Card(
        name='CoPE (contextual)',
        example='cope(npos=16)',
        causal_only=True,
        relative=True,
        needs_training=True,
    ),
)
class CoPE(Carries):
    """Adds a bias at a position that content-dependent gates count; acts on the logits.

    `logit_ij = q_i . (k_j + e[p_ij]) / sqrt(H)`, `p_ij = min(sum_{m=j..i} g_im, npos - 1)`, `g_ij =
    sigmoid(q_i . k_j / sqrt(H))`, with sums over the visible keys. e is a trained table E, one for
    all heads; between whole positions `z_i[c] = q_i . E[:, c]` is interpolated linearly. Differs
    from the paper: nothing in the formulas. In a chain, the gates read the logits and z reads the
    queries as the earlier parts leave them. The gates of a query are summed again at every decoding
    step.

    Args:
      npos: number of columns of E, for positions 0 .. npos - 1; larger counts use the last one. The
        released code's default is the training length + 1, which never clamps.
      scale_pos: True (released default) divides the bias by sqrt(H) like the logits; False (the
        listing in the paper) adds it undivided.
      gates: what the gates read. 'key' reads the logits; 'separate' reads `q_i . kappa_j / sqrt(H)`
        with another projection kappa of the layer input (the released `sep_key`); 'value' reads
        `q_i . v_j / sqrt(H)` (the released `val_gates`).
      kv_heads, head_dim, model_dim, rngs: from the model.

    Raises:
      ValueError: `gates='separate'` without the layer input of every key.

    Reference: Golovneva, Wang, Weston, Sukhbaatar, arXiv 2405.18719.
    """

    def __init__(
        self,
        npos: Size = 64,
        scale_pos: bool = True,
        gates: Literal['key', 'separate', 'value'] = 'key',
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.gates = gates
        self.scale = head_dim**-0.5 if scale_pos else 1.0
        self.table = nnx.Param(jnp.zeros((head_dim, npos), jnp.float32), axes=(None, None))
        if gates == 'separate':
            kernel, axes = (model_dim, kv_heads, head_dim), ('width', 'kv_heads', None)
            self.key_kernel = drawn_normal(rngs, kernel, model_dim**-0.5, axes)

    def project(self, q, k, v, tq, tk, x=None):
        z = jnp.einsum('btnh,hp->btnp', q.astype(jnp.float32), self.table[...]) * self.scale
        if self.gates == 'key':
            return q, k, v, tq.with_feats(cope={'z': z}), tk
        gate_key = v if self.gates == 'value' else self._gate_key(x, k)
        return q, k, v, tq.with_feats(cope={'z': z, 'q': q}), tk.with_feats(cope={'key': gate_key})

    def _gate_key(self, x, k):
        x = layer_input("cope(gates='separate')", x, k.shape[1])
        return jnp.einsum('bsd,dkh->bskh', x, self.key_kernel[...].astype(x.dtype)).astype(k.dtype)

    def logits(self, s, q, k, tq, tk, seen, carry):
        gate_logits = s
        if self.gates != 'key':
            gate_logits = scaled_dot_product(
                heads_first(tq.feats['cope']['q']), heads_first(tk.feats['cope']['key'])
            )
        gates = jnp.where(seen, jax.nn.sigmoid(gate_logits), 0.0)
        bias, carry = cope_bias(heads_first(tq.feats['cope']['z']), gates, carry)
        return s + bias, carry
