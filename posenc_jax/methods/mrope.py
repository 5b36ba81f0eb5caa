"""MRoPE and its successors by the same group: chunked, interleaved, and divided by heads."""

import numpy as np
from jaxtyping import Array, Num

from posenc_jax.methods.multimodal_rotary import (
    Frequencies,
    MultimodalRotary,
    Positions,
    Sections,
    allotted_rotary,
    component_reads,
    component_rotary,
    usual_sections,
)
from posenc_jax.protocol.bounds import CONTEXT, Base, Positive
from posenc_jax.protocol.registry import Card, register


def mrope(
    x: Num[Array, 'B L heads H'],
    pos: Num[Array, '#B L *P'],
    sections: tuple[int, int, int] | None = None,
    base: float = 1e6,
) -> Num[Array, 'B L heads H']:
    """Queries or keys rotated by the components (t, h, w) of their positions: the pairs of
    high frequency read t, the next h, and the slowest w.

    Args:
      x: vectors; H is even.
      pos: [B, L, 3], see `visual_ids`, or [B, L] for three equal components.
      sections: (a, b, c), how many pairs read t, h and w; None takes the shares of the paper.
      base: of the frequencies.
    """
    return allotted_rotary(x, pos, 'chunked', sections, base)


def mrope_interleaved(
    x: Num[Array, 'B L heads H'],
    pos: Num[Array, '#B L *P'],
    sections: tuple[int, int, int] | None = None,
    base: float = 5e6,
) -> Num[Array, 'B L heads H']:
    """Queries or keys rotated by the components (t, h, w) of their positions: the pairs
    read t, h and w by turns.

    Args:
      x: vectors; H is even.
      pos: [B, L, 3], see `visual_ids`, or [B, L] for three equal components.
      sections: (a, b, c), how many pairs read t, h and w; None takes the shares of the paper.
      base: of the frequencies.
    """
    return allotted_rotary(x, pos, 'interleaved', sections, base)


