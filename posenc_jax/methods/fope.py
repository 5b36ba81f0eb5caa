"""FoPE: rotary cosines and sines that mix several frequencies, without those never seen whole."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.phases import TWO_PI
from posenc_jax.methods.rope import Rotary, rope_frequencies
from posenc_jax.protocol.bounds import CONTEXT, Base, NonNegative, TrainLen
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.families import Frequencies
from posenc_jax.protocol.registry import Card, register


def fope_frequencies(head_dim: int, base: float, train_len: int) -> np.ndarray:
    """Those of RoPE's frequencies that turn at least once within the trained length, float64.

    Raises:
      ValueError: a width that is odd or below 2; a base below 1; no frequency turns that fast.
    """
    theta = rope_frequencies(head_dim, base)
    kept = theta[theta * train_len >= TWO_PI]
    if not len(kept):
        raise ValueError(
            f'fope drops frequencies that do not turn within train_len={train_len}, which are all; '
            f'the least train_len is {int(np.ceil(TWO_PI))}'
        )
    return kept


def fope_start(rows: int, columns: int) -> Float[Array, 'F M']:
    """The matrix without noise: column t takes frequency `t ceil(F / M)`; columns beyond the last
    frequency are zero.
    """
    step = -(-rows // columns)
    return (jnp.arange(rows)[:, None] == step * jnp.arange(columns)).astype(jnp.float32)


def fope_turn(
    x: Float[Array, '... H'],
    cos: Float[Array, '... M'],
    sin: Float[Array, '... M'],
    *,
    released: bool = False,
) -> Float[Array, '... H']:
    """Turns `(x, y)` of pair t < M into `(x cos_t - y sin_t, y cos_t + x sin_t)`, in float32.

    Args:
      x: vectors; pair t are the features t and t + H/2.
      cos, sin: broadcast against the leading axes of `x`; no circle binds them.
      released: pairs from M on become `(x - y, y + x)`; otherwise they are left alone.

    Example:
      >>> fope_turn(jnp.arange(4.0), jnp.array([0.5]), jnp.array([2.0])).tolist()
      [-4.0, 1.0, 1.0, 3.0]
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    room = [(0, 0)] * (cos.ndim - 1) + [(0, first.shape[-1] - cos.shape[-1])]
    cos = jnp.pad(cos, room, constant_values=1.0)
    sin = jnp.pad(sin, room, constant_values=float(released))
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _rope(base: float, freqs: Frequencies | None, head_dim: int) -> Rotary:
    """The angles of all pairs of a head."""
    if freqs is not None and freqs.uses_length:
        raise ValueError(
            f'fope needs frequencies that do not depend on the current length, got {freqs}'
        )
    return Rotary(base, freqs=freqs, head_dim=head_dim)


@register('fope', kind='encoding', card=Card(name='FoPE', example='fope(train_len=256)'))
class FoPE(Encoding):
    """Turns pairs of features by series of cosines and sines in place of single ones.

    `q'_i = R_i q_i`, `k'_j = R_j k_j`, `R_i (x, y)_t = (x c_t - y s_t, y c_t + x s_t)`, `c = cos(i
    theta) C`, `s = sin(i theta) S`. theta are the F frequencies of RoPE that turn at least once
    within the trained length, so a longer text shows no angle that training has not. C and S have
    F rows and M = min(F, H/4) columns, a matrix for each key head; they are the identity, or every
    ceil(F/M)-th row of it, plus normal noise, and are not trained. The other H/2 - M pairs do not
    depend on positions. Because of the noise, logits do not depend on distances alone, and the
    lengths of queries and keys change. For texts that are longer still, a frequency rule such as
    `yarn` changes those theta that are left; its temperature multiplies all features. `pj.extend`
    gives a trained part such a rule.

    Differs from the paper: nothing by default. The released code multiplies the pairs without
    positions by `(x - y, y + x)`, an eighth of a turn and a factor of sqrt(2), so they count twice
    in a logit; `released=True` does that. Key heads that several query heads share have one matrix.
    If F is no multiple of M, the last columns have noise alone; this is the released start.

    Args:
      base: of the frequencies.
      gain: of the noise, whose standard deviation is `gain sqrt(2 / (M (F + K)))`. The paper takes
        0.3 for models of 60 million parameters, 0.4 for 180 million and 0.6 for 1.2 billion.
      learnable: trains C and S.
      released: treats pairs without positions as the released code does.
      freqs: a frequency rule such as `pi(factor=4.0)`, which is applied behind the choice of the
        frequencies; it may not follow the current length.
      train_len: from the model.
      kv_heads, head_dim: K and H, from the model.
      rngs: draws the noise.

    Raises:
      ValueError: an odd head width or one below 4; no frequency turns within the trained length; a
        rule that follows the current length.

    Reference: Hua, Jiang, Lv, Zhang, Ding, Sun, Qi, Fan, Zhu, Zhou, arXiv 2412.17739.
    """

    traits = frozenset({'rotates'})

    def __init__(
        self,
        base: Base = 10000.0,
        gain: NonNegative = 0.3,
        learnable: bool = False,
        released: bool = False,
        freqs: Frequencies | None = None,
        train_len: TrainLen = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if head_dim < 4:
            raise ValueError(
                f'fope turns a quarter of the features of a head, got head_dim={head_dim}; the '
                'least is 4'
            )
        rows = len(fope_frequencies(head_dim, base, train_len))
        self.released, self.rope = released, _rope(base, freqs, head_dim)
        columns = min(rows, head_dim // 4)
        std = gain * (2.0 / (columns * (rows + kv_heads))) ** 0.5

        def drawn():
            noise = jax.random.normal(rngs.params(), (kv_heads, rows, columns), jnp.float32)
            kind = nnx.Param if learnable else Constant
            return kind(fope_start(rows, columns) + std * noise, axes=('kv_heads', None, None))

        self.of_cos, self.of_sin = drawn(), drawn()

    def with_rule(self, freqs: Frequencies) -> 'FoPE':
        """The same matrices with another frequency rule."""
        changed = nnx.clone(self)
        changed.rope = _rope(self.rope.base, freqs, self.rope.head_dim)
        return changed

    def turned(self, x, pos):
        """Queries or keys [B, L, heads, H] at these positions."""
        if pos.ndim != 2:
            raise ValueError(
                f'fope takes one position per token, got positions of shape {pos.shape}'
            )
        angles, temperature = self.rope.angles(pos)
        angles = angles[..., : self.of_cos.shape[1]]  # of the fastest, which are the first
        series = lambda a, by: jnp.repeat(
            jnp.einsum('blf,kfm->blkm', a, by[...], precision='highest'),
            x.shape[2] // by.shape[0],
            axis=2,
        )
        cos, sin = series(jnp.cos(angles), self.of_cos), series(jnp.sin(angles), self.of_sin)
        scale = jnp.asarray(temperature, jnp.float32)[..., None, None]
        wide = scale * x.astype(jnp.float32)
        return fope_turn(wide, cos, sin, released=self.released).astype(x.dtype)

    def project(self, q, k, v, tq, tk, x=None):
        kv_heads = self.of_cos.shape[0]
        if (q.shape[3], k.shape[2]) != (self.rope.head_dim, kv_heads):
            raise ValueError(
                f'fope was built for head_dim={self.rope.head_dim} and {kv_heads} key heads, got '
                f'vectors of width {q.shape[3]} and {k.shape[2]} key heads'
            )
        return self.turned(q, tq.pos), self.turned(k, tk.pos), v, tq, tk
