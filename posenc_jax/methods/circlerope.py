"""Circle-RoPE: a picture lies on a circle around the line of text."""

from typing import Literal

from posenc_jax.methods.multimodal_rotary import Frequencies, MultimodalRotary, Sections
from posenc_jax.methods.visual_positions import circle
from posenc_jax.protocol.bounds import CONTEXT, Base, Positive, Share
from posenc_jax.protocol.errors import SpecError, is_size, quoted
from posenc_jax.protocol.registry import Card, register


def age_pattern(
    layers: int,
    strategy: Literal[2, 3, 4] = 4,
    circle: str = 'circlerope()',
    other: str = 'mrope()',
) -> tuple[str, ...]:
    """The pattern of a model (`config.pattern`) in which some layers have the circle and the others
    the positions of `mrope`, "alternating geometry encoding".

    The number of layers is even, so that both encodings have as many layers, as in the lists of the
    released code for 36. Its configuration names a strategy 1, which those lists do not have.

    Args:
      layers: of the model.
      strategy: 4: even layers have the circle, 2: the first half of the layers, 3: the second half.
      circle, other: spec strings of the two encodings.

    Raises:
      ValueError: fewer than two layers, an odd number of them, or another strategy.

    Example:
      >>> age_pattern(4, strategy=2)
      ('circlerope()', 'circlerope()', 'mrope()', 'mrope()')
    """
    if strategy not in (2, 3, 4):
        raise SpecError(f'the strategy must be 2, 3 or 4, got {quoted(strategy)}')
    if not is_size(layers) or layers % 2:
        raise ValueError(f'the layers must be an even number of at least 2, got {quoted(layers)}')
    half = layers // 2
    return {
        4: (circle, other),
        2: (circle,) * half + (other,) * half,
        3: (other,) * half + (circle,) * half,
    }[strategy]


@register(
    'circlerope',
    kind='encoding',
    card=Card(name='Circle-RoPE', example='circlerope()', share='model', relative=True),
)
class CircleRoPE(MultimodalRotary):
    """Puts the tokens of a picture on a circle, all of whose points have the same distance to every
    position (s, s, s) of text, and rotates by the three components.

    `q'_i = R(A_i) q_i`, `k'_j = R(A_j) k_j`, `A_k = p_(a(k)) base^(-2k/H)`, `(w, h, t) = o +
    radius (cos(theta) (-1, 1, 0) / sqrt 2 + sin(theta) (-1, -1, 2) / sqrt 6)`. The angle of cell
    i = r C + c of a picture is `theta = alpha A + (1 - alpha) 2 pi i / (R C)`. A is the angle of
    the cell around the middle of the picture, stretched so that the least is 0 and the largest
    2 pi. With alpha = 1 the cells of the least and of the largest angle have the same position, and
    so have cells on one ray from the middle. Text goes on behind the largest component of a
    picture, which is no whole number. Text alone has the logits of `rope(base)`. Distances are
    equal, and logits are not: rotary logits are no function of the Euclidean distance. In the paper
    every second layer has other positions: `age_pattern` gives the pattern of such a model.

    Differs from the paper: a video, which the paper does not have, is the circle of a frame, moved
    by s f in all components. The code can move the circle until no coordinate is negative
    (`move_to_positive`, off in its configuration); here it stays around the line of text. The
    method `no_circle` of the code is `dff_rate=1`.

    Args:
      frequencies: 'chunked', or the allocation of another paper, see `component_reads`.
      sections: (a, b, c), pairs that read t, h and w; None is (16, 24, 24) of 64.
      base: base of the frequencies.
      alpha: share of the angle of a cell, the rest is that of its order.
      radius: of the circle; None is 10, or 1 with `auto`.
      auto: whether the radius counts in largest coordinates of a cell, so that it grows with the
        picture.
      move_to_origin: whether the angles of cells are those around the middle of a picture, or
        around its first cell.
      dff_rate: share of the grid itself in the plane of the circle; 0 is the circle alone.
      stride: s, the distance of two frames.
      head_dim, heads, kv_heads: H, N and K, from the model.

    Raises:
      ValueError: as for `mrope`.

    Reference: Wang, Guo, Li, Tian, Nie, Xu, Han, arXiv 2505.16416.

    Example:
      >>> import posenc_jax as pj
      >>> from posenc_jax.methods.visual_layout import visual_tokens
      >>> encoding = pj.make('circlerope()', head_dim=8, heads=1, kv_heads=1)
      >>> encoding.place(visual_tokens((2, 2))).pos[0, :2].round(2).tolist()
      [[0.0, 7.07, -7.07], [7.89, -5.77, -2.11]]
    """

    def __init__(
        self,
        frequencies: Frequencies = 'chunked',
        sections: Sections | None = None,
        base: Base = 1e6,
        alpha: Share = 0.5,
        radius: Positive | None = None,
        auto: bool = False,
        move_to_origin: bool = True,
        dff_rate: Share = 0.0,
        stride: Positive = 1.0,
        head_dim: int = CONTEXT,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        super().__init__(
            'circle', frequencies, sections, base, stride, None, head_dim, heads, kv_heads
        )
        usual = 1.0 if auto else 10.0
        self.radius = usual if radius is None else radius
        self.alpha, self.auto = alpha, auto
        self.move_to_origin, self.dff_rate = move_to_origin, dff_rate

    def design(self, cell):
        return circle(
            cell, alpha=self.alpha, radius=self.radius, auto=self.auto,
            move_to_origin=self.move_to_origin, dff_rate=self.dff_rate,
        )  # fmt: skip
