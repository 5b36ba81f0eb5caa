"""PaTH: products of Householder-like maps between key and query, with and without a forget gate."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.base.products import heads_first, scaled_dot_product
from posenc_jax.protocol.bounds import CONTEXT, Size
from posenc_jax.protocol.capabilities import Carries, EvolvingKeys
from posenc_jax.protocol.checks import layer_input
from posenc_jax.protocol.encoding import drawn_normal, drawn_uniform
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

# Keys of a tile are processed in chunks of this many, a few chunks per loop step. The work inside a
# chunk grows with the square of its size.
_CHUNK = 64
_UNROLLED = 4  # chunks of one tile, which are then no loop of the program
_TAPS = 3


@jax.custom_jvp
def unit_lower_inverse(lower: Float[Array, '... C C']) -> Float[Array, '... C C']:
    """Inverse of `I + strictly lower part of lower`; C is a power of two.

    Both halves are inverted together and joined by
    `[[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]]`. This is forward substitution by
    blocks and needs matrix products only. (The gradient of XLA's triangular solve hangs on CPU from
    128 rows on, jax 0.10.2.)
    """
    size = lower.shape[-1]
    if size <= 2:  # the square of the strictly lower part vanishes
        return jnp.eye(size, dtype=lower.dtype) - jnp.tril(lower, -1)
    half = size // 2
    halves = unit_lower_inverse(jnp.stack([lower[..., :half, :half], lower[..., half:, half:]]))
    corner = -_product(_product(halves[1], lower[..., half:, :half]), halves[0])
    upper = jnp.concatenate([halves[0], jnp.zeros_like(corner)], axis=-1)
    return jnp.concatenate([upper, jnp.concatenate([corner, halves[1]], axis=-1)], axis=-2)


@unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(primals, tangents):
    inverse = unit_lower_inverse(primals[0])
    return inverse, -_product(_product(inverse, jnp.tril(tangents[0], -1)), inverse)


def _product(a, b):
    return jnp.matmul(a, b, precision='highest')


def path_match(
    q: Float[Array, 'B N T H'],
    k: Float[Array, 'B K S H'],
    w: Float[Array, 'B K S H'],
    beta: Float[Array, 'B K S'],
    index: Int[Array, '#B S'],
    seen: Bool[Array, '#B #N T S'],
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T H']]:
    """Logits `q_i^T H_i ... H_{j+1} k_j` of one block of keys, and the queries for the next block.

    Blocks are processed from near to far. Each one applies its maps H to the queries.

    Args:
      q: queries in float32, after the maps of all nearer blocks, not scaled.
      k, w, beta: keys, unit directions and step sizes; beta is 0 at keys that are not valid.
      index: order of the keys, ascending.
      seen: which keys each query sees; the others do not act on it.

    Example:
      >>> one = lambda *rows: jnp.array(rows)[None, None]
      >>> w, beta = one([1.0, 0.0], [1.0, 0.0]), jnp.array([[[2.0, 2.0]]])
      >>> k, q, index = one([3.0, -1.0], [3.0, -1.0]), one([1.0, 2.0]), jnp.array([[0, 1]])
      >>> s, _ = path_match(q, k, w, beta, index, one([True, True]))
      >>> s[0, 0, 0].tolist()
      [-5.0, 1.0]
    """
    (batch, heads, queries, width), (kv_heads, keys) = q.shape, k.shape[1:3]
    most = min(_CHUNK, keys) if isinstance(keys, int) else _CHUNK  # a length may be symbolic
    chunk = 1 << (most - 1).bit_length()
    group = heads // kv_heads
    seen = seen.reshape(
        seen.shape[0], *((kv_heads, group) if seen.shape[1] > 1 else (1, 1)), *seen.shape[2:]
    )
    k, w = (_chunks(a.astype(q.dtype), 2, chunk) for a in (k, w))
    beta, seen = _chunks(beta, 2, chunk), _chunks(seen, 4, chunk)
    index = _chunks(index, 1, chunk)
    later = (index[..., :, None] > index[..., None, :])[:, :, None]
    step = beta[..., None]
    # UT transform of a chunk:
    # U_k, U_w = (I + strictlower(beta W W^T))^-1 beta [strictlower(W K^T), W]
    below = lambda a: jnp.where(later, step * _product(w, a.mT), 0.0)
    solve = unit_lower_inverse(below(w))
    u_k, u_w = _product(solve, below(k)), _product(solve, step * w)
    dot = functools.partial(jnp.einsum, 'bkgtx,bkxy->bkgty', precision='highest')

    def near_to_far(q, block):
        k, w, u_k, u_w, seen = block
        acting = jnp.where(seen, dot(q, w.mT), 0.0)
        return q - dot(acting, u_w), dot(q, k.mT) - dot(acting, u_k)

    q = q.reshape(batch, kv_heads, group, queries, width)
    blocks = k, w, u_k, u_w, seen
    if isinstance(keys, int) and len(k) <= _UNROLLED:
        rows = []
        for number in reversed(range(len(k))):  # no scan, which kernels do not have
            q, s = near_to_far(q, [a[number] for a in blocks])
            rows.insert(0, s)
        s = jnp.stack(rows)
    else:
        unroll = _UNROLLED if isinstance(keys, int) else 1
        q, s = jax.lax.scan(near_to_far, q, blocks, reverse=True, unroll=unroll)
    s = jnp.moveaxis(s, 0, -2).reshape(batch, heads, queries, -1)[..., :keys]
    return s, q.reshape(batch, heads, queries, width)


def _chunks(a, axis: int, size: int):
    """Cuts `axis` into chunks of `size`, zero padded at the end; the chunk axis comes first."""
    count = -(-a.shape[axis] // size)
    room = count * size - a.shape[axis]
    a = jnp.pad(a, [(0, room if i == axis else 0) for i in range(a.ndim)])
    return jnp.moveaxis(a.reshape(*a.shape[:axis], count, size, *a.shape[axis + 1 :]), axis, 0)


def path_directions(
    u: Float[Array, 'B rows K H'], taps: Float[Array, '3 K H'], tok: Tokens
) -> Float[Array, 'B L K H']:
    """Unit directions `w_t`, float32: causal convolution of the projected input, SiLU, L2 norm.

    Args:
      u: projected rows of the tokens and of two rows before them.
      taps: convolution weights per channel; the last one is for the token itself.
      tok: tokens of the L rows; a tap reaches neither another segment nor a row that is not valid.
    """
    length, before = tok.length, _TAPS - 1
    total = 0.0
    for tap in range(_TAPS):
        rows = u[:, tap : tap + length].astype(jnp.float32)
        reach = tok.rank >= before - tap  # the row is of the same document
        rows = jnp.where(reach[..., None, None], rows, 0.0)
        total = total + rows * taps[tap].astype(jnp.float32)
    total = jax.nn.silu(total)
    return total * jax.lax.rsqrt(jnp.sum(total**2, axis=-1, keepdims=True) + 1e-6)


def path_keys(
    k: Float[Array, 'B K S H'], w: Float[Array, 'B K 1 H'], beta: Float[Array, 'B K S']
) -> Float[Array, 'B K S H']:
    """`k_j - beta_j (k_j . w) w` in float32: cached keys after one more token."""
    k = k.astype(jnp.float32)
    along = jnp.sum(k * w, axis=-1)
    return k - (beta * along)[..., None] * w


def path_forget_bias(
    log_gates: Float[Array, '#B N S'],
    q_index: Int[Array, '#B T'],
    k_index: Int[Array, '#B S'],
    carry: Float[Array, 'B N T'],
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T']]:
    """The forget bias `F_i - F_j` of one block of keys, and the carry for the next farther block.

    The carry is `F_i - F` just before the block.

    Args:
      log_gates: `ln f` of the keys, ascending in index; 0 at keys that are not valid.
      q_index, k_index: order of the tokens. For keys after the query the bias is finite but has no
        meaning.
      carry: sum over the nearer blocks.
    """
    until = (k_index[..., :, None] <= q_index[..., None, :]).astype(jnp.float32)[:, None]
    carry = carry + _product(log_gates[..., None, :], until)[..., 0, :]
    return carry[..., None] - jnp.cumsum(log_gates, axis=-1)[..., None, :], carry


@register(
    'path',
    kind='encoding',
    card=Card(
        name='PaTH',
        example='path(rank=8, forget=True)',
        causal_only=True,
        relative=True,
        needs_training=True,
    ),
)
class PaTH(Carries, EvolvingKeys):
    """Applies one data-dependent map `H_t` per token between key and query; makes the logits.

    `logit_ij = q_i^T H_i ... H_{j+1} k_j / sqrt(H)`, `H_t = I - beta_t w_t w_t^T`, `beta_t = 2
    sigmoid(b x_t + c)`. The direction w_t is a low-rank map of the layer input x, a causal
    depthwise convolution of width 3, SiLU and L2 norm. With `forget=True` (PaTH-FoX) `F_i - F_j` is
    added, F the running sum of `logsigmoid(g x_t + d)` per query head. Differs from the paper:
    nothing; the optional norm of queries and keys belongs to the model.

    Only the tokens that a query sees act on it, so the visible tokens must be contiguous and end at
    the query. Causal, document and window masks and padding are exact. A chain with a mask that
    skips tokens in between (sinks, dilation) is an error.

    Args:
      rank: rank of the map from x to w; None is one full matrix.
      forget: adds the forget gate.
      gate_scaled: True (released kernels) divides the gate's term by sqrt(H) like the logits; False
        (paper) adds it as it is.
      heads, kv_heads, head_dim, model_dim, rngs: from the model. Directions and steps are per key
        head.

    Raises:
      ValueError: a layer input that does not have two rows more than there are keys.

    Reference: Yang et al., arXiv 2505.16381.
    """

    lookback = _TAPS - 1

    traits = frozenset({'sums_between', 'forms_logits'})

    def __init__(
        self,
        rank: Size | None = 32,
        forget: bool = False,
        gate_scaled: bool = True,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        normal = lambda shape, *axes: drawn_normal(rngs, shape, 0.02, axes)
        self.down = None if rank is None else normal((model_dim, rank), 'width', None)
        rows, role = (model_dim, 'width') if rank is None else (rank, None)
        self.up = normal((rows, kv_heads, head_dim), role, 'kv_heads', None)
        bound = _TAPS**-0.5  # the default of a depthwise convolution in the released code
        taps = _TAPS, kv_heads, head_dim
        self.taps = drawn_uniform(rngs, taps, bound, (None, 'kv_heads', None))
        self.beta_kernel = normal((model_dim, kv_heads), 'width', 'kv_heads')
        self.beta_bias = nnx.Param(jnp.zeros(kv_heads), axes=('kv_heads',))
        self.forget = forget
        self.gate_scale = head_dim**-0.5 if gate_scaled else 1.0
        if forget:
            self.gate_kernel = normal((model_dim, heads), 'width', 'heads')
            self.gate_bias = nnx.Param(jnp.zeros(heads), axes=('heads',))

    def project(self, q, k, v, tq, tk, x=None):
        x = layer_input('path', x, k.shape[1], lookback=self.lookback).astype(jnp.float32)
        u = x if self.down is None else x @ self.down[...]
        w = path_directions(jnp.einsum('bsr,rkh->bskh', u, self.up[...]), self.taps[...], tk)
        own = x[:, self.lookback :]
        real = lambda a: a if tk.valid is None else jnp.where(tk.valid[..., None], a, 0.0)
        beta = real(2.0 * jax.nn.sigmoid(own @ self.beta_kernel[...] + self.beta_bias[...]))
        tk = tk.with_feats(path={'w': w, 'beta': beta})
        # A name of its own, since it stays in the cache while `update_keys` consumes w and beta.
        if self.forget:
            gates = jax.nn.log_sigmoid(own @ self.gate_kernel[...] + self.gate_bias[...])
            tk = tk.with_feats(path_gates=real(gates))
        return q, k, v, tq, tk

    def first_carry(self, q, tq):
        counted = (jnp.zeros(q.shape[:3], jnp.float32),) if self.forget else ()
        return (q.astype(jnp.float32), *counted)

    def logits(self, s, q, k, tq, tk, seen, carry):
        q, *gates = carry
        if 'path' in tk.feats:
            w, beta = heads_first(tk.feats['path']['w']), heads_first(tk.feats['path']['beta'])
            s, q = path_match(q, k, w, beta, tk.index, seen)
            s = s * q.shape[-1] ** -0.5
        else:  # cached keys, which `update_keys` has brought to this query
            s = scaled_dot_product(q, k)
        if not gates:
            return s, (q,)
        bias, after = path_forget_bias(
            heads_first(tk.feats['path_gates']), tq.index, tk.index, gates[0]
        )
        return s + self.gate_scale * bias, (q, after)

    def update_keys(self, k, tk, new):
        w, beta = heads_first(new.feats['path']['w']), heads_first(new.feats['path']['beta'])
        acts = tk.index < new.index
        if tk.segment is not None and new.segment is not None:
            acts = acts & (tk.segment == new.segment)
        return path_keys(k, w, jnp.where(acts[:, None], beta, 0.0))
