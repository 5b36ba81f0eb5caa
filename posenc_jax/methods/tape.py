"""TAPE: rotary factors that attention and a small network change from layer to layer."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.protocol.bounds import CONTEXT, Base, Positive, Size
from posenc_jax.protocol.capabilities import Streams
from posenc_jax.protocol.encoding import drawn_normal
from posenc_jax.protocol.errors import check_choice, check_number
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

PostAttention = Literal['gain', 'mix']
POST_ATTENTIONS = ('gain', 'mix')


def tape_start(pos: Num[Array, '#B L'], inv_freq: np.ndarray) -> Float[Array, '#B L 1 H']:
    """`z = exp(i p theta)`, as real parts followed by imaginary parts; float32.

    Args:
      pos: positions.
      inv_freq: theta, H/2 frequencies in radians per position.
    """
    angles = phase(pos, inv_freq)[:, :, None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def tape_turn(x: Float[Array, 'B L N H'], z: Float[Array, '#B #L K H']) -> Float[Array, 'B L N H']:
    """`x z`, products of complex numbers, in float32 inside; the result has the dtype of `x`.

    Number f of a head is `x_f + i x_{f + H/2}`. A head of `z` serves N // K consecutive heads.
    """
    grouped = x.reshape(*x.shape[:2], z.shape[2], -1, x.shape[-1]).astype(jnp.float32)
    a, b = jnp.split(grouped, 2, axis=-1)
    re, im = jnp.split(z[:, :, :, None], 2, axis=-1)
    turned = jnp.concatenate([a * re - b * im, a * im + b * re], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def tape_attended(
    z: Float[Array, 'B L K H'],
    mean: Float[Array, 'B L N H'],
    weights: Float[Array, 'K N'],
    *,
    post_attn: PostAttention = 'gain',
) -> Float[Array, 'B L K H']:
    """`z` behind attention.

    With 'gain' `z_g + c_g mean_g`, c the row sums of `weights` and mean_g the average over the
    query heads of g; with 'mix' `z_g + sum_h weights_gh mean_h`.

    Args:
      z: before attention.
      mean: `sum_j a_ij z_j` with the attention of each query head.
      weights: of query heads, for every head of `z`.
      post_attn: 'gain' or 'mix'.
    """
    if check_choice('post_attn', post_attn, POST_ATTENTIONS) == 'mix':
        return z + jnp.einsum('gn,blnh->blgh', weights, mean, precision='highest')
    group = mean.reshape(*z.shape[:3], -1, z.shape[-1]).mean(3)
    return z + weights.sum(1)[:, None] * group


def tape_fed(
    z: Float[Array, 'B L K H'],
    m: Float[Array, 'B L D'],
    w_gate: Float[Array, 'D I'],
    w_up: Float[Array, 'K I'],
    w_down: Float[Array, 'K I'],
) -> Float[Array, 'B L K H']:
    """`z_g + sum_e down_ge silu(m gate)_e sum_h up_he z_h`: the position network.

    The hidden units only mix the heads of one token, so their K x K matrix is formed first. That
    takes far less time and memory than I hidden units of width H.
    """
    gate = jax.nn.silu(jnp.matmul(m.astype(jnp.float32), w_gate, precision='highest'))
    pairs = (w_down[:, None] * w_up).reshape(-1, w_up.shape[1])
    mixing = jnp.matmul(gate, pairs.T, precision='highest')
    mixing = mixing.reshape(*z.shape[:3], z.shape[2])
    return z + jnp.einsum('blgk,blkh->blgh', mixing, z, precision='highest')


@register(
    'tape',
    kind='encoding',
    card=Card(
        name='TAPE',
        example='tape()',
        use_when=(
            'You train on tasks of retrieval or arithmetic and want positions that every '
            'layer changes.'
        ),
        relative=True,
        needs_training=True,
    ),
)
class TAPE(Streams):
    """Turns queries and keys by complex factors z, a second state that every layer changes.

    `logit_ij = Re(sum_f (q z)_if conj(k z)_jf) / sqrt(H)`, `z_i += c sum_j a_ij z_j`, `z += down
    (silu(gate m) * up z)`. A token has one factor for each head and plane, `z = exp(i p theta /
    scale)` at first. A layer averages z with the weights a of attention, and mixes its heads by a
    network that is gated by the output m of the layer's feed-forward network. All of these are
    linear in z and alike for all planes. So a rotation of all z of a plane by one phase changes
    nothing, and only position differences count. With `up` and c of zero, as at the start, it is
    RoPE with the layout 'half'.

    z and the values that are joined to it are float32, also in a model of bfloat16. The cache of a
    layer holds the turned keys, and the values with z beside them.

    Outside a model no state arrives. The encoding then begins one, so it is RoPE, and its
    parameters have no effect. In a model the state behind the last layer is not read, so the
    parameters with which that layer changes it get no gradient. In a pattern of layers the first
    layer with this encoding begins the state, with its own `base` and `scale`.

    Differs from the paper: the shift of all positions that training draws at random is left out,
    because no result depends on it. Key heads that several query heads share have one state, and
    the averages of these query heads are averaged ('gain') or mixed; the paper has no such heads.

    A model of `rope()` is fine-tuned to a longer text with `init.source`,
    `encoding='tape(scale=S)'`, where S is how many times longer the text is, and
    `train.tune='encodings+norms+embedding'`. Extensions such as `pi` take a rotary encoding;
    `scale` does here what they do there.

    Args:
      base: base of the frequencies of z at the first layer.
      scale: divides these frequencies, to read texts longer than those of training.
      position_size: hidden units I of the position network; None takes 4 N.
      post_attn: how c is made of a matrix with a row for each head of z: 'gain' takes its row sums
        (the released code), 'mix' multiplies the averages of all heads with it.
      heads, kv_heads, head_dim, model_dim: N, K, H and D, from the model.
      rngs: draws `gate` and `down`.

    Raises:
      ValueError: an odd head width; at call, positions of several components.

    Reference: Zhu, Wang, Cai, Lee, Li, Wang, arXiv 2501.00712.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('tape()', heads=2, head_dim=4, model_dim=8, rngs=nnx.Rngs(0))
      >>> stream = part.begin_stream(pj.Tokens.of(length=5))
      >>> stream.shape, part.feed_stream(jnp.ones((1, 5, 8)), stream).shape
      ((1, 5, 2, 4), (1, 5, 2, 4))
    """

    traits = frozenset({'rotates'})

    def __init__(
        self,
        base: Base = 10000.0,
        scale: Positive = 1.0,
        position_size: Size | None = None,
        post_attn: PostAttention = 'gain',
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        hidden = 4 * heads if position_size is None else position_size
        check_number('position_size of tape', hidden, least=1)
        rope_frequencies(head_dim, base)
        self.base, self.scale, self.head_dim, self.kv_heads = base, scale, head_dim, kv_heads
        self.post_attn: PostAttention = post_attn
        self.gate = drawn_normal(rngs, (model_dim, hidden), 0.02, ('width', None))
        self.up = nnx.Param(jnp.zeros((kv_heads, hidden), jnp.float32), axes=('kv_heads', None))
        self.down = drawn_normal(rngs, (kv_heads, hidden), 0.02, ('kv_heads', None))
        self.weights = nnx.Param(jnp.zeros((kv_heads, heads), jnp.float32), axes=('kv_heads', None))

    def begin_stream(self, tok):
        if tok.pos.ndim != 2:
            raise ValueError(
                f'tape takes one position per token, got {math.prod(tok.pos.shape[2:])} components'
            )
        z = tape_start(tok.pos, rope_frequencies(self.head_dim, self.base) / self.scale)
        return jnp.broadcast_to(z, (*z.shape[:2], self.kv_heads, self.head_dim))

    def project(self, q, k, v, tq, tk, x=None):
        if 'stream' not in tk.feats:
            q, k = (tape_turn(a, self.begin_stream(tok)) for a, tok in ((q, tq), (k, tk)))
            return q, k, v, tq, tk
        z, tk = _taken(tk)
        own, tq = _taken(tq)
        joined = jnp.concatenate([v.astype(jnp.float32), z], axis=-1)
        return tape_turn(q, own), tape_turn(k, z), joined, tq, tk

    def carry_stream(self, out, stream):
        out, mean = jnp.split(out, [out.shape[-1] - self.head_dim], axis=-1)
        return out, tape_attended(stream, mean, self.weights[...], post_attn=self.post_attn)

    def feed_stream(self, m, stream):
        return tape_fed(stream, m, self.gate[...], self.up[...], self.down[...])


def _taken(tok: Tokens) -> tuple[Array, Tokens]:
    """The stream of these tokens, and the tokens without it."""
    feats = {name: feature for name, feature in tok.feats.items() if name != 'stream'}
    return tok.feats['stream'], dataclasses.replace(tok, feats=feats)
