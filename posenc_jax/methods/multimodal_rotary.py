"""Rotary encodings of text, pictures and videos: which pair of features reads which component of a
position (t, h, w), and what all of them have in common.
"""

import dataclasses
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from posenc_jax.base.phases import phase
from posenc_jax.methods.rope import rope_frequencies, rotate
from posenc_jax.methods.visual_positions import DESIGNS, Cell, Placed, check_layout, visual_ids
from posenc_jax.protocol.bounds import CONTEXT, Base, Count, Positive
from posenc_jax.protocol.composite import name_of
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.families import check_head_dim
from posenc_jax.protocol.tokens import Tokens

Positions = Literal['mrope', 'spatial_reset', 'diagonal', 'circle']
Frequencies = Literal['chunked', 'interleaved', 'by_head', 'low_frequency_time', 'no_time']
Sections = tuple[Count, Count, Count]


def usual_sections(frequencies: Frequencies, count: int) -> tuple[int, int, int]:
    """The sections that `count` pairs, or key heads, have unless they are given: those of the
    papers for their numbers, 64 pairs and 8 key heads, and nearly the same shares for others.

    Raises:
      ValueError: fewer pairs or key heads than components.

    Example:
      >>> usual_sections('chunked', 64), usual_sections('interleaved', 64)
      ((16, 24, 24), (24, 20, 20))
    """
    if count < 3:
        what = 'key heads' if frequencies == 'by_head' else 'pairs'
        raise ValueError(
            f'{count} {what} are fewer than the three components t, h and w; give sections, such '
            f'as ({count}, 0, 0)'
        )
    space = max(1, count * 5 // 16 if frequencies == 'interleaved' else count * 3 // 8)
    return count - 2 * space, space, space


def component_reads(
    frequencies: Frequencies, sections: tuple[int, int, int], count: int
) -> Int[np.ndarray, 'count 3']:
    """Which of the components (t, h, w) each pair of features reads, 1 or 0; for 'by_head', each
    key head. A pair without a 1 does not turn.

    Args:
      frequencies: 'chunked': the first pairs read t, the next h, the last w. 'interleaved': pair k
        reads h if k mod 3 = 1 and k < 3b, w if k mod 3 = 2 and k < 3c, else t.
        'low_frequency_time': h and w by turns, then t. 'no_time': the same, but the pairs of t do
        not turn. 'by_head': the first heads read t, the next h, the next w, and others do not turn.
      sections: (a, b, c), how many read t, h and w.
      count: how many there are.

    Raises:
      ValueError: sections that the allocation does not have; the message has the nearest that it
        has.

    Example:
      >>> component_reads('interleaved', (4, 2, 2), 8).argmax(-1).tolist()
      [0, 1, 2, 0, 1, 2, 0, 0]
    """
    check_choice('frequencies', frequencies, get_args(Frequencies))
    a, b, c = sections
    total, heads = a + b + c, frequencies == 'by_head'
    if total > count if heads else total != count:
        fits = a + count - total >= 0
        near = (a + count - total, b, c) if fits else usual_sections(frequencies, count)
        most = f'at most {count}, the key heads' if heads else f'{count}, half the width of a head'
        raise ValueError(f'sections {sections} are {total}, expected {most}; the nearest is {near}')
    k = np.arange(count)
    if frequencies in ('low_frequency_time', 'no_time'):
        if b != c:
            even = (count - 2 * min(b, c), min(b, c), min(b, c))
            raise ValueError(
                f'sections {sections}: {frequencies} takes h and w by turns, so both have the same '
                f'number of pairs; the nearest is {even}'
            )
        component = np.where(k < b + c, 1 + k % 2, 0 if frequencies != 'no_time' else -1)
    elif frequencies == 'interleaved':
        component = np.where((k % 3 == 1) & (k < 3 * b), 1, 0)
        component = np.where((k % 3 == 2) & (k < 3 * c), 2, component)
        if (found := tuple(np.bincount(component, minlength=3).tolist())) != tuple(sections):
            raise ValueError(
                f'sections {sections}: of {count} interleaved pairs at most {(count + 1) // 3} '
                f'read h and {count // 3} read w; the nearest is {found}'
            )
    else:
        component = np.concatenate([np.repeat([0, 1, 2], sections), np.full(count - total, -1)])
    return (component[:, None] == np.arange(3)).astype(np.int32)


def component_rotary(
    x: Num[Array, 'B L heads H'],
    pos: Num[Array, '#B L *P'],
    reads: Int[Array, '#heads #F 3'] | np.ndarray,
    base: float = 10000.0,
) -> Num[Array, 'B L heads H']:
    """Queries or keys whose pair (k, k + H/2) is rotated by `p base^(-2k/H)`, p the component of
    the position that the pair reads. Phases are exact to float32 at any position.

    Args:
      x: vectors; H is even.
      pos: [B, L, 3], or [B, L] for three equal components.
      reads: which component each head and each pair reads, 1 or 0, see `component_reads`.
      base: of the frequencies.
    """
    theta = rope_frequencies(x.shape[-1], base)
    if pos.ndim == 2:
        pos, reads = pos[..., None], reads.sum(-1, keepdims=True)
    own = (pos[:, :, None, None] * reads).sum(-1)  # exact, since all but one term are 0
    own = jnp.broadcast_to(own, (*own.shape[:3], len(theta)))
    return rotate(x, phase(own, theta[:, None])[..., 0])


def allotted_rotary(
    x: Num[Array, 'B L heads H'],
    pos: Num[Array, '#B L *P'],
    frequencies: Frequencies,
    sections: tuple[int, int, int] | None,
    base: float,
) -> Num[Array, 'B L heads H']:
    """`component_rotary` with an allocation of the pairs, the same for all heads; None takes the
    `usual_sections`.
    """
    pairs = x.shape[-1] // 2
    sections = usual_sections(frequencies, pairs) if sections is None else sections
    return component_rotary(x, pos, component_reads(frequencies, sections, pairs)[None], base)


class MultimodalRotary(Encoding):
    """Rotates queries and keys by positions (t, h, w), which it gives to text, pictures and videos.

    Positions and frequencies are two choices, and any positions go with any frequencies. Without
    pictures three equal components are a position, so logits are those of `rope` with the same
    base, except where some pairs or heads do not turn. The arguments are those of
    `mrope`; `DESIGNS` has the positions, and no `sections` are the `usual_sections`.

    Attributes:
      strides: training draws s of every picture and video from these, if there are any.
    """

    traits = frozenset({'rotates', 'reads_other_tokens'})
    strides: ClassVar[tuple[float, ...]] = ()

    def __init__(
        self,
        positions: Positions = 'mrope',
        frequencies: Frequencies = 'chunked',
        sections: Sections | None = None,
        base: Base = 1e6,
        stride: Positive = 1.0,
        tokens_per_second: Positive | None = 2.0,
        head_dim: int = CONTEXT,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
    ):
        rope_frequencies(head_dim, base)
        self.base, self.head_dim = base, head_dim
        self.positions: Positions = positions
        self.frequencies: Frequencies = frequencies
        self.stride, self.tokens_per_second = stride, tokens_per_second
        count = kv_heads if frequencies == 'by_head' else head_dim // 2
        try:
            a, b, c = usual_sections(frequencies, count) if sections is None else sections
            self.sections = a, b, c
            reads = component_reads(frequencies, self.sections, count)
        except ValueError as error:
            raise ValueError(f'{name_of(self)}: {error}') from None
        by_head = frequencies == 'by_head'
        per_head = lambda copies, role: Constant(
            jnp.repeat(jnp.asarray(reads)[:, None], copies, axis=0), axes=(role, None, None)
        )
        # Query heads follow the key head that they share, so no group is cut.
        self.q_heads = per_head(heads // kv_heads, 'heads') if by_head else None
        self.k_heads = per_head(1, 'kv_heads') if by_head else None

    def design(self, cell: Cell) -> Placed:
        """What the positions give the tokens of pictures and videos."""
        return DESIGNS[self.positions](cell)

    def place(self, tok, *, key=None):
        if tok.pos.ndim == 2 or tok.pos.shape[2:] == (3,):
            return tok
        check_layout(name_of(self), tok.pos)
        stride = self.stride
        if key is not None and self.strides:
            shape = (max(len(tok.pos), len(tok.rank)), tok.length)
            drawn = jax.random.randint(key, shape, 0, len(self.strides))
            stride = jnp.asarray(self.strides, jnp.float32)[drawn]
        pos = visual_ids(
            tok.pos, self.design, stride, self.tokens_per_second, tok.rank == 0, tok.valid
        )
        return dataclasses.replace(tok, pos=pos)

    def delta(self, tok: Tokens) -> Num[Array, ' #B']:
        """What is added to the index of a new text token behind the tokens to get its position, in
        all components. The tokens are one text without padding. Of positions (t, h, w) it is read
        off the largest, so with 'spatial_reset' their last token must be text.

        Example:
          >>> import posenc_jax as pj
          >>> from posenc_jax.methods.visual_layout import visual_tokens
          >>> encoding = pj.make('mrope()', head_dim=8, heads=1, kv_heads=1)
          >>> encoding.delta(visual_tokens(2, (2, 3), 2)).tolist()
          [-3]
        """
        if tok.pos.ndim == 2:
            return tok.pos[:, -1] + 1 - tok.length
        if tok.pos.shape[2:] == (3,):
            behind = tok.pos[..., 0] if self.positions == 'diagonal' else tok.pos.max(-1)
            return behind.max(-1) + 1 - tok.length
        check_layout(name_of(self), tok.pos)
        new = jnp.zeros_like(tok.pos[:, :1]).at[..., 0].set(tok.pos[:, -1:, 0] + 1)
        longer = Tokens.of(positions=jnp.concatenate([tok.pos, new], axis=1))
        return self.place(longer).pos[:, -1, 0] - tok.length

    def turned(
        self, x: Num[Array, 'B L heads H'], pos: Num[Array, '#B L *P'], by_head: Constant | None
    ) -> Num[Array, 'B L heads H']:
        """`x` rotated to these positions; `by_head` has what each head reads, if heads differ."""
        check_head_dim(name_of(self), self.head_dim, x)
        if pos.shape[2:] not in ((), (3,)):
            raise ValueError(
                f'{name_of(self)} rotates by positions [B, L] or [B, L, 3], (t, h, w), got '
                f'{pos.shape}; call `place` first'
            )
        if by_head is None:
            reads = component_reads(self.frequencies, self.sections, self.head_dim // 2)
            return component_rotary(x, pos, reads[None], self.base)
        reads = by_head[...]
        if len(reads) != x.shape[2]:
            raise ValueError(
                f'{name_of(self)} was built for {len(reads)} heads, got vectors of {x.shape[2]}'
            )
        return component_rotary(x, pos, reads, self.base)

    def project(self, q, k, v, tq, tk, x=None):
        q = self.turned(q, tq.pos, self.q_heads)
        return q, self.turned(k, tk.pos, self.k_heads), v, tq, tk
