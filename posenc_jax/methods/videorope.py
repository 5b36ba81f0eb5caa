"""VideoRoPE and HoPE: frames lie on a diagonal, and the slowest pairs are those of the time."""

from jaxtyping import Array, Num

from posenc_jax.methods.multimodal_rotary import (
    Frequencies,
    MultimodalRotary,
    Positions,
    Sections,
    allotted_rotary,
)
from posenc_jax.protocol.bounds import CONTEXT, Base, Positive
from posenc_jax.protocol.registry import Card, register

STRIDES = (0.5, 0.75, 1.0, 1.25, 1.5)


def videorope(
    x: Num[Array, 'B L heads H'],
    pos: Num[Array, '#B L *P'],
    sections: tuple[int, int, int] | None = None,
    base: float = 1e6,
) -> Num[Array, 'B L heads H']:
    """Queries or keys rotated by the components (t, h, w) of their positions: h and w by
    turns, and the slowest pairs read t.

    Args:
      x: vectors; H is even.
      pos: [B, L, 3], see `visual_ids`, or [B, L] for three equal components.
      sections: (a, b, c), how many pairs read t, h and w; None takes the shares of the paper.
      base: of the frequencies.
    """
    return allotted_rotary(x, pos, 'low_frequency_time', sections, base)


def hope_video(
    x: Num[Array, 'B L heads H'],
    pos: Num[Array, '#B L *P'],
    sections: tuple[int, int, int] | None = None,
    base: float = 1e6,
) -> Num[Array, 'B L heads H']:
    """Queries or keys rotated by the components (t, h, w) of their positions: h and w by
    turns, and the slowest pairs, those of t, do not turn.

    Args:
      x: vectors; H is even.
      pos: [B, L, 3], see `visual_ids`, or [B, L] for three equal components.
      sections: (a, b, c), how many pairs read t, h and w; None takes the shares of the paper.
      base: of the frequencies.
    """
    return allotted_rotary(x, pos, 'no_time', sections, base)


@register(
    'videorope',
    kind='encoding',
    card=Card(
        name='VideoRoPE',
        example='videorope()',
        use_when=(
            'You have videos within text and want the time to be read by the slowest frequencies.'
        ),
        share='model',
        relative=True,
    ),
)
class VideoRoPE(MultimodalRotary):
    """Rotates by three components, of which the time has the lowest frequencies; the middle of
    every frame lies on the diagonal t = h = w, where text is.

    `q'_i = R(A_i) q_i`, `k'_j = R(A_j) k_j`, `A_k = p_(a(k)) base^(-2k/H)`, `t = o + s f`,
    `h = t + r - floor((R-1)/2)`, `w = t + c - floor((C-1)/2)`. The first b + c pairs read h, w, h,
    w and so on, and the last a pairs read t. Text goes on behind the largest t; h and w may be
    negative. Of an even number of rows the middle is half a row off. Text alone has the logits of
    `rope(base)`. Differs from the paper: nothing; it follows the released code, where pair 0 reads
    h, and not a later collection of encodings in which pair 0 reads t.

    Args:
      positions, frequencies, head_dim, heads, kv_heads: see `mrope`.
      sections: (a, b, c), pairs that read t, h and w, b = c; None is (16, 24, 24) of 64.
      base: base of the frequencies.
      stride: s, the distance of two frames in time.

    Raises:
      ValueError: as for `mrope`, and sections of other numbers of pairs for h and w.

    Reference: Wei, Liu, Zang, Dong, Zhang, Cao et al., arXiv 2502.05173.

    Example:
      >>> import posenc_jax as pj
      >>> from posenc_jax.methods.visual_layout import visual_tokens
      >>> encoding = pj.make('videorope()', head_dim=8, heads=1, kv_heads=1)
      >>> encoding.place(visual_tokens(1, (2, 1, 2), 1)).pos[0].tolist()
      [[0, 0, 0], [1, 1, 1], [1, 1, 2], [3, 3, 3], [3, 3, 4], [4, 4, 4]]
    """

    def __init__(
        self,
        positions: Positions = 'diagonal',
        frequencies: Frequencies = 'low_frequency_time',
        sections: Sections | None = None,
        base: Base = 1e6,
        stride: Positive = 2.0,
        head_dim: int = CONTEXT,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        super().__init__(
            positions, frequencies, sections, base, stride, None, head_dim, heads, kv_heads
        )


@register(
    'hope_video',
    kind='encoding',
    card=Card(name='HoPE (video)', example='hope_video(stride=0.75)', share='model', relative=True),
)
class HoPEVideo(MultimodalRotary):
    """VideoRoPE whose pairs of the time do not turn, so that what they say of two frames is the
    same at any distance; training draws the distance of frames.

    `q'_i = R(A_i) q_i`, `k'_j = R(A_j) k_j`, `A_k = p_(a(k)) base^(-2k/H) if k < b + c, else 0`,
    with the positions of `videorope`. In training the stride s of every picture and video is 0.5,
    0.75, 1, 1.25 or 1.5, each equally likely, and in evaluation the one given; text is not scaled.
    The time acts through h and w alone. Text alone is not `rope`, because a of the pairs do not
    turn. Differs from the paper: nothing. Not the HoPE of language models.

    Args:
      stride: s at evaluation; the paper chooses it by the length of the videos, and so it has no
        default.
      positions, frequencies, head_dim, heads, kv_heads: see `mrope`.
      sections: (a, b, c), pairs that do not turn and pairs that read h and w, b = c; None is
        (16, 24, 24) of 64.
      base: base of the frequencies.

    Raises:
      ValueError: as for `videorope`.

    Reference: Li, Qin, Ou, Xu, Xu, arXiv 2505.20444.

    Example:
      >>> import posenc_jax as pj
      >>> from posenc_jax.methods.visual_layout import visual_tokens
      >>> encoding = pj.make('hope_video(stride=0.75)', head_dim=8, heads=1, kv_heads=1)
      >>> encoding.place(visual_tokens(1, (3, 1, 1), 1)).pos[0, :, 0].tolist()
      [0.0, 1.0, 1.75, 2.5, 3.5]
    """

    strides = STRIDES

    def __init__(
        self,
        stride: Positive,
        positions: Positions = 'diagonal',
        frequencies: Frequencies = 'no_time',
        sections: Sections | None = None,
        base: Base = 1e6,
        head_dim: int = CONTEXT,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        super().__init__(
            positions, frequencies, sections, base, stride, None, head_dim, heads, kv_heads
        )
