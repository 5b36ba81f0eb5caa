"""CAPE: continuous positions that are shifted, jittered and stretched at random in training."""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posenc_jax.methods.shape import rows_of, shape_document_numbers, shape_of_documents
from posenc_jax.protocol.bounds import Ge, NonNegative, Positive
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens


def cape_centred(pos: Float[Array, '#B L'], tok: Tokens) -> Float[Array, '#B L']:
    """Positions minus their mean over the real tokens of the document."""
    number = shape_document_numbers(tok)
    real = jnp.ones((1, tok.length), bool) if tok.valid is None else tok.valid
    rows = max(len(pos), len(number), len(real))
    pos, number, real = (jnp.broadcast_to(a, (rows, tok.length)) for a in (pos, number, real))
    of_row = jax.vmap(
        lambda a, number: jax.ops.segment_sum(a, number, num_segments=tok.length)[number]
    )
    count = of_row(real.astype(jnp.float32), number)
    return pos - of_row(jnp.where(real, pos, 0.0), number) / jnp.maximum(count, 1.0)


def cape_augmented(
    pos: Float[Array, '#B L'],
    shift: Float[Array, '#B #L'],
    jitter: Float[Array, '#B L'],
    log_stretch: Float[Array, '#B #L'],
) -> Float[Array, '#B L']:
    """`(p_i + D + e_i) exp(g)`, float32.

    Args:
      pos: p.
      shift, jitter: D and e, in the unit of the positions.
      log_stretch: g.
    """
    return (pos + shift + jitter) * jnp.exp(log_stretch)


@register(
    'cape',
    kind='encoding',
    card=Card(
        name='CAPE',
        example='cape() | sinusoidal()',
        use_when=(
            'You train with absolute positions and want to read other lengths; to compare '
            'with plain sinusoids, since a measured claim is partly contrary.'
        ),
        share='model',
    ),
)
class CAPE(Encoding):
    """Shifts, jitters and stretches positions at random in training; precedes an absolute encoding
    of fractional positions, such as `sinusoidal`.

    `p_i = (i r - c + D + e_i r) exp(g) s`, `D ~ U(-shift, shift)`, `e_i ~ U(-jitter, jitter)`, `g ~
    U(-ln stretch, ln stretch)`. r is the step between tokens and s the factor of frequencies. D and
    g are drawn for each row, or packed document, and e for each token. c is 0, or with `centre` the
    mean of i r over the real tokens of the row or document. Evaluation draws nothing:
    `p_i = (i r - c) s`. Positions are float32; tables with a row for each position refuse them.

    For speech the paper has seconds: `cape(step=0.03, centre=True, shift=60.0, stretch=1.1,
    scale=30.0)`. With `centre` a new token moves all others, so that nothing can be cached. The
    paper multiplies token vectors by the root of their width first, as models here do by default.

    Differs from the paper: the two-dimensional form, of images, is not here. Tokens that have one
    row for the whole batch have one draw of D and g.

    Args:
      step: r, the distance of two tokens, in any unit, such as tokens or seconds.
      shift: the largest D, in the same unit.
      jitter: the largest e, in steps; above 0.5 tokens may change their order.
      stretch: the largest factor exp(g).
      centre: subtracts the mean position, in evaluation too.
      scale: s; 30 lets positions in seconds differ within 0.03.

    Raises:
      ValueError: at call, positions with several components.

    Reference: Likhomanenko, Xu, Synnaeve, Collobert, Rogozhnikov, arXiv 2106.03143.

    Example:
      >>> import posenc_jax as pj
      >>> encoding, tok = pj.make('cape(step=0.5, centre=True)'), pj.Tokens.of(length=3)
      >>> encoding.place(tok).pos.tolist()
      [[-0.5, 0.0, 0.5]]
    """

    traits = frozenset({'reads_other_tokens'})

    def __init__(
        self,
        step: Positive = 1.0,
        shift: NonNegative = 5.0,
        jitter: NonNegative = 0.5,
        stretch: Annotated[float, Ge(1)] = 1.03,
        centre: bool = False,
        scale: Positive = 1.0,
    ):
        self.step, self.shift, self.jitter, self.stretch = step, shift, jitter, stretch
        self.centre, self.scale = centre, scale

    def place(self, tok, *, key=None):
        rows = rows_of('cape', tok)
        pos = tok.pos.astype(jnp.float32) * self.step
        if self.centre:
            pos = cape_centred(pos, tok)
        if key is not None:
            most = self.shift, self.jitter * self.step, math.log(self.stretch)
            shift, jitter, log_stretch = (
                jax.random.uniform(one, (rows, tok.length), jnp.float32, -largest, largest)
                for one, largest in zip(jax.random.split(key, 3), most)
            )
            shift, log_stretch = (
                shape_of_documents(shift, tok),
                shape_of_documents(log_stretch, tok),
            )
            pos = cape_augmented(pos, shift, jitter, log_stretch)
        return dataclasses.replace(tok, pos=pos * self.scale)


class CentredCAPE(CAPE, where=lambda given: given['centre']):
    """CAPE around the mean position."""

    traits = frozenset({'reads_other_tokens', 'moves_positions'})
