"""CONFLATOR: rotary angles that jump at language switches, and attention from bigrams."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.base.phases import phase
from posenc_jax.methods.rope import Layout, rope_frequencies, rotate
from posenc_jax.protocol.bounds import CONTEXT, Base
from posenc_jax.protocol.capabilities import SeveralInputs
from posenc_jax.protocol.registry import Card, register

Mode = Literal['shift', 'reset']


def conflator_points(
    lang: Int[Array, '*B L'], segment: Int[Array, '*B L'] | None = None
) -> tuple[Int[Array, '*B L'], Int[Array, '*B L']]:
    """Language switches `s_i = [lang_i != lang_{i-1}]` and counts `c_i = s_0 + ... + s_i`, int32.

    `s_0 = 0`.

    Args:
      lang: language of every token; a sub-word has that of its word.
      segment: equal within a packed document, contiguous; both start anew in each. None for one
        document a row.

    Raises:
      ValueError: no integers, or of another shape than `segment`.
    """
    fresh, s = _starts(lang, segment)
    total = jnp.cumsum(s, axis=-1, dtype=jnp.int32)
    return s.astype(jnp.int32), total - _latest(fresh, total)


def conflator_ids(
    lang: Int[Array, '*B L'], segment: Int[Array, '*B L'] | None = None
) -> Int[Array, '*B L 3']:
    """Positions for `conflator`: token number, offset since the last switching point, and c.

    The token number counts within the document. Arguments as for `conflator_points`. These
    positions also serve `hirope`, with runs of one language as its units.
    """
    fresh, s = _starts(lang, segment)
    index = jnp.broadcast_to(jnp.arange(s.shape[-1], dtype=jnp.int32), s.shape)
    number, offset = index - _latest(fresh, index), index - _latest(fresh | s, index)
    return jnp.stack([number, offset, conflator_points(lang, segment)[1]], axis=-1)


def _starts(lang, segment):
    """Flags of the first token of each document, and of language switches inside documents."""
    given = [jnp.asarray(a) for a in (lang, segment) if a is not None]
    for name, a in zip(('lang', 'segment'), given):
        if a.ndim < 1 or a.shape != given[0].shape or not jnp.issubdtype(a.dtype, jnp.integer):
            raise ValueError(
                f'switching points need integers [..., L], one per token, got {name} {a.dtype} '
                f'{a.shape}'
            )
    first = jnp.arange(given[0].shape[-1]) == 0
    changes = [jnp.diff(a, prepend=a[..., :1]) != 0 for a in given]
    fresh = jnp.broadcast_to(first, given[0].shape)
    if segment is not None:
        fresh = fresh | changes[1]
    return fresh, changes[0] & ~fresh


def _latest(flags, values):
    """The value at the last flagged token up to each token; values must not fall along the row."""
    return jax.lax.cummax(jnp.where(flags, values, 0), axis=values.ndim - 1)


def conflator_bigrams(
    x: Float[Array, 'B rows D'],
    kernel: Float[Array, 'twoD D'],
    first: Bool[Array, '#B L'] | None = None,
) -> Float[Array, 'B L D']:
    """`y_i = [x_{i-1}; x_i] W_b`, in the dtype of `x`, whose first row precedes the sequence.

    Args:
      x: layer input.
      kernel: W_b.
      first: True at the first tokens of documents, for which x_{i-1} = 0; None where the rows
        before them are zero already.
    """
    before = x[:, :-1] if first is None else jnp.where(first[..., None], 0, x[:, :-1])
    return jnp.concatenate([before, x[:, 1:]], axis=-1) @ kernel.astype(x.dtype)


@register(
    'conflator',
    kind='encoding',
    card=Card(
        name='CONFLATOR',
        example='conflator()',
        use_when='Your text switches between two languages and the model knows where.',
        relative=True,
        needs_training=True,
    ),
)
class Conflator(SeveralInputs):
    """Rotary angles that jump at switching points, and a second attention from bigrams.

    `out_i = w_u O(x_i) + w_b O([x_{i-1}; x_i] W_b)`, `A_i = p_i theta + c_i delta`, O rotary
    attention with the angles A, c_i the number of times the language has switched up to token i,
    delta learned, one number per plane and layer. Two attentions with the layer's W_q, W_k, W_v:
    one of the layer input x_i, one of the bigram `y_i = [x_{i-1}; x_i] W_b`, x_{i-1} = 0 at the
    first token of a document; their results are mixed, `w_u O_u + w_b O_b`, `(w_u, w_b) =
    softmax(mix)`, before W_o. At the start delta = 0 and mix = 0.

    Language ids come in as positions `[B, L, 3]`, (p, offset since the last switching point, c),
    which `conflator_ids` makes of them and the task `code_mixed` supplies. A decode takes those of
    its whole capacity. Positions `[B, L]` are text of one language: angles are then those of `rope`
    whatever delta is. Only differences of c matter, so the language of padding has no effect. With
    bigrams, attention has twice the heads of the layer, so parts with parameters per head (`alibi`)
    cannot be chained.

    Differs from the paper: everything above is our interpretation. The paper says that positions
    are rotated anew at switching points and that bigram attention is added. It does not say how the
    angle changes, nor how the bigram is formed and mixed in.

    Args:
      base: base of theta.
      layout: 'half' or 'interleaved', see `rotate`.
      mode: with 'shift' p is the position. With 'reset' p is the offset, which restarts at every
        switching point; with delta = 0 this is the scheme of this paper's predecessor.
      unigram_only: no bigrams; half the attention, and delta is the only parameter.
      head_dim, model_dim, rngs: from the model.

    Raises:
      ValueError: an odd head width; at call, positions of another shape, or not one row more of
        layer input than tokens.

    Reference: Ali et al., arXiv 2309.05270.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('conflator(base=100.0)', head_dim=4, model_dim=8)
      >>> part.delta[...] = jnp.array([0.0, 0.5])
      >>> part.angles(conflator_ids(jnp.array([[0, 0, 1]]))).round(2).tolist()
      [[[0.0, 0.0], [1.0, 0.1], [2.0, 0.7]]]
    """

    traits = frozenset({'rotates'})
    lookback = 1

    def __init__(
        self,
        base: Base = 10000.0,
        layout: Layout = 'half',
        mode: Mode = 'shift',
        unigram_only: bool = False,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.layout = layout
        self.mode = mode
        self.base, self.head_dim, self.unigram_only = base, head_dim, unigram_only
        planes = len(rope_frequencies(head_dim, base))
        self.delta = nnx.Param(jnp.zeros(planes, jnp.float32), axes=(None,))
        if not unigram_only:
            drawn, shape = nnx.initializers.lecun_normal(), (2 * model_dim, model_dim)
            kernel = drawn(rngs.params(), shape, jnp.float32)
            self.kernel = nnx.Param(kernel, axes=('width', None))
            self.mix = nnx.Param(jnp.zeros(2, jnp.float32), axes=(None,))

    def angles(self, pos: Int[Array, '#B L *P']) -> Float[Array, '#B L F']:
        """The angles of positions [#B, L] or [#B, L, 3], float32, up to whole turns."""
        if pos.ndim != 2 and pos.shape[2:] != (3,):
            raise ValueError(
                'conflator takes positions [B, L], or [B, L, 3] of components (position, '
                f'offset, switches), got {pos.shape}'
            )
        theta = rope_frequencies(self.head_dim, self.base)
        if pos.ndim == 2:
            return phase(pos, theta)
        place = pos[..., 1 if self.mode == 'reset' else 0]
        return phase(place, theta) + phase(pos[..., 2], self.delta[...])

    def qkv(self, x, linear, tok):
        if x.shape[1] != tok.length + 1:
            raise ValueError(
                'conflator reads the layer input of every token and of the one before: '
                f'{tok.length} tokens, the input of {x.shape[1]}'
            )
        # Padding and rows before the sequence are zero. So first tokens need a flag only if a row
        # holds several documents.
        first = None if tok.segment is None else tok.rank == 0
        inputs = x[:, 1:], conflator_bigrams(x, self.kernel[...], first)
        return tuple(jnp.concatenate(a, axis=2) for a in zip(*map(linear, inputs)))

    def project(self, q, k, v, tq, tk, x=None):
        turn = lambda a, tok: rotate(a, self.angles(tok.pos)[:, :, None], layout=self.layout)
        return turn(q, tq), turn(k, tk), v, tq, tk

    def merge(self, out):
        of_tokens, of_bigrams = jnp.split(out.astype(jnp.float32), 2, axis=2)
        w = jax.nn.softmax(self.mix[...])
        return (w[0] * of_tokens + w[1] * of_bigrams).astype(out.dtype)


class UnigramConflator(Conflator, where=lambda given: given['unigram_only']):
    """CONFLATOR without the attention from bigrams."""

    lookback = 0
    qkv = merge = None
