"""Kernelized attention with relative positions, as logits per pair or over a sequence by FFT."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from posenc_jax.base.orthonormal import orthonormal_rows
from posenc_jax.base.products import heads_first, over_batch, scaled_dot_product
from posenc_jax.methods.t5_rpe import look_up
from posenc_jax.protocol.bounds import CONTEXT, Count, Size
from posenc_jax.protocol.capabilities import FastPath
from posenc_jax.protocol.encoding import Constant
from posenc_jax.protocol.families import signed_distance
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

# The first rows of a causal pass are summed by pairs. They have few keys, while the error of the
# transform grows with all keys.
_BY_PAIRS = 256
# Largest relative error of a sum of weights that the transform may cause, as `_error` estimates it.
_TOLERANCE = 1e-4
_TINY = 1e-37
# The FFT form is as fast as the causal sweep from this number times H m log2(2L) keys per query.
# Measured on two CPU cores (benchmarks/kernelized.py).
_PAIRS_PER_TRANSFORM = 1.5


def kernelized_rpe_directions(
    key: Array, heads: int, features: int, width: int, *, orthogonal: bool = False
) -> Float[Array, 'K m H']:
    """Rows w_r ~ N(0, I); with `orthogonal`, each block of H rows is orthogonal.

    Orthogonal rows keep the distribution of a single row.
    """
    shape = heads, features, width
    drawn = jax.random.normal(key, shape, jnp.float32)
    if not orthogonal:
        return drawn
    blocks = -(-features // width)
    square = heads, blocks, width, width
    turns = jax.random.normal(jax.random.fold_in(key, 1), square, jnp.float32)
    turns = jnp.swapaxes(orthonormal_rows(jnp.swapaxes(turns, -1, -2)), -1, -2)
    rows = turns.reshape(heads, blocks * width, width)[:, :features]
    return rows * jnp.linalg.norm(drawn, axis=-1, keepdims=True)


def kernelized_rpe_features(
    x: Float[Array, 'B L N H'], w: Float[Array, 'K m H']
) -> tuple[Float[Array, 'B L N m'], Float[Array, 'B L N']]:
    """Features phi of the normalised vectors, scaled to a largest entry of 1, and the log of scale.

    `phi(x) = m^-1/2 exp(-||x||^2 / 2) [exp(w_1 . x), ..., exp(w_m . x)]` at `x / ||x||`, float32;
    each of the K sets of directions serves N // K consecutive heads.
    """
    batch, length, heads, width = x.shape
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
    grouped = x.reshape(batch, length, w.shape[0], -1, width)
    exponent = jnp.einsum('blkgh,kmh->blkgm', grouped, w, precision='highest')
    exponent = exponent.reshape(batch, length, heads, -1)
    high = jax.lax.stop_gradient(exponent.max(-1))
    return jnp.exp(exponent - high[..., None]), high - 0.5 - 0.5 * math.log(w.shape[1])


def kernelized_rpe_logits(
    phi_q: Float[Array, 'B N T m'],
    phi_k: Float[Array, 'B K S m'],
    scale_q: Float[Array, 'B N T'],
    scale_k: Float[Array, 'B K S'],
) -> Float[Array, 'B N T S']:
    """`ln(phi(q) . phi(k))` from features and their logarithmic scales.

    Key heads are shared as in `scaled_dot_product`.
    """
    product = scaled_dot_product(phi_q, phi_k) * phi_q.shape[-1] ** 0.5
    scale_k = jnp.repeat(scale_k, scale_q.shape[1] // scale_k.shape[1], axis=1)
    return jnp.log(jnp.maximum(product, _TINY)) + scale_q[..., None] + scale_k[:, :, None]


def kernelized_rpe_bias(
    table: Float[Array, 'N offsets'], q_pos: Num[Array, '#B T'], k_pos: Num[Array, '#B S']
) -> Float[Array, '#B N T S']:
    """`b[j - i]` per head, with the distance clipped to -(n - 1) .. n - 1.

    Entry 0 of the table is for the farthest earlier key.
    """
    if not (jnp.issubdtype(q_pos.dtype, jnp.integer) and jnp.issubdtype(k_pos.dtype, jnp.integer)):
        raise ValueError(
            f'kernelized_rpe has one bias per whole distance, got positions of {q_pos.dtype}, '
            f'{k_pos.dtype}'
        )
    last = table.shape[1] // 2
    return look_up(table.T, jnp.clip(-signed_distance(q_pos, k_pos), -last, last) + last)


def _spectrum(bias, causal):
    """exp(b - max b) per distance (0 for later keys if causal), and its circulant transform."""
    length = (bias.shape[1] + 1) // 2
    if causal:
        bias = jnp.where(jnp.arange(2 * length - 1) < length, bias, -jnp.inf)
    c = jnp.exp(bias - jax.lax.stop_gradient(bias.max(-1, keepdims=True)))
    column = c[:, length - 1 :: -1], jnp.zeros_like(c[:, :1]), c[:, : length - 1 : -1]
    return c, jnp.fft.rfft(jnp.concatenate(column, axis=1))


def _sums(values, phi_q, phi_k, spectrum):
    """`sum_j c_{j-i} phi(q_i) . phi(k_j) values_j`, [B, K, g, L], for `values` [B, K, L]."""
    size = 2 * values.shape[-1]
    keyed = jnp.fft.rfft(phi_k * values[:, :, None], size)[:, :, None]
    spread = jnp.fft.irfft(keyed * spectrum[:, :, None], size)[..., : values.shape[-1]]
    return (phi_q * spread).sum(-2)


def _feature_rows(phi_q, phi_k, bias, causal):
    """The arguments of `_sums`: [B, K, g, m, L], [B, K, m, L], [K, g, L + 1]; and c."""
    batch, length, heads, m = phi_q.shape
    kv_heads = phi_k.shape[2]
    c, spectrum = _spectrum(bias.astype(jnp.float32), causal)
    rows = jnp.moveaxis(phi_q, 1, 3).reshape(batch, kv_heads, heads // kv_heads, m, length)
    return rows, jnp.moveaxis(phi_k, 1, 3), spectrum.reshape(kv_heads, heads // kv_heads, -1), c


def kernelized_rpe_attention(
    phi_q: Float[Array, 'B L N m'],
    phi_k: Float[Array, 'B L K m'],
    v: Float[Array, 'B L K H'],
    bias: Float[Array, 'N offsets'],
    *,
    causal: bool = True,
) -> Float[Array, 'B L N H']:
    """Kernelized attention with a bias per distance, over a whole sequence in O(L log L).

    `out_i = phi(q_i) . sum_j c_{j-i} phi(k_j) v_j / phi(q_i) . sum_j c_{j-i} phi(k_j)`, with
    `c = exp(b)`. The sums over keys are products with a Toeplitz matrix. They are evaluated as a
    circulant matrix of size 2L by FFT, one column of v at a time. So memory is O(L m), in the
    backward pass too. Everything is computed in float32, whatever the dtype of the arguments. The
    largest b is subtracted first, and sums of weights are held at 1e-6 or more. The first 256 rows
    of a causal pass are summed pair by pair. The error is about 1e-7 of the largest sums; where
    values of b differ by much more than 10, use the form by pairs.

    Args:
      phi_q, phi_k: positive features with a largest entry of about 1; zero for invalid keys.
      v: values; N must be a multiple of K.
      bias: b for j - i = -(L - 1) .. L - 1.
      causal: whether keys after the query count.

    Raises:
      ValueError: shapes that do not fit together.

    Example:
      >>> one = jnp.ones((1, 3, 1, 1))
      >>> v = jnp.array([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
      >>> kernelized_rpe_attention(one, one, v, jnp.zeros((1, 5)))[0, :, 0, 0].round(4).tolist()
      [1.0, 1.5, 3.0]
    """
    length, heads, kv_heads = v.shape[1], phi_q.shape[2], v.shape[2]
    if phi_q.shape[:2] != v.shape[:2] or phi_k.shape[:3] != v.shape[:3] or heads % kv_heads:
        raise ValueError(
            f'kernelized_rpe_attention: shapes do not fit: {phi_q.shape}, {phi_k.shape}, {v.shape}'
        )
    if bias.shape != (heads, 2 * length - 1):
        raise ValueError(
            f'kernelized_rpe_attention: bias must be {(heads, 2 * length - 1)}, got {bias.shape}'
        )
    phi_q, phi_k = phi_q.astype(jnp.float32), phi_k.astype(jnp.float32)
    rows, keys, spectrum, c = _feature_rows(phi_q, phi_k, bias, causal)
    weights = _sums(jnp.ones((*v.shape[:1], kv_heads, length)), rows, keys, spectrum)
    return _quotient(rows, keys, spectrum, weights, v, c, causal)


def _quotient(rows, keys, spectrum, weights, v, c, causal):
    columns = jnp.moveaxis(v.astype(jnp.float32), (3, 2), (0, 2))
    total = jax.lax.map(jax.checkpoint(lambda column: _sums(column, rows, keys, spectrum)), columns)
    out = jnp.moveaxis(total / jnp.maximum(weights, 1e-6), (0, 4), (4, 1))  # [B, L, K, g, H]
    out = out.reshape(*v.shape[:2], -1, v.shape[3])
    if causal:
        first = min(_BY_PAIRS, v.shape[1])
        out = jnp.concatenate([_by_pairs(rows, keys, c, v, first), out[:, first:]], axis=1)
    return out.astype(v.dtype)


def _by_pairs(rows, keys, c, v, first):
    """The first rows of a causal pass."""
    middle, number = c.shape[1] // 2, jnp.arange(first)
    near = jnp.tril(c[:, middle + number[None, :] - number[:, None]])
    exact = functools.partial(jnp.einsum, precision='highest')
    w = exact('bkgmt,bkms->bkgts', rows[..., :first], keys[..., :first])
    w = w * near.reshape(*rows.shape[1:3], first, first)
    out = exact('bkgts,bskh->btkgh', w, v[:, :first].astype(jnp.float32))
    total = jnp.moveaxis(w.sum(-1), 3, 1)[..., None]
    return (out / jnp.where(total > 0, total, 1.0)).reshape(v.shape[0], first, -1, v.shape[3])


def _error(rows, keys, c, weights, valid, causal):
    """Estimate of the transform's largest relative error in a row's sum of weights.

    Its rounding error is proportional to the norms of the sequences that it multiplies.
    """
    norms = jnp.linalg.norm(keys, axis=-1)[:, :, None, :, None]
    size = jnp.linalg.norm(c, axis=-1).reshape(rows.shape[1:3])[..., None]
    share = jnp.finfo(jnp.float32).eps * size * (rows * norms).sum(-2) / jnp.maximum(weights, _TINY)
    counted = valid if not causal else valid & (jnp.arange(valid.shape[1]) >= _BY_PAIRS)
    return jnp.where(counted[:, None, None], share, 0.0).max()


def _consecutive(tq: Tokens, tk: Tokens, valid: Bool[Array, '#B L']) -> Bool[Array, '']:
    """Whether queries and keys are the same tokens and valid ones have consecutive positions."""
    offset = tk.pos - jnp.arange(tk.length)
    low, high = jnp.iinfo(offset.dtype).max, jnp.iinfo(offset.dtype).min
    low, high = jnp.where(valid, offset, low).min(1), jnp.where(valid, offset, high).max(1)
    same = (tq.index == tk.index).all() & (tq.pos == tk.pos).all()
    return same & (jnp.diff(tk.index, axis=1) > 0).all() & (low >= high).all()


@register(
    'kernelized_rpe',
    kind='encoding',
    card=Card(
        name='NPRF attention with relative positions',
        example='kernelized_rpe(features=16, max_distance=6)',
        use_when=(
            'You have very long rows and want attention in time linear in the length, '
            'with relative positions.'
        ),
        share='layer',
        relative=True,
        needs_training=True,
    ),
)
class KernelizedRPE(FastPath):
    """Attention weights from positive random features, weighted by the distance.

    `out_i = sum_j c_{j-i} phi(qn_i) . phi(kn_j) v_j / sum_j c_{j-i} phi(qn_i) . phi(kn_j)`, `c_r =
    exp(b_r)`, q and k scaled to length 1 (no 1 / sqrt(H)), `phi(x) = m^-1/2 exp(-||x||^2/2)
    [exp(w_r . x)]_r`, w_r ~ N(0, I) and not trained. This equals softmax attention with logits
    `b_{j-i} + ln(phi(qn_i) . phi(kn_j))`, and in that form it is masked, tiled, decoded and
    sharded. A long sequence at consecutive positions is evaluated by `kernelized_rpe_attention` in
    O(L log L) instead, if the chain holds no other bias and no mask but the causal one, and if the
    FFT is precise enough for these b and lengths. Differs from the paper: distances beyond the
    table use its last entry (for buckets leave the table at `max_distance=0` and chain `t5_rpe()`);
    the query heads of one key head share directions. In a chain, features are computed from the
    queries and keys that the earlier parts leave. The cache stores keys with their features.

    Args:
      features: m.
      max_distance: n - 1; the table has 2n - 1 entries per head, all 0 at first.
      orthogonal: draws directions orthogonal in blocks of H, which estimates the exponential with
        less variance.
      fft_from: length from which the FFT form is used. None takes about `1.5 H m log2(2L)` (half of
        it without the causal mask), from where it was measured to be faster on a CPU.
      heads, kv_heads, head_dim, rngs: from the model.

    Raises:
      ValueError: at call, positions that are not whole numbers.

    Reference: Luo et al., arXiv 2106.12566.
    """

    traits = frozenset({'reads_own_projections', 'forms_logits'})

    def __init__(
        self,
        features: Size = 64,
        max_distance: Count = 128,
        orthogonal: bool = False,
        fft_from: Size | None = None,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.fft_from = fft_from
        sizes = kv_heads, features, head_dim
        directions = kernelized_rpe_directions(rngs.params(), *sizes, orthogonal=orthogonal)
        self.directions = Constant(directions, axes=('kv_heads', None, None))
        table = jnp.zeros((heads, 2 * max_distance + 1), jnp.float32)
        self.table = nnx.Param(table, axes=('heads', None))

    def project(self, q, k, v, tq, tk, x=None):
        described = lambda a: dict(
            zip(('phi', 'scale'), kernelized_rpe_features(a, self.directions[...]))
        )
        tq, tk = (tok.with_feats(kernelized_rpe=described(a)) for tok, a in ((tq, q), (tk, k)))
        return q, k, v, tq, tk

    def logits(self, s, q, k, tq, tk, seen, carry):
        of_q, of_k = (jax.tree.map(heads_first, tok.feats['kernelized_rpe']) for tok in (tq, tk))
        s = kernelized_rpe_logits(of_q['phi'], of_k['phi'], of_q['scale'], of_k['scale'])
        bias = kernelized_rpe_bias(self.table[...], tq.pos, tk.pos)
        return s + over_batch(bias, s.shape[0]), carry

    def fast_path(self, q, k, v, tq, tk, *, causal, sweep):
        length = tk.length
        if (
            tq.length != length
            or tk.segment is not None
            or not isinstance(length, int)  # it may be symbolic
            or not self._pays(length, v.shape[-1], causal)
        ):
            return None
        of_q, of_k = tq.feats['kernelized_rpe'], tk.feats['kernelized_rpe']
        valid = jnp.ones((1, length), bool) if tk.valid is None else tk.valid
        scale = jnp.where(valid[..., None], of_k['scale'], -jnp.inf)
        high = jax.lax.stop_gradient(scale.max(1, keepdims=True))
        phi_k = of_k['phi'] * jnp.exp(scale - jnp.where(jnp.isfinite(high), high, 0.0))[..., None]
        reach = jnp.arange(2 * length - 1)[None]
        bias = kernelized_rpe_bias(self.table[...], reach[:, length - 1 : length], reach)[0, :, 0]
        rows, keys, spectrum, c = _feature_rows(of_q['phi'], phi_k, bias, causal)
        weights = _sums(jnp.ones((v.shape[0], v.shape[2], length)), rows, keys, spectrum)
        precise = _error(rows, keys, c, weights, valid, causal) < _TOLERANCE
        by_fft = lambda: _quotient(rows, keys, spectrum, weights, v, c, causal)
        return jax.lax.cond(_consecutive(tq, tk, valid) & precise, by_fft, sweep)

    def _pays(self, length, width, causal):
        if self.fft_from is not None:
            return length >= self.fft_from
        transformed = width * self.directions.shape[1] * math.log2(2 * length)
        return length >= _PAIRS_PER_TRANSFORM * transformed * (1.0 if causal else 0.5)
