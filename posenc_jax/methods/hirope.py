"""HiRoPE: a token-level and a function-level position in one rotation, for code."""

import ast
import bisect
import re
from collections.abc import Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

from posenc_jax.base.products import heads_first, scaled_dot_product
from posenc_jax.methods.extended_parts import check_part
from posenc_jax.methods.rope import Rotary, rotate
from posenc_jax.protocol.bounds import CONTEXT, Count
from posenc_jax.protocol.composite import Wrapper
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import signed_distance
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tokens import Tokens

Level = Literal['reset', 'absolute']

_NEWLINE = re.compile(r'\r\n|\r|\n')
_HEAD = re.compile(r'(def|class|async def)\b')
_ENDS_DECORATORS = re.compile(r'[^\s@#)\]}]')
_STATEMENT = re.compile(r'[^\s)\]}]')


def hirope_ids(units: Int[Array, '*B L']) -> tuple[Int[Array, '*B L'], Int[Array, '*B L']]:
    """Token-level and function-level positions `(tok, F)` of tokens whose units (functions,
    classes, paragraphs) are known.

    `tok` is the offset of a token in its unit. `F` is the number of the unit: it grows by one
    wherever the unit differs from that of the token before, whatever the values in `units` are. The
    components of `Tokens.pos` are (flat position, tok, F).

    Raises:
      ValueError: units that are not integers [..., L].
    """
    units = jnp.asarray(units)
    if units.ndim < 1 or not jnp.issubdtype(units.dtype, jnp.integer):
        raise ValueError(
            'hirope_ids: units must be integers [..., L], one for each token, got '
            f'{units.dtype} {units.shape}'
        )
    flat = jnp.broadcast_to(jnp.arange(units.shape[-1], dtype=jnp.int32), units.shape)
    starts = jnp.diff(units, prepend=units[..., :1]) != 0
    begun = jax.lax.cummax(jnp.where(starts, flat, 0), axis=units.ndim - 1)
    return flat - begun, jnp.cumsum(starts, axis=-1, dtype=jnp.int32)


