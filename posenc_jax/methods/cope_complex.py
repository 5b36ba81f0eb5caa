"""CoPE, complex: token vectors with an imaginary part of sines, and attention of complex queries
and keys, for the first layer of a model.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.base.products import heads_first, scaled_dot_product, weighted_sum
from posenc_jax.methods.sinusoidal import sinusoidal_frequencies
from posenc_jax.protocol.bounds import CONTEXT, Finite, Size
from posenc_jax.protocol.capabilities import SeveralInputs
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_range, lookup_rows

Mode = Literal['magnitude', 'phase', 'real', 'hybrid', 'apatt', 'riatt']
Merge = Literal['real', 'concat']
Position = Literal['sinusoid', 'learned']
MODES = ('magnitude', 'phase', 'real', 'hybrid', 'hybrid_norm', 'apatt')
_TINY = 1e-12  # of |S|^2 / H, so that the derivative of |S| exists at 0


def cope_complex_sines(pos: Num[Array, '#B L'], width: int) -> Float[Array, '#B L D']:
    """`s[2m] = s[2m+1] = sin(p 10000^(-2m/D))`: every sine twice, and no cosine, float32.

    Raises:
      ValueError: an odd width.
    """
    if width < 2 or width % 2:
        raise ValueError(
            f'cope_complex gives every sine to two features, so the width is even, got {width}'
        )
    return jnp.repeat(jnp.sin(phase(pos, sinusoidal_frequencies(width // 2))), 2, axis=-1)


def complex_products(
    q: tuple[Float[Array, 'B N T H'], Float[Array, 'B N T H']],
    k: tuple[Float[Array, 'B K S H'], Float[Array, 'B K S H']],
) -> tuple[Float[Array, 'B N T S'], Float[Array, 'B N T S']]:
    """The real and the imaginary part of `q_i . conj(k_j) / sqrt(H)`, float32.

    Args:
      q, k: real and imaginary part of queries and keys; key heads are shared as usual.
    """
    (q_re, q_im), (k_re, k_im) = q, k
    real = scaled_dot_product(q_re, k_re) + scaled_dot_product(q_im, k_im)
    return real, scaled_dot_product(q_im, k_re) - scaled_dot_product(q_re, k_im)


def complex_logits(
    real: Float[Array, 'B N T S'],
    imaginary: Float[Array, 'B N T S'],
    head_dim: int,
    mode: str,
    alpha: float = 0.25,
    seen: Bool[Array, '#B #N T S'] | None = None,
) -> Float[Array, 'B N T S']:
    """Logits of complex products S, all divided by sqrt(H).

    'magnitude' and 'apatt' |S|, 'real' Re S, 'phase' cos(arg S) = Re S / |S|, 'hybrid' `|S| + alpha
    cos(arg S)`, 'hybrid_norm' `|S| / max |S| + alpha cos(arg S)` with the maximum over the keys
    that the query sees.

    Args:
      real, imaginary: see `complex_products`, of all keys at once for 'hybrid_norm'.
      head_dim: H.
      seen: which keys each query sees, for 'hybrid_norm'; None for all.

    Raises:
      SpecError: an unknown mode.

    Example:
      >>> one = lambda x: jnp.full((1, 1, 1, 1), x)
      >>> complex_logits(one(3.0), one(4.0), 1, 'hybrid', alpha=0.5).round(4).item()
      5.3
    """
    check_choice('complex_logits mode', mode, MODES)
    if mode == 'real':
        return real
    size = jnp.sqrt(real**2 + imaginary**2 + _TINY)
    if mode in ('magnitude', 'apatt'):
        return size
    angle = real / size * head_dim**-0.5
    if mode == 'phase':
        return angle
    if mode == 'hybrid':
        return size + alpha * angle
    visible = size if seen is None else jnp.where(seen, size, 0.0)
    largest = jnp.maximum(visible.max(-1, keepdims=True), _TINY**0.5)
    return size / largest * head_dim**-0.5 + alpha * angle


def paired(re: Array, im: Array, groups: int, axis: int) -> Array:
    """Both parts joined along the heads: in each of the groups of query heads that share a key
    head, the real parts come first. So a mesh that cuts the key heads leaves the parts together.
    """
    shape = (*re.shape[:axis], groups, -1, *re.shape[axis + 1 :])
    both = jnp.concatenate([re.reshape(shape), im.reshape(shape)], axis=axis + 1)
    return both.reshape(*re.shape[:axis], -1, *re.shape[axis + 1 :])


def parted(both: Array, groups: int, axis: int) -> tuple[Array, Array]:
    """The real and the imaginary part of what `paired` joined."""
    split = both.reshape(*both.shape[:axis], groups, 2, -1, *both.shape[axis + 1 :])
    flat = (*both.shape[:axis], -1, *both.shape[axis + 1 :])
    re, im = (jax.lax.index_in_dim(split, part, axis + 1, keepdims=False) for part in range(2))
    return re.reshape(flat), im.reshape(flat)


@register(
    'cope_complex',
    kind='encoding',
    card=Card(
        name='CoPE (complex)',
        example='cope_complex()',
        use_when=(
            'You train an encoder in which one early layer should tell where in the text '
            'a word stands.'
        ),
        needs_training=True,
    ),
)
class CopeComplex(SeveralInputs):
    """Attention of complex vectors whose imaginary part is the position; for the first layer.

    `logit_ij = |W_q z_i . conj(W_k z_j)| / sqrt(H)`, `z_t = x_t + i gamma s_t`, `s_t[2m] =
    s_t[2m+1] = sin(t 10000^(-2m/D))`, x the input of attention. Queries, keys and values are
    complex, `z W^T` with `W = W_r + i W_i`: W_r are the projections of the layer, W_i belongs to
    this encoding. With `S_ij = q_i . conj(k_j)` the logits are those of `complex_logits`; the
    values are summed as complex numbers. Other layers are ordinary in the paper:
    `pattern=('cope_complex()', 'nope()', ...)` with one entry for each layer. As `encoding` it acts
    in every layer, each with imaginary parts of its own. It acts on projections and logits; a cache
    holds both parts of keys and values. Attention has twice the heads of the layer, so parts with
    parameters per head cannot be chained. Differs from the paper: the details are an
    interpretation; x is the input of the layer behind its norm; the output projection is that of
    the layer, and real. A bias of the projections is added to both parts.

    Args:
      mode: 'magnitude', 'phase', 'real' or 'hybrid', see `complex_logits`; 'apatt' weighs by |S|
        and multiplies the values by S / |S|; 'riatt' has the complex weights `softmax(Re S) + i
        softmax(Im S)`. 'hybrid_norm' needs all keys at once, which the sweep over blocks of keys
        does not have: `complex_logits` has it for whole rows.
      alpha: weight of the cosine in 'hybrid'; the paper has 0.2 to 0.3.
      gamma: weight of the position.
      position: 'sinusoid', or 'learned', a trained table.
      max_len: rows of the learned table.
      merge: 'real' goes on with the real part of each head; 'concat' with a trained projection of
        both parts to the width of the head, which is the real part at first.
      heads, kv_heads, head_dim, model_dim: from the model.

    Raises:
      ValueError: an odd model_dim with sines, 'riatt' with 'concat'; at call, positions with
        components, or outside a learned table.

    Reference: Amballa, arXiv 2508.18308.
    """

    traits = frozenset({'forms_logits'})

    def __init__(
        self,
        mode: Mode = 'magnitude',
        alpha: Finite = 0.25,
        gamma: Finite = 1.0,
        position: Position = 'sinusoid',
        max_len: Size = 512,
        merge: Merge = 'real',
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.mode, self.kv_heads = mode, kv_heads
        self.alpha, self.gamma = alpha, gamma
        if mode == 'riatt' and merge != 'real':
            raise ValueError("cope_complex(mode='riatt') sums the real part only: merge='real'")
        drawn = lambda count, role: drawn_normal(
            rngs, (model_dim, count, head_dim), model_dim**-0.5, ('width', role, 'head_dim')
        )
        self.w_q = drawn(heads, 'heads')
        self.w_k, self.w_v = drawn(kv_heads, 'kv_heads'), drawn(kv_heads, 'kv_heads')
        table = project = None
        if position == 'learned':
            table = drawn_normal(rngs, (max_len, model_dim), 0.02, ('positions', 'width'))
        elif model_dim % 2:
            raise ValueError(
                'cope_complex gives every sine to two features, so model_dim is even, got '
                f'{model_dim}'
            )
        if merge == 'concat':
            start = jnp.eye(2 * head_dim, head_dim, dtype=jnp.float32)
            start = jnp.broadcast_to(start, (heads, 2 * head_dim, head_dim))
            project = nnx.Param(start, axes=('heads', None, None))
        self.table, self.w_merge = table, project

    def imaginary(self, tok, width: int) -> Float[Array, '#B L D']:
        """`gamma s_t`."""
        if tok.pos.ndim != 2:
            raise ValueError(f'cope_complex needs positions [B, L], got {tok.pos.shape}')
        if self.table is None:
            return self.gamma * cope_complex_sines(tok.pos, width)
        check_range('cope_complex', tok, self.table.shape[0], "position='sinusoid'")
        return self.gamma * lookup_rows(self.table[...], tok.pos)

    def qkv(self, x, linear, tok):
        x = x[:, x.shape[1] - tok.length :]
        s = jnp.broadcast_to(self.imaginary(tok, x.shape[-1]).astype(x.dtype), x.shape)

        def joined(of_x, of_s, w):
            turned = lambda a: jnp.einsum('bld,dnh->blnh', a, w[...].astype(x.dtype))
            return paired(of_x - turned(s), of_s + turned(x), self.kv_heads, 2)

        weights = self.w_q, self.w_k, self.w_v
        q, k, v = (joined(*parts) for parts in zip(linear(x), linear(s), weights))
        return q, k, v

    def logits(self, s, q, k, tq, tk, seen, carry):
        groups = k.shape[1] // 2
        real, imaginary = complex_products(parted(q, groups, 1), parted(k, groups, 1))
        if self.mode == 'riatt':
            return paired(real, imaginary, groups, 1), carry
        s = complex_logits(real, imaginary, q.shape[-1], self.mode, self.alpha)
        return paired(s, s, groups, 1), carry

    def merge(self, out):
        re, im = parted(out, self.kv_heads, 2)
        if self.mode == 'riatt':
            return re - im
        if self.w_merge is None:
            return re
        both = jnp.concatenate([re, im], axis=-1)
        return jnp.einsum('btnc,nch->btnh', both, self.w_merge[...].astype(out.dtype))


class PhaseCoPEComplex(CopeComplex, where=lambda given: given['mode'] == 'apatt'):
    """The mode 'apatt': the values are multiplied by the phases of the products."""

    # `collect` reads the queries and keys that `project` of this part sees.
    traits = CopeComplex.traits | {'reads_own_projections'}

    def project(self, q, k, v, tq, tk, x=None):
        return q, k, v, tq.with_feats(cope_complex=q), tk.with_feats(cope_complex=k)

    def collect(self, w, v, tq, tk):
        groups = v.shape[1] // 2
        q, k = (heads_first(tok.feats['cope_complex']) for tok in (tq, tk))
        real, imaginary = complex_products(parted(q, groups, 1), parted(k, groups, 1))
        size = jnp.sqrt(real**2 + imaginary**2 + _TINY)
        w, _ = parted(w, groups, 1)
        w_re, w_im = w * (real / size), w * (imaginary / size)
        v_re, v_im = parted(v, groups, 1)
        re = weighted_sum(w_re, v_re) - weighted_sum(w_im, v_im)
        return paired(re, weighted_sum(w_re, v_im) + weighted_sum(w_im, v_re), groups, 1)
