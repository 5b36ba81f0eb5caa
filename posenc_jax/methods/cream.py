"""CREAM: head and tail of a text at the ends of a longer range, the middle at random between."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from posenc_jax.protocol.bounds import CONTEXT, TrainLen
from posenc_jax.protocol.encoding import Encoding, PositionRange
from posenc_jax.protocol.errors import check_number, is_size
from posenc_jax.protocol.registry import Card, register
from posenc_jax.protocol.tables import check_row

_SIGMA, _POINTS = 3.0, 1000
_LARGEST_FACTOR = 2**14 - 1


def cream_thresholds(factor: int) -> np.ndarray:
    """Thresholds of the draw of alpha, float64 [2f - 2].

    For a uniform u, alpha is 2 plus the number of thresholds that u reaches.
    The paper's draw is `floor(interp(u, cdf(x), x))` on 1000 points x from 2 to 2f, with the normal
    distribution of mean `1 + f` and deviation 3, not renormalised: mass below 2 and above 2f lies
    on the ends.

    Raises:
      ValueError: a factor that is no integer of at least 1, or so large that the ids of the
        shortest row, of more than 8 f tokens, leave int32.
    """
    if not is_size(factor):
        raise ValueError(f'cream factor must be an integer of at least 1, got {factor!r}')
    check_number('cream factor', factor, most=_LARGEST_FACTOR)
    grid = np.linspace(2, 2 * factor, _POINTS)
    cdf = [0.5 * math.erfc((1 + factor - x) / (_SIGMA * 2**0.5)) for x in grid]
    return np.interp(np.arange(3, 2 * factor + 1), grid, cdf)


def cream_heads(count: int, factor: int) -> tuple[int, int]:
    """The two lengths of head and tail of which a batch draws one: `N // 3` and `4f`.

    Raises:
      ValueError: N too small for heads of `4f` with something between them.
    """
    if count <= 8 * factor:
        raise ValueError(
            f'cream(factor={factor}) has heads and tails of {4 * factor} tokens: it needs more '
            f'than {8 * factor}, got {count}'
        )
    return count // 3, 4 * factor


def cream_bounds(alpha, head, count: int):
    """Smallest and largest id, both inclusive, at which the middle of a text of N tokens may end.

    `h + (q-1) alpha / 2` rounded down and `alpha N / 2 - h - 1`, with `q = N - 2h`. Works on NumPy
    and JAX integers.
    """
    return head + (count - 2 * head - 1) * alpha // 2, alpha * count // 2 - head - 1


def cream_ids(end, head, count: int, factor: int, index):
    """The ids of the tokens at `index`: `0 .. h-1`, `end-q+1 .. end`, `Nf-h .. Nf-1` for N tokens.

    Works on NumPy and JAX integers.
    """
    in_tail, in_middle = index >= count - head, (index >= head) & (index < count - head)
    return index + in_middle * (end - (count - head - 1)) + in_tail * (count * (factor - 1))


@register(
    'cream',
    kind='encoding',
    card=Card(
        name='CREAM',
        example='cream(factor=2) | rope(freqs=pi(factor=2.0))',
        use_when=(
            'You tune a rotary model on short rows so that it reads longer ones, and can '
            'change the positions in training.'
        ),
        share='model',
        relative=True,
    ),
)
class CREAM(Encoding):
    """Trains N tokens at positions of a range N f: h at each end, the others at random between.

    `p = 0 .. h-1, end-q+1 .. end, Nf-h .. Nf-1`, `q = N - 2h`. A forward pass draws h with equal
    probability from `N // 3` (for distances between the pieces) and `4f` (for distances of
    neighbours). Each row draws alpha from the censored normal of `cream_thresholds`, and `end`
    uniformly between `cream_bounds`. In evaluation positions do not change. Chain it with position
    interpolation by the same factor, in training and in evaluation: `cream(factor=8) |
    rope(freqs=pi(factor=8.0))`. N is the length of the row. Ids are looked up by position, so a
    shorter or packed document gets the first of the row's ids. The tokens remain N consecutive
    tokens of the text. The task `cream_text` instead takes the middle from longer texts, as the
    paper does; do not use this encoding with it. Differs from the paper: tokens that have one row
    for the whole batch have one draw.

    Args:
      factor: f, target length / trained length; 1 leaves positions as they are.
      train_len: N, from the model.

    Raises:
      ValueError: a factor that is no integer in 1 .. 16383; in training, rows of 8f tokens or
        fewer, and positions that are fractional, have several components, or lie outside 0 .. N-1
        (where they are traced, ids then leave 0 .. Nf-1).

    Reference: Wu, Zhao, Zheng, arXiv 2406.07138.

    Example:
      >>> import posenc_jax as pj
      >>> encoding, tok = pj.make('cream(factor=2)', train_len=24), pj.Tokens.of(length=24)
      >>> ids = encoding.place(tok, key=jax.random.key(0)).pos[0]
      >>> int(ids[0]), int(ids[-1]), bool((jnp.diff(ids) > 0).all())
      (0, 47, True)
    """

    traits = frozenset({'reads_other_tokens'})

    def __init__(self, factor: int, train_len: TrainLen = CONTEXT):
        self.thresholds = tuple(cream_thresholds(factor).tolist())
        self.factor, self.train_len = factor, train_len

    @property
    def position_range(self):
        return PositionRange(assigns=self.factor * self.train_len)

    def place(self, tok, *, key=None):
        if key is None:
            return tok
        real = check_row('cream', tok)
        return dataclasses.replace(tok, pos=self._ids(key, tok.length, real))

    def _ids(self, key: Array, count: int, pos: Int[Array, 'B L']) -> Int[Array, 'B L']:
        of_head, of_alpha, of_end = jax.random.split(key, 3)
        heads = cream_heads(count, self.factor)
        head = jnp.where(jax.random.bernoulli(of_head), *heads).astype(pos.dtype)
        u = jax.random.uniform(of_alpha, (len(pos), 1))
        alpha = 2 + (u[..., None] >= jnp.asarray(self.thresholds)).sum(-1, dtype=pos.dtype)
        low, high = cream_bounds(alpha, head, count)
        end = jax.random.randint(of_end, low.shape, low, high + 1)
        return cream_ids(end, head, count, self.factor, pos)
