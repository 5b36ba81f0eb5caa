"""CAPE: continuous positions that are shifted, jittered and stretched at random in training, of
texts and of images.
"""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from posenc_jax.methods.shape import row_count, rows_of, shape_document_numbers, shape_of_documents
from posenc_jax.protocol.bounds import Ge, NonNegative, Positive, Size
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import Embedding
from posenc_jax.protocol.grids import check_grid, grid_size, on_grid
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

    Images have the form `cape2d`. Differs from the paper: tokens that have one row for the whole
    batch have one draw of D and g.

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


def cape2d_coordinates(
    cells: Num[Array, '#B L 2'], size: Num[Array, '#B #L 2']
) -> Float[Array, '#B L 2']:
    """`2 p / (n - 1) - 1` of cells (row, column) of a grid with n of them, float32.

    Example:
      >>> cells, size = jnp.array([[[0, 0], [0, 4], [2, 1]]]), jnp.array([[[3, 5]]])
      >>> cape2d_coordinates(cells, size)[0].tolist()
      [[-1.0, -1.0], [-1.0, 1.0], [1.0, -0.5]]
    """
    return 2 * cells.astype(jnp.float32) / jnp.maximum(size - 1, 1) - 1


def cape2d_table(coords: Float[Array, '#B L 2'], width: int) -> Float[Array, '#B L D']:
    """`[cos(pi u) | sin(pi u)]`, `u_t = 10^(t/(D/2-1)) (x cos t + y sin t)`, float32.

    Args:
      coords: (y, x).
      width: D.

    Raises:
      ValueError: an odd width.
    """
    if width % 2:
        raise ValueError(
            f'cape2d has a cosine and a sine for each wave and needs an even width, got {width}; '
            f'the nearest is {width + 1}'
        )
    t = np.arange(width // 2)
    size = math.pi * 10.0 ** (t / max(width // 2 - 1, 1))
    waves = np.stack([size * np.sin(t), size * np.cos(t)]).astype(np.float32)
    angle = jnp.matmul(coords, waves, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


@register(
    'cape2d',
    kind='encoding',
    card=Card(
        name='CAPE, images',
        example='cape2d(size=(8, 64))',
        use_when='You train on images with absolute positions and want to read other sizes.',
        share='model',
    ),
)
class CAPE2d(Embedding):
    """Adds waves of the place in an image, which training shifts, jitters and stretches at random.

    `x + [cos(pi u) | sin(pi u)]`, `u_t = 10^(t/(D/2-1)) (x_i cos t + y_i sin t)`, `y_i = (2 r/(n-1)
    - 1 + D_y + e_y) exp(g)`, and x_i alike of the column. So an image of more cells has the same
    coordinates between its borders. `D ~ U(-shift, shift)` is drawn for each axis of a row, or
    packed document, `e ~ U(-jitter, jitter)` cells for each axis of a token, and one `g ~ U(-ln
    stretch, ln stretch)` for each row or document. Evaluation draws nothing. `place` leaves the
    cells as they are and keeps the coordinates as the feature 'cape2d'. A token that is not on the
    grid, such as a class token at (-1, -1), gets zeros, and so does padding.

    Differs from the paper: nothing. The draws have the unit of the cells along each axis. The
    defaults are those of its models of images, as we know them; its listing has none.

    Args:
      size: rows and columns of the grid on which the tokens stand; cells beyond it go on outwards.
        None takes the largest row and column of the valid tokens of a sequence, or of a packed
        document, plus one. A new token then changes all others, so no decode cache can serve it.
      shift: the largest D, where the image is 2 wide.
      jitter: the largest e, in cells; above 0.5 cells may change their order.
      stretch: the largest factor exp(g).

    Raises:
      ValueError: at call, positions that are not [B, L, 2] (for a size of None: integers), or an
        odd width.

    Reference: Likhomanenko, Xu, Synnaeve, Collobert, Rogozhnikov, arXiv 2106.03143.
    """

    components = 2

    @property
    def traits(self):
        return frozenset({'reads_other_tokens', *(() if self.size else ('moves_positions',))})

    def __init__(
        self,
        size: tuple[Size, Size] | None = None,
        shift: NonNegative = 0.5,
        jitter: NonNegative = 0.5,
        stretch: Annotated[float, Ge(1)] = 1.4,
    ):
        self.size, self.shift, self.jitter, self.stretch = size, shift, jitter, stretch

    def place(self, tok, *, key=None):
        check_grid('cape2d', tok.pos, whole=self.size is None)
        size = grid_size(tok) if self.size is None else jnp.array(self.size)[None, None]
        coords = cape2d_coordinates(tok.pos, size)
        if key is not None:
            shape = row_count(tok), tok.length
            keys = jax.random.split(key, 3)
            draw = lambda key, *axes: jax.random.uniform(
                key, (*shape, *axes), jnp.float32, -1.0, 1.0
            )
            of_each = jax.vmap(lambda drawn: shape_of_documents(drawn, tok), 2, 2)
            shift = self.shift * of_each(draw(keys[0], 2))
            jitter = self.jitter * 2 / jnp.maximum(size - 1, 1) * draw(keys[1], 2)
            stretch = math.log(self.stretch) * shape_of_documents(draw(keys[2]), tok)
            coords = jax.vmap(cape_augmented, (2, 2, 2, None), 2)(coords, shift, jitter, stretch)
        return tok.with_feats(cape2d=coords[:, :, None])

    def table(self, tok, width):
        if 'cape2d' not in tok.feats:
            raise ValueError(
                'cape2d adds waves of the coordinates that its `place` gives; call '
                'tok = encoding.place(tok) before'
            )
        waves = cape2d_table(tok.feats['cape2d'][:, :, 0], width)
        return jnp.where(on_grid(tok.pos)[..., None], waves, 0.0)
