"""Giraffe's random fractional positions, with a mean step of about 1 and within the length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_row
from posenc_jax.protocol.tokens import Tokens


def giraffe_random_ids(
    uniform: Float[Array, '#B M'],
    pos: Int[Array, '#B L'] | None = None,
    count: Int[Array, '#B #L'] | None = None,
) -> Float[Array, '#B L']:
    """`p_i = (2 u_0 + ... + 2 u_i) n / max(2 u_0 + ... + 2 u_(n-1), n)`, float32.

    Increments lie in (0, 2), and `p_(n-1) <= n`. Positions ascend, up to the rounding of float32
    sums.

    Args:
      uniform: u, from (0, 1).
      pos: which i of 0 .. M-1 each token is; None for all of them in order. NaN where there is no
        such i.
      count: n, length of the sequence each token belongs to; None for M.
    """
    total = jnp.cumsum(2.0 * uniform.astype(jnp.float32), axis=1)
    pos = jnp.arange(total.shape[1])[None] if pos is None else pos
    count = jnp.full((1, 1), total.shape[1]) if count is None else count
    rows = max(len(total), len(pos), len(count))
    total, pos, count = (jnp.broadcast_to(a, (rows, a.shape[1])) for a in (total, pos, count))
    known = lambda i: jnp.where(i < 0, total.shape[1], i)
    at = lambda i: jnp.take_along_axis(total, known(i), axis=1, mode='fill')
    # Divide before multiplying: the quotient of the last position is then at most exactly 1, so no
    # position exceeds n.
    return at(pos) / jnp.maximum(at(count - 1), count) * count


@register(
    'giraffe_random',
    kind='encoding',
    card=Card(
        name='Giraffe, randomised positions',
        example='giraffe_random() | rope()',
        use_when=(
            'You train a rotary model that should not depend on whole positions, and can '
            'draw fractional ones.'
        ),
        share='model',
        relative=True,
    ),
)
class GiraffeRandom(Encoding):
    """Trains at random fractional positions of at most L; evaluates at 0 .. L-1.

    `p_i = P_i L / max(P_L, L)`, `P_i = 2 u_1 + ... + 2 u_i`, u ~ U(0, 1). Each forward pass and row
    has one draw, which all layers share. L counts the positions of a document, and draws are looked
    up by position, so rows may be padded or packed. The last position may be L itself;
    `learned_absolute` refuses fractional positions. Differs from the paper: packed documents of a
    row share its draw, each scaled by its own L; tokens that have one row for the whole batch have
    one draw.

    Raises:
      ValueError: in training, positions that are fractional, have several components, or lie
        outside 0 .. L-1 for a row of L tokens (where they are traced, such a token gets NaN).

    Reference: Pal, Karkhanis, Roberts, Dooley, Sundararajan, Naidu, arXiv 2308.10882.

    Example:
      >>> import posenc_jax as pj
      >>> encoding, tok = pj.make('giraffe_random()'), pj.Tokens.of(length=4)
      >>> bool(encoding.place(tok, key=jax.random.key(0)).pos.max() <= 4)
      True
    """

    traits = frozenset({'reads_other_tokens'})

    def place(self, tok, *, key=None):
        if key is None:
            return tok
        remedy = '; it draws one increment per token, use it before what spreads positions'
        real = check_row('giraffe_random', tok, remedy)
        count = _document_largest(tok, real) + 1
        rows, least = max(len(real), len(count)), np.finfo(np.float32).tiny
        uniform = jax.random.uniform(key, (rows, tok.length), jnp.float32, minval=least)
        return dataclasses.replace(tok, pos=giraffe_random_ids(uniform, real, count))


def _document_largest(tok: Tokens, pos: Int[Array, '#B L']) -> Int[Array, '#B #L']:
    """The largest position in the document of each token."""
    if tok.segment is None:
        return pos.max(axis=1, keepdims=True)
    rows = max(len(pos), len(tok.segment))
    pos, segment = (jnp.broadcast_to(a, (rows, tok.length)) for a in (pos, tok.segment))
    number = jnp.cumsum(jnp.diff(segment, axis=1, prepend=segment[:, :1]) != 0, axis=1)
    largest = jax.vmap(lambda p, n: jax.ops.segment_max(p, n, num_segments=tok.length)[n])
    return largest(pos, number)
