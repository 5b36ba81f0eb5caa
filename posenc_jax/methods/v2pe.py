"""V2PE: the tokens of an image advance the position by less than one."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.protocol.bounds import Gt, Le
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_integers

DELTAS = tuple(2.0**-n for n in range(9))


def v2pe_ids(
    image: Int[Array, '#B L'],
    delta: float | Float[Array, '#B #L'],
    pos: Int[Array, '#B L'] | None = None,
    first: Bool[Array, '#B L'] | None = None,
) -> Float[Array, '#B L']:
    """Fractional ids, float32: text advances the id by 1, tokens of an image by delta.

    The n-th token of an image is at `p0 + n delta`, where p0 is the id before the image.

    What follows an image of N tokens gets `ceil(p0 + N delta) + 1`; an image right after another
    has `p0 = ceil` of its end. A text token's id is thus its position less `N - ceil(N delta)` for
    every image before it. No id depends on later tokens.

    Args:
      image: number of the image a token belongs to, from 1; 0 for text, start and end markers.
        Neighbours of one number are one image.
      delta: step within an image, in (0, 1]; where it differs between tokens, an image takes that
        of its first token.
      pos: positions that count every token by one; None for 0, 1, ....
      first: the first tokens of documents, before which nothing is saved; None for the first of the
        row.
    """
    index = jnp.arange(image.shape[1], dtype=jnp.int32)[None]
    image, pos, first, delta = jnp.broadcast_arrays(
        image,
        index if pos is None else pos,
        index == 0 if first is None else first,
        jnp.asarray(delta, jnp.float32),
    )
    latest = lambda flags: jax.lax.cummax(jnp.where(flags, index, 0), axis=1)
    at = lambda a, where: jnp.take_along_axis(a, where, axis=1)
    visual = image > 0
    entry = latest(visual & (first | (jnp.diff(image, axis=1, prepend=0) != 0)))
    nth, delta = index - entry + 1, at(delta, entry)
    covered = lambda n: jnp.ceil(n * delta).astype(jnp.int32)
    saved = jnp.where(visual, 1 - covered(nth) + covered(nth - 1), 0)
    through = jnp.cumsum(saved, axis=1)
    before = through - saved
    base = at(before, latest(first))
    text, start = pos - through + base, at(pos - before, entry) + base - 1
    return jnp.where(visual, start + nth * delta, text.astype(jnp.float32))


@register(
    'v2pe',
    kind='encoding',
    card=Card(
        name='V2PE',
        example='v2pe(delta=0.0625) | rope()',
        use_when=(
            'You have many image tokens in a text and want to save the range of positions '
            'for long inputs.'
        ),
        share='model',
        relative=True,
    ),
)
class V2PE(Encoding):
    """Gives image tokens fractional positions, delta <= 1 apart, to save range for long inputs.

    `p_i = ceil(p_(i-1)) + 1 for text`, `p_i = p0 + n delta for the n-th token of an image`. p0 is
    the position of its start marker. Its end marker is at `ceil(p0 + N delta) + 1`, with N tokens
    in all tiles. Training draws delta for each image from 1, 1/2, 1/4, ..., 1/256, evaluation takes
    the one given. The task hands over positions with two components, [#B, L, 2]: the count 0, 1, 2,
    ... of real tokens and the number of the image, from 1, or 0 for text and markers. Positions
    with one component are all text and stay. Packed documents start anew; padding saves nothing.
    Differs from the paper: an image right after another takes the rounded end of that one for its
    start marker; tokens that have one row for the whole batch have one draw for an image.

    Args:
      delta: step at evaluation, in (0, 1]; smaller for longer inputs; 1 counts tokens.

    Raises:
      ValueError: at call, positions of another shape, fractional ones with components, negative
        image numbers, or an image without a start marker before it at the beginning of a document
        (where positions are traced, such an image starts at `delta - 1`).

    Reference: Ge et al., arXiv 2412.09616.

    Example:
      >>> import posenc_jax as pj
      >>> tok = pj.Tokens.of(positions=[[[0, 0], [1, 1], [2, 1], [3, 0]]])
      >>> pj.make('v2pe(delta=0.5)').place(tok).pos.tolist()
      [[0.0, 0.5, 1.0, 2.0]]
    """

    traits = frozenset({'reads_other_tokens'})

    def __init__(self, delta: Annotated[float, Gt(0), Le(1)]):
        self.delta = delta

    def place(self, tok, *, key=None):
        if tok.pos.ndim == 2:
            return tok
        wanted = '[B, L], all text, or integers [B, L, 2], count and image number'
        check_integers(f'v2pe needs positions {wanted}', tok.pos, (2,))
        image, first = tok.pos[..., 1], tok.rank == 0
        if tok.valid is not None:
            image = jnp.where(tok.valid, image, 0)
        if not isinstance(image, jax.core.Tracer):
            if int(image.min()) < 0:
                raise ValueError(
                    f'v2pe: image number {int(image.min())}; images count from 1, text is 0'
                )
            if not isinstance(first, jax.core.Tracer) and bool((first & (image > 0)).any()):
                row = int(np.argmax(np.asarray(first & (image > 0)).any(1)))
                raise ValueError(
                    f'v2pe: a document of row {row} begins with an image; its start marker, 0, '
                    'must come first'
                )
        delta = self.delta
        if key is not None:
            shape = (max(len(image), len(first)), tok.length)
            delta = jnp.asarray(DELTAS, jnp.float32)[jax.random.randint(key, shape, 0, len(DELTAS))]
        return dataclasses.replace(tok, pos=v2pe_ids(image, delta, tok.pos[..., 0], first))