def mhrope(
    x: Num[Array, 'B L heads H'],
    pos: Num[Array, '#B L *P'],
    kv_heads: int,
    sections: tuple[int, int, int] | None = None,
    base: float = 1e6,
) -> Num[Array, 'B L heads H']:
    """Queries or keys rotated by the components (t, h, w) of their positions: all pairs of a head
    read one component, that of the key head which query heads share.

    Args:
      x: vectors; H is even.
      pos: [B, L, 3], see `visual_ids`, or [B, L] for three equal components.
      kv_heads: K, a divisor of the heads of `x`.
      sections: (a, b, c), how many key heads read t, h and w; None takes the shares of the paper.
      base: of the frequencies.
    """
    sections = usual_sections('by_head', kv_heads) if sections is None else sections
    reads = component_reads('by_head', sections, kv_heads)
    reads = np.repeat(reads[:, None], x.shape[2] // kv_heads, axis=0)
    return component_rotary(x, pos, reads, base)


@register(
    'mrope',
    kind='encoding',
    card=Card(
        name='MRoPE',
        example='mrope()',
        use_when=('You load or train a model such as Qwen2-VL, with images or video within text.'),
        share='model',
        relative=True,
    ),
)
class MRoPE(MultimodalRotary):
    """Rotates by three components: pairs of high frequency read the time, the next the row, and the
    slowest the column.

    `q'_i = R(A_i) q_i`, `k'_j = R(A_j) k_j`, `A_k = p_(a(k)) base^(-2k/H)`, `p = (o + s f, o + r,
    o + c)`. Pair k reads the component a(k): the first a pairs t, the next b h, and the last c w.
    Text has p = (o, o, o), and o counts on behind a picture from the largest of all its components.
    A task gives the positions `visual_layout`; text alone needs none, and its logits are those of
    `rope(base)`. Positions [B, L, 3] are taken as (t, h, w). Differs from the paper: a stride that
    is no whole number is kept, where the released code cuts positions to integers; sections of
    other head widths than 128 have nearly the same shares. Releases of transformers differ: 4.57
    reads the seconds of a frame as integers, and 5.24 counts on from the largest of rows and
    columns alone, so text behind a long video repeats its times.

    Args:
      positions: 'mrope', or the design of another paper: 'spatial_reset', 'diagonal', 'circle'.
      frequencies: 'chunked', or the allocation of another paper, see `component_reads`.
      sections: (a, b, c), pairs that read t, h and w; None is (16, 24, 24) of 64.
      base: base of the frequencies; 1e6 as in Qwen2-VL.
      stride: s, the distance of two frames in time.
      tokens_per_second: the distance of frame f is `floor(f seconds tokens_per_second)` where the
        layout of a video has seconds, as in Qwen2.5-VL; None reads no seconds.
      head_dim, heads, kv_heads: H, N and K, from the model.

    Raises:
      ValueError: an odd head width, sections that do not sum to half of it; at call, positions
        that are no layout.

    Reference: Wang, Bai, Tan, Wang, Fan, Bai et al., arXiv 2409.12191; Bai et al., arXiv
      2502.13923.

    Example:
      >>> import posenc_jax as pj
      >>> from posenc_jax.methods.visual_layout import visual_tokens
      >>> encoding = pj.make('mrope()', head_dim=8, heads=1, kv_heads=1)
      >>> encoding.place(visual_tokens(1, (1, 3), 1)).pos[0].tolist()
      [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3], [4, 4, 4]]
    """


@register(
    'mrope_interleaved',
    kind='encoding',
    card=Card(name='MRoPE-Interleave', example='mrope_interleaved()', share='model', relative=True),
)
class MRoPEInterleaved(MultimodalRotary):
    """Rotates by three components that share the whole range of frequencies: pairs read t, h, w,
    t, h, w and so on.

    `q'_i = R(A_i) q_i`, `k'_j = R(A_j) k_j`, `A_k = p_(a(k)) base^(-2k/H)`, `a(k) = h if k mod 3 =
    1 and k < 3b, w if k mod 3 = 2 and k < 3c, else t`. Positions are those of `mrope`, or
    `(o + s f, r, c)` with `positions='spatial_reset'`, which the paper recommends and Qwen3-VL does
    not have: rows and columns then start at 0, and text goes on where it would without the reset.
    With it, logits of text and a picture depend on how far the text stands behind the beginning.
    Text alone has the logits of `rope(base)`. Differs from the paper: as `mrope`; sections that
    interleaving does not have are refused, where the released code gives their pairs to t.

    Args:
      positions, frequencies, stride, head_dim, heads, kv_heads: see `mrope`.
      sections: (a, b, c), pairs that read t, h and w; None is (24, 20, 20) of 64.
      base: base of the frequencies; 5e6 as in Qwen3-VL.
      tokens_per_second: see `mrope`; None as in Qwen3-VL, where timestamps are text.

    Raises:
      ValueError: as for `mrope`, and sections that interleaving does not have.

    Reference: Huang, Liu, Song, Hou, Chang, Lin, Bai, arXiv 2510.23095.

    Example:
      >>> import posenc_jax as pj
      >>> from posenc_jax.methods.visual_layout import visual_tokens
      >>> sizes = dict(head_dim=8, heads=1, kv_heads=1)
      >>> encoding = pj.make('mrope_interleaved(positions="spatial_reset")', **sizes)
      >>> encoding.place(visual_tokens(1, (1, 3), 1)).pos[0].tolist()
      [[0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 2], [4, 4, 4]]
    """

    def __init__(
        self,
        positions: Positions = 'mrope',
        frequencies: Frequencies = 'interleaved',
        sections: Sections | None = None,
        base: Base = 5e6,
        stride: Positive = 1.0,
        tokens_per_second: Positive | None = None,
        head_dim: int = CONTEXT,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        super().__init__(
            positions, frequencies, sections, base, stride, tokens_per_second, head_dim, heads,
            kv_heads,
        )  # fmt: skip


@register(
    'mhrope',
    kind='encoding',
    card=Card(
        name='MHRoPE',
        example='mhrope(sections=(0, 1, 1))',
        use_when=(
            'You have images or video within text and want each head to read one '
            'component; the measured claim is mixed.'
        ),
        share='model',
        relative=True,
    ),
)
class MHRoPE(MultimodalRotary):
    """Rotates all pairs of a head by one component: the first key heads by t, the next by h, the
    next by w; heads that are left do not turn.

    `q'_i = R(p_(a(g)) theta) q_i`, `k'_j = R(p_(a(g)) theta) k_j`, `theta_k = base^(-2k/H)`, g the
    key head. A query head reads the component of its key head. So every component has all
    frequencies. Text alone has the logits of `rope(base)` in every head that turns. The paper
    recommends `positions='spatial_reset'`, see `mrope_interleaved`; as in the released code it is
    not the default. Differs from the paper: as `mrope`; for other than 8 key heads the sections
    have nearly the same shares.

    Args:
      positions, frequencies, stride, tokens_per_second, head_dim, heads, kv_heads: see `mrope`.
      sections: (a, b, c), key heads that read t, h and w, K at most in sum; None is (2, 3, 3) of 8.
      base: base of the frequencies.

    Raises:
      ValueError: an odd head width, sections of more than the key heads, no sections for fewer than
        3 key heads; at call, positions that are no layout.

    Reference: Huang, Liu, Song, Hou, Chang, Lin, Bai, arXiv 2510.23095.

    Example:
      >>> import posenc_jax as pj
      >>> encoding = pj.make('mhrope()', head_dim=8, heads=8, kv_heads=4)
      >>> encoding.sections, encoding.q_heads[...].argmax(-1).ravel().tolist()
      ((2, 1, 1), [0, 0, 0, 0, 1, 1, 2, 2])
    """

    def __init__(
        self,
        positions: Positions = 'mrope',
        frequencies: Frequencies = 'by_head',
        sections: Sections | None = None,
        base: Base = 1e6,
        stride: Positive = 1.0,
        tokens_per_second: Positive | None = None,
        head_dim: int = CONTEXT,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        super().__init__(
            positions, frequencies, sections, base, stride, tokens_per_second, head_dim, heads,
            kv_heads,
        )  # fmt: skip
