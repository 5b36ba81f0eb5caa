"""Collapse and over-squashing: how alike the last vectors of two long sequences become, and how
much of the last vector each token decides.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from posenc_jax.lab.analyse.capture import check_causal, compiled
from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.protocol import SYMBOLS, Comparison, powers, symbols_of
from posenc_jax.lab.analyse.report import small_legend, tick_counts
from posenc_jax.lab.analyse.states import batches, head_maps, over_layers, through_layers
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.registry import register
from posenc_jax.protocol.tokens import Tokens


class Squashed(NamedTuple):
    """Attributes:
    counts: n, how often the first token is repeated.
    distance: ||y_n - y_(n+1)||_1 of the last vectors of (a repeated n times, b).
    equal_in_bf16: the smallest n from which on the two are equal in bfloat16; None if never.
    paths: what each token adds to the last vector by the bound, the last row of the product of
      (A + I) / 2; mean over the sequences.
    gradients: the norm of the derivative of the last vector by each input, over their sum.
    """

    counts: Int[np.ndarray, ' n']
    distance: Float[np.ndarray, ' n']
    equal_in_bf16: int | None
    paths: Float[np.ndarray, ' T']
    gradients: Float[np.ndarray, ' T']

    @property
    def slope(self) -> float:
        """Of log distance on log n over the counts of 4 and more; -2 for uniform attention. NaN
        where fewer than two distances are positive.
        """
        use = (self.distance > 0) & (self.counts >= 4)
        if use.sum() < 2:
            return float('nan')
        return float(np.polyfit(np.log(self.counts[use]), np.log(self.distance[use]), 1)[0])


def uniform_distance(n: int | Int[np.ndarray, '...']):
    """`|a - b| / ((n + 1) (n + 2))` for |a - b| = 1: the distance of the means of (a repeated n
    times, b) for n and n + 1.
    """
    n = np.asarray(n, float)
    return 1 / ((n + 1) * (n + 2))


def path_influence(attention: Float[np.ndarray, 'layers T T']) -> Float[np.ndarray, ' T']:
    """The last row of the product of `(A_l + I) / 2` over the layers, the last one on the left: a
    bound of the influence of each token on the last vector, up to a constant.

    Args:
      attention: rows that sum to 1.
    """
    row = np.zeros(attention.shape[-1])
    row[-1] = 1
    for layer in np.asarray(attention, np.float64)[::-1]:
        row = (row @ layer + row) / 2
    return row


@register(
    'collapse_and_oversquashing',
    kind='analysis',
    card=analysis_card(
        'collapse and over-squashing',
        'collapse_and_oversquashing(model, tokens)',
        (
            'You suspect that a model stops to tell the ends of long texts apart; a '
            'measured claim is contrary.'
        ),
        causal_only=True,
    ),
)
def collapse_and_oversquashing(
    model: Transformer,
    tokens: Int[np.ndarray, 'S T'],
    *,
    pair: tuple[int, int] = (0, 1),
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    probes: Size | None = None,
    seed: int = 0,
    batch: int = 4,
) -> Squashed:
    """How fast the last vectors of (a, a, ..., a, b) stop to differ, and how much each token
    decides of the last vector.

    `|y_n - y_(n+1)|_1 -> 0; |d y_T / d x_i| <= C (prod_l (A_l + I) / 2)_(T, i)`, with y the last
    vector behind the final norm and y_n that of n copies of a. Collapse: once the distance is below
    the precision of the numbers, no reader can count the copies. Over-squashing: a token acts on
    the last vector through all paths along attention and residual sums, and with depth their weight
    moves to the first tokens; A_l is the mean over heads. The true influence is the norm of the
    derivative by the input of the first layer. Differs from the paper: derivatives are given as
    shares.

    Args:
      model: a decoder whose layers have attention.
      tokens: ids of the sequences, at most 2048 tokens.
      pair: the ids of a and b.
      counts: the n that are compared, ascending.
      probes: random vectors by which the norm of the derivative is estimated for each sequence;
        None takes it exactly, with one backward pass for each feature.
      seed: draws them.
      batch: sequences, of this text or of the pairs, that are read at a time.

    Raises:
      ValueError: queries see later tokens; counts that do not ascend from 1 or more; equal or
        unknown ids; no probe.

    Reference: Barbero, Banino, Kapturowski, Kumaran, Araújo, Vitvitskyi, Pascanu, Veličković, arXiv
    2406.04267.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> found = collapse_and_oversquashing(
      ...     tiny_model('nope()'), np.arange(8)[None] % 7, counts=(1, 2, 4)
      ... )
      >>> bool(found.distance[0] > found.distance[2] > 0), found.paths.shape
      (True, (8,))
    """
    check_causal('collapse_and_oversquashing', model)
    n = np.asarray(counts, np.int32)
    if n.ndim != 1 or len(n) < 1 or n[0] < 1 or (np.diff(n) <= 0).any():
        raise ValueError(f'counts must ascend from at least 1, got {list(counts)}')
    if pair[0] == pair[1] or min(pair) < 0 or max(pair) >= model.cfg.vocab_size:
        raise ValueError(
            f'pair must be two different ids in 0 .. {model.cfg.vocab_size - 1}, got {pair}'
        )
    distance, equal = _collapse(model, n, pair, batch)
    paths, gradients = 0.0, 0.0
    keys = jax.random.split(jax.random.key(seed), len(tokens))
    for rows in batches(tokens, batch):
        maps = np.asarray(over_layers(model, rows, _mean_attention))
        paths = paths + sum(path_influence(maps[:, row]) for row in range(len(rows)))
    for key, row in zip(keys, tokens):
        norms = np.asarray(_gradients(model, row[None], key, fixed=(probes,)), np.float64)
        gradients = gradients + norms / norms.sum()
    count = len(tokens)
    return Squashed(n, distance, equal, paths / count, gradients / count)


def _collapse(model, counts, pair, batch):
    """The distances of the last vectors, and from which count on they are equal in bfloat16."""
    lengths = np.stack([counts, counts + 1], 1).reshape(-1)
    width = int(lengths[-1]) + 1
    place = np.arange(width)
    # What follows b is padding, which a causal model does not see.
    rows = np.where(place == lengths[:, None], pair[1], pair[0]).astype(np.int32)
    found = [
        np.asarray(_last(model, rows[at], lengths[at], place <= lengths[at][:, None]))
        for at in batches(np.arange(len(rows)), batch)
    ]
    y = np.concatenate(found).reshape(len(counts), 2, -1)
    rounded = np.asarray(jnp.asarray(y).astype(jnp.bfloat16).astype(jnp.float32))
    equal = (rounded[:, 0] == rounded[:, 1]).all(-1)
    apart = np.flatnonzero(~equal)
    first = 0 if not len(apart) else int(apart[-1]) + 1
    distance = np.abs(y[:, 0].astype(np.float64) - y[:, 1]).sum(-1)
    return distance, int(counts[first]) if first < len(counts) else None


@compiled
def _last(model, rows, at, valid):
    hidden = model.hidden(rows, Tokens.of(valid=valid))
    return jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0].astype(jnp.float32)


def _mean_attention(encoding, before, after):
    return head_maps(encoding, *after)[1].mean(1)


@compiled
def _gradients(model, probes, tokens, key):
    """The Frobenius norm of the derivative of the last vector by each input vector, [T]."""
    placed = model.place(Tokens.of(length=tokens.shape[1]), tokens)

    def last(x):
        x, _ = through_layers(model, x, placed, lambda x: None)
        return model.norm(x)[0, -1].astype(jnp.float32)

    y, back = jax.vjp(last, model.embed(tokens, placed))
    rows = jnp.eye(len(y)) if probes is None else jax.random.normal(key, (probes, len(y)))
    square = lambda row: jnp.square(back(row)[0][0].astype(jnp.float32)).sum(-1)
    return jnp.sqrt(jax.lax.map(square, rows).sum(0))


def _draw(figure, found):
    left, right = figure.subplots(1, 2)
    for number, (name, one) in enumerate(found.items()):
        left.loglog(one.counts, np.maximum(one.distance, 1e-12), 'o-', label=name, markersize=3)
        right.semilogy(one.paths, color=f'C{number}', label=f'{name}: paths')
        right.semilogy(one.gradients, '--', color=f'C{number}', label=f'{name}: derivative')
    first = next(iter(found.values()))
    shape = uniform_distance(first.counts) / uniform_distance(first.counts[0])
    uniform = first.distance[0] * shape
    left.loglog(first.counts, uniform, ':', color='0.5', label='uniform attention')
    left.set(xlabel='n, copies of the first token', ylabel='L1 distance of the last vectors')
    influence = 'share of the influence on the last vector'
    right.set(xlabel='position of the token', ylabel=influence)
    tick_counts(left, first.counts)
    small_legend(left)
    small_legend(right)


ANALYSIS = Comparison(
    measure=collapse_and_oversquashing,
    batches=4,
    options=SYMBOLS,
    arguments=lambda known, subject: dict(
        tokens=subject.sequences(known, 128),
        pair=symbols_of(known, subject),
        counts=powers(known, subject, 1, 512),
        # Above this width the exact derivatives take too many backward passes.
        probes=None if subject.job.cfg.width <= 64 else 8,
    ),
    columns=('n', 'distance'),
    rows=lambda one: zip(one.counts, one.distance),
    draw=_draw,
    title='The last vector of (A, ..., A, B), and what each token decides of it',
    size=(9.4, 3.8),
    numbers=lambda one: {
        **one._asdict(),
        'slope': one.slope,
        'first_token': one.paths[0],
        'last_token': one.paths[-1],
    },
    remarks=lambda found: [
        f'{name}: slope {one.slope:.2f} (-2 for uniform attention), equal in bfloat16 from n = '
        f'{one.equal_in_bf16 or "none of these"} on; paths give the first token '
        f'{one.paths[0]:.1%} and the last {one.paths[-1]:.1%}, derivatives '
        f'{one.gradients[0]:.1%} and {one.gradients[-1]:.1%}'
        for name, one in found.items()
    ],
)