def python_units(source: str) -> list[int]:
    """The unit of every line of a Python source: each top-level function or class, and each run of
    other code between them.

    Units are found in the syntax tree, so text inside strings and brackets has no effect.
    Decorators belong to the function or class that follows. Empty and indented lines behind a unit,
    such as comments at its end, belong to that unit.

    Args:
      source: the text; lines end in LF, CR LF or CR. After a final line end there is one more,
        empty line.

    Raises:
      ValueError: the source does not parse; the message gives the line. `line_units` takes any
        text.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(
            f'python_units: line {error.lineno} does not parse: {error.msg}; line_units takes '
            'any text'
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'python_units: the source does not parse: {error}; line_units takes any text'
        ) from None
    heads, inside = set(), set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            head = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            heads.add(head - 1)
            inside.update(range(head, node.end_lineno))
    return _number(_NEWLINE.split(source), heads, inside)


def line_units(text: str) -> list[int]:
    """The unit of every line of a text that need not parse. Only the beginnings of lines are read.

    A unit starts at an unindented line with `def`, `class` or `async def`, or at the decorators
    above it. It ends before the next line that is neither empty nor indented and does not begin
    with a closing bracket. The lines between two units are a unit of their own.
    """
    heads, inside, decorated = set(), set(), None
    lines = _NEWLINE.split(text)
    for number, line in enumerate(lines):
        if _HEAD.match(line):
            head = number if decorated is None else decorated
            heads.add(head)
            inside.update(range(head + 1, number + 1))
            decorated = None
        elif line.startswith('@'):
            decorated = number if decorated is None else decorated
        elif _ENDS_DECORATORS.match(line):
            decorated = None
    return _number(lines, heads, inside)


def paragraph_units(text: str) -> list[int]:
    """The unit of every line of prose: a paragraph, with the empty lines behind it."""
    units, unit, gap = [], -1, True
    for line in _NEWLINE.split(text):
        unit += bool(line.strip()) and gap
        gap = not line.strip()
        units.append(max(unit, 0))
    return units


def token_units(text: str, units: Sequence[int], offsets: Iterable[int]) -> list[int]:
    """The unit of every token: that of the line in which the token begins.

    Args:
      text: the text that was tokenized.
      units: the unit of every line, from `python_units`, `line_units` or `paragraph_units`.
      offsets: index of the first character of every token, 0 .. len(text).

    Raises:
      ValueError: another number of units than the text has lines; an offset outside the text.
    """
    starts = [0, *(newline.end() for newline in _NEWLINE.finditer(text))]
    if len(units) != len(starts):
        raise ValueError(
            f'token_units: the text has {len(starts)} lines, got units of {len(units)} lines'
        )
    offsets = list(offsets)
    for offset in offsets:
        if not 0 <= offset <= len(text):
            raise ValueError(f'token_units: offsets lie in 0 .. {len(text)}, got {offset}')
    return [units[bisect.bisect_right(starts, offset) - 1] for offset in offsets]


def _number(lines, heads, inside):
    """The unit of every line, from the first lines of functions and classes (`heads`) and the
    further lines that belong to one (`inside`).
    """
    units, unit, other = [], -1, False
    for number, line in enumerate(lines):
        statement = bool(_STATEMENT.match(line))
        free = number not in inside and line.strip() and (unit < 0 or (statement and not other))
        if number in heads or free:
            unit, other = unit + 1, number not in heads and statement
        units.append(max(unit, 0))
    return units


CARD = Card(
    name='HiRoPE',
    door='project, logits',
    example='hirope(encoding=rope(), window=5)',
    use_when=(
        'You read long source code with a rotary model without training; to compare '
        'with other extensions, since a measured claim is contrary.'
    ),
    share='model',
    causal_only=True,
    relative=True,
)


@register('hirope', kind='encoding', card=CARD)
@register('hirope', kind='extension', card=CARD)
class HiRoPE(Wrapper):
    """RoPE with two positions for far keys: the offset in a function, and the function's number.

    `logit_ij = R(A_i - A_j) q_i . k_j / sqrt(H)`, `A_i = i theta_t if i - j < W, else tok_i
    theta_t or F_i theta_t`: tok for the planes t < n_s, F for the others. Both counters stay short
    even in a long text. Positions `[B, L, 3]` are (flat, tok, F), the last two from
    `hirope_ids` (the task `code_text` supplies them). Positions `[B, L]` are a single unit,
    with tok the flat position and F = 0. The second rotation of a key is a feature, so a cache
    holds both. Differs from the paper: there are two levels only. The paper leaves open which
    token-level position it means, see `level`.

    Args:
      encoding: the rotary encoding.
      window: W, in flat positions; nearer keys have the plain rotary logit.
      split: n_s, the number of planes (fastest first) that use the token-level position; default
        half of them.
      level: token-level position: 'reset', the offset inside the function, or 'absolute', the flat
        position.

    Raises:
      ValueError: an encoding that is not rotary or depends on the length; split outside 0 ..
        planes; at call, positions of another shape.

    Reference: Zhang, Li, Zhang, Jin, arXiv 2403.19115.

    Example:
      >>> import posenc_jax as pj
      >>> part = pj.make('hirope(encoding=rope())', head_dim=8)
      >>> angles, _ = part.hierarchical_angles(pj.Tokens.of(positions=[[[10, 2, 3]]]))
      >>> part.split, angles.round(3).tolist()
      (2, [[[2.0, 0.2, 0.03, 0.003]]])
    """

    adds = frozenset({'forms_logits'})

    extends = (Rotary,)

    def __init__(
        self,
        encoding: Encoding = CONTEXT,
        window: Count = 512,
        split: int | None = None,
        level: Level = 'reset',
    ):
        self.encoding = check_part('hirope', encoding)
        planes = encoding.rotary_dim // 2
        split = planes // 2 if split is None else split
        if not 0 <= split <= planes:
            raise ValueError(
                f'hirope: split must be between 0 and the {planes} planes of the encoding, got '
                f'{split}'
            )
        self.window, self.split, self.level = window, split, level

    def hierarchical_angles(self, tok: Tokens):
        """Angles [#B, L, planes] of the two levels, and the attention factors of the planes."""
        flat, offset, unit = _components(tok.pos)
        fine, m = self.encoding.angles(flat if self.level == 'absolute' else offset)
        coarse, n = self.encoding.angles(unit)
        per_plane = lambda m: m[..., None] if jnp.ndim(m) else m
        of_tokens = np.arange(fine.shape[-1]) < self.split
        return jnp.where(of_tokens, fine, coarse), jnp.where(of_tokens, per_plane(m), per_plane(n))

    def project(self, q, k, v, tq, tk, x=None):
        flat = lambda a, tok: self.encoding.rotate(a, _components(tok.pos)[0])
        far = lambda a, tok: tok.with_feats(hirope=self._hierarchical(a, tok))
        return flat(q, tq), flat(k, tk), v, far(q, tq), far(k, tk)

    def _hierarchical(self, a, tok):
        angles, scale = self.hierarchical_angles(tok)
        scale = scale if scale.ndim == 1 else scale[:, :, None]
        return rotate(a, angles[:, :, None], layout=self.encoding.layout, scale=scale)

    def logits(self, s, q, k, tq, tk, seen, carry):
        q_flat, k_flat = _components(tq.pos)[0], _components(tk.pos)[0]
        inside = q_flat.max() - k_flat.min() < self.window
        outside = q_flat.min() - k_flat.max() >= self.window

        def one(near, far):
            return scaled_dot_product(*(jax.lax.select(inside, a, b) for a, b in zip(near, far)))

        def both(near, far):
            within = signed_distance(q_flat, k_flat) < self.window
            return jnp.where(within[:, None], scaled_dot_product(*near), scaled_dot_product(*far))

        # Most tiles lie on one side of the window's edge.
        far = heads_first(tq.feats['hirope']), heads_first(tk.feats['hirope'])
        return jax.lax.cond(inside | outside, one, both, (q, k), far), carry


def _components(pos: Num[Array, '#B L *P']):
    """Flat, token-level and function-level positions, [#B, L] each."""
    if pos.ndim == 2:
        return pos, pos, jnp.zeros_like(pos)
    if pos.shape[2:] != (3,):
        raise ValueError(
            'hirope takes positions [B, L], or [B, L, 3] of components (flat, tok, F), got '
            f'{pos.shape}'
        )
    return tuple(pos[..., component] for component in range(3))
