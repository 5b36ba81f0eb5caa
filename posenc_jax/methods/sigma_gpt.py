"""sigma-GPT's double positions: that of the token, and that of the token it predicts."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from posenc_jax.base.phases import phase
from posenc_jax.protocol.bounds import CONTEXT, Ge, Multiple, NonNegative
from posenc_jax.protocol.checks import exceeds
from posenc_jax.protocol.encoding import PositionRange, drawn_normal
from posenc_jax.protocol.families import Embedding
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_integers, lookup_rows

Table = Literal['learned', 'sinusoid']


def sigma_gpt_sinusoid(
    pos: Num[Array, '...'], width: int, max_len: int
) -> Float[Array, '... width']:
    """`sin(p / M^((j - j mod 2) / D) + (j mod 2) pi / 2)`, j = 0 .. D/2 - 1, D = 2 `width`.

    Sines and cosines are interleaved.

    Args:
      pos: positions, -1 for a start slot.
      width: width of one half, D/2.
      max_len: M.
    """
    j = np.arange(width)
    angle = phase(pos, float(max_len) ** (-(j - j % 2) / (2 * width)))
    return jnp.where(j % 2 == 1, jnp.cos(angle), jnp.sin(angle))


@register(
    'sigma_gpt',
    kind='encoding',
    card=Card(
        name='sigma-GPT, double positions',
        example='sigma_gpt(max_len=128)',
        use_when=(
            'You generate tokens in any order, and the model has to know which place comes next.'
        ),
        share='model',
        needs_training=True,
    ),
)
class SigmaGPT(Embedding):
    """Adds the position of the token and that of the token to predict, for text in any order.

    `x_t + [P[o_t], P[o_(t+1)]]`: one table P of half the model width serves both halves, attention
    is causal in the order o, and there is no other encoding. The task hands over positions with two
    components, [#B, L, 2], own and next (`any_order`); positions with one component, p, are read
    from left to right, next = p + 1, so L tokens need L + 1 rows. Text is written in any order by
    `posenc_jax.lab.decoding.any_order`, and in bursts by `posenc_jax.lab.decoding.burst`.

    'sinusoid', of the paper's other tasks, has no parameters: `sin(p / M^((j - j mod 2)/D) + (j mod
    2) pi/2)` for each half, and a start slot, whose own position is -1, so that the first token is
    predicted as well. Differs from the paper: nothing. The paper does not say whether D is the
    width of the model or of the half; we use the model's.

    Args:
      max_len: M, positions in the table, or the base of the sinusoids.
      table: 'learned' or 'sinusoid'.
      std: standard deviation of the initial vectors of a learned table.

    Raises:
      ValueError: at call, positions of another shape or fractional ones, a negative one (below -1
        of the sinusoid), or one beyond the learned table (where it is traced, such a row is NaN,
        and the number of tokens is checked).

    Reference: Pannatier, Courdier, Fleuret, arXiv 2404.09562.

    Example:
      >>> import posenc_jax as pj
      >>> encoding = pj.make('sigma_gpt(max_len=8)', model_dim=4)
      >>> tok = pj.Tokens.of(positions=[[[2, 0], [0, 1]]])
      >>> own_and_next = encoding.embed(jnp.zeros((1, 2, 4)), tok)[0, 0]
      >>> (own_and_next == encoding.vectors[jnp.array([2, 0])].ravel()).all().item()
      True
    """

    def __init__(
        self,
        max_len: Annotated[int, Ge(2)],
        table: Table = 'learned',
        std: NonNegative = 0.02,
        model_dim: Annotated[int, Multiple(2)] = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.max_len = max_len
        learned = lambda: drawn_normal(rngs, (max_len, model_dim // 2), std, ('positions', 'width'))
        self.vectors = learned() if table == 'learned' else None

    @property
    def position_range(self):
        return PositionRange(accepts=None if self.vectors is None else self.max_len)

    def place(self, tok, *, key=None):
        low, high = (0, self.max_len - 1) if self.vectors is not None else (-1, None)
        if isinstance(tok.pos, jax.core.Tracer) or isinstance(tok.valid, jax.core.Tracer):
            _pairs(tok.pos)
            if high is not None and exceeds('sigma_gpt', tok.length, high):
                raise ValueError(
                    f'sigma_gpt: a row of {tok.length} tokens and the one that follows need '
                    f'{tok.length + 1} positions, the '
                    f'table has {self.max_len}; use a larger table or shorter inputs'
                )
            return tok
        real = True if tok.valid is None else np.asarray(tok.valid)
        for which, a, least in zip(('own', 'next'), _pairs(np.asarray(tok.pos)), (low, 0)):
            wrong = real & ((a < least) | (False if high is None else a > high))
            if wrong.any():
                found = np.broadcast_to(a, wrong.shape)[wrong][0]
                where = f'in {least} .. {high}' if high is not None else f'at least {least}'
                raise ValueError(
                    f'sigma_gpt: {which} position {found} is not {where}; use a larger table or '
                    'shorter inputs'
                )
        return tok

    def table(self, tok, width):
        own, following = _pairs(tok.pos)
        if self.vectors is None:
            halves = [sigma_gpt_sinusoid(pos, width // 2, self.max_len) for pos in (own, following)]
        else:
            halves = [lookup_rows(self.vectors[...], pos) for pos in (own, following)]
        return jnp.concatenate(halves, axis=-1)


def _pairs(pos):
    """Own and next position of every token, [#B, L] each."""
    wanted = '[B, L] or [B, L, 2], own and next'
    check_integers(f'sigma_gpt needs integer positions {wanted}', pos, (), (2,))
    return (pos, pos + 1) if pos.ndim == 2 else (pos[..., 0], pos[..., 1])
