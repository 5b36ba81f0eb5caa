"""Martingale gap: whether the predictions of a model on coin flips average to themselves, and how
far they depend on the order of the flips.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from posenc_jax.lab.analyse.capture import check_causal
from posenc_jax.lab.analyse.card import analysis_card
from posenc_jax.lab.analyse.protocol import SYMBOLS, Comparison, id_of, powers, symbols_of
from posenc_jax.lab.analyse.report import small_legend, tick_counts
from posenc_jax.lab.analyse.states import batches
from posenc_jax.lab.analyse.subjects import Subject
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.protocol.bounds import Ge, Size
from posenc_jax.protocol.registry import register
from posenc_jax.protocol.tokens import Tokens

# Flips [M, n], all of one length, to P(the next flip is 1) of every row.
Predictor = Callable[[Int[np.ndarray, 'M n']], Float[np.ndarray, ' M']]


class Gap(NamedTuple):
    """Attributes:
    counts: n, flips that were read.
    gap: |mean of the next prediction - prediction|, mean over sequences.
    spread: standard deviation of the prediction over orders of the flips, mean over sequences.
    risk: mean KL from Laplace's rule to the prediction, in nats.
    fit: a, b, c of gap ~ a ln(n) / n + b / n + c.
    """

    counts: Int[np.ndarray, ' n']
    gap: Float[np.ndarray, ' n']
    spread: Float[np.ndarray, ' n']
    risk: Float[np.ndarray, ' n']
    fit: Float[np.ndarray, '3']


def laplace(flips: Int[np.ndarray, 'M n']) -> Float[np.ndarray, ' M']:
    """(k + 1) / (n + 2) for k ones among n flips: the prediction of Bayes for a uniform coin."""
    return (flips.sum(-1) + 1) / (flips.shape[-1] + 2)


def gap_of(
    predict: Predictor, flips: Int[np.ndarray, 'M n']
) -> tuple[Float[np.ndarray, ' M'], Float[np.ndarray, ' M']]:
    """`| p_n P(1 | x, 1) + (1 - p_n) P(1 | x, 0) - p_n |` and p_n of every row."""
    add = lambda bit: np.concatenate([flips, np.full((len(flips), 1), bit, flips.dtype)], axis=1)
    p, one, zero = (np.asarray(predict(x), np.float64) for x in (flips, add(1), add(0)))
    return np.abs(p * one + (1 - p) * zero - p), p


def fit_gap(counts: Int[np.ndarray, ' n'], gap: Float[np.ndarray, ' n']) -> Float[np.ndarray, '3']:
    """a, b, c of the least-squares fit `a ln(n) / n + b / n + c`; NaN below three counts."""
    if len(counts) < 3:
        return np.full(3, np.nan)
    n = np.asarray(counts, float)
    return np.linalg.lstsq(np.stack([np.log(n) / n, 1 / n, n * 0 + 1], 1), gap, rcond=None)[0] + 0.0


def gaps(
    predict: Predictor, counts: Sequence[int], *, sequences: int, orders: int, seed: int
) -> Gap:
    """The measures of `martingale_gap` for any predictor."""
    n = np.asarray(counts, np.int32)
    if n.ndim != 1 or len(n) < 1 or n[0] < 1 or (np.diff(n) <= 0).any():
        raise ValueError(f'counts must ascend from at least 1, got {list(counts)}')
    rng = np.random.default_rng(seed)
    theta = rng.uniform(size=(sequences, 1))
    flips = (rng.uniform(size=(sequences, n[-1])) < theta).astype(np.int32)
    rows = []
    for count in n:
        own = flips[:, :count]
        gap, p = gap_of(predict, own)
        mixed = np.concatenate([rng.permuted(own, axis=1) for _ in range(orders)])
        spread = np.asarray(predict(mixed), np.float64).reshape(orders, -1).std(0)
        bayes, q = laplace(own), np.clip(p, 1e-12, 1 - 1e-12)
        risk = bayes * np.log(bayes / q) + (1 - bayes) * np.log((1 - bayes) / (1 - q))
        rows.append([gap.mean(), spread.mean(), risk.mean()])
    gap, spread, risk = np.transpose(rows)
    return Gap(n, gap, spread, risk, fit_gap(n, gap))


def predictor(
    model: Transformer,
    symbols: tuple[int, int],
    longest: int,
    *,
    separator: int | None = None,
    batch: int = 32,
) -> Predictor:
    """The predictions of a causal model after up to `longest` flips, renormalised over the ids of
    the two symbols, which stand for 0 and 1. A `separator` follows every flip. Shorter rows are
    padded, so one program serves all.
    """
    graphdef, state = nnx.split(model)
    ids, step = np.asarray(symbols, np.int32), 1 if separator is None else 2

    @jax.jit
    def call(state, rows, count):
        valid = jnp.arange(rows.shape[1]) < count
        logits = nnx.merge(graphdef, state)(rows, Tokens.of(valid=valid[None]))
        own = jax.lax.dynamic_index_in_dim(logits, count - 1, 1, keepdims=False)[:, ids]
        return jax.nn.softmax(own)[:, 1]

    def predict(flips):
        count = flips.shape[1] * step
        filled = -(-len(flips) // batch) * batch
        rows = np.full((filled, longest * step), ids[0] if separator is None else separator)
        rows[: len(flips), :count:step] = ids[flips]
        found = [
            np.asarray(call(state, rows.astype(np.int32), count)) for rows in batches(rows, batch)
        ]
        return np.concatenate(found)[: len(flips)]

    return predict


@register(
    'martingale_gap',
    kind='analysis',
    card=analysis_card(
        'martingale gap',
        'martingale_gap(model, (0, 1))',
        ('You want to know how far predictions depend on an order that should not matter.'),
        causal_only=True,
    ),
)
def martingale_gap(
    model: Transformer,
    symbols: tuple[int, int],
    *,
    separator: int | None = None,
    counts: Sequence[int] = (2, 4, 8, 16, 32, 64),
    sequences: Size = 32,
    orders: Annotated[int, Ge(2)] = 20,
    seed: int = 0,
    batch: int = 32,
) -> Gap:
    """Whether predictions on exchangeable data form a martingale, and how far they depend on order.

    `gap_n = |p_n P(1 | x, 1) + (1 - p_n) P(1 | x, 0) - p_n|`. The data x are flips of coins whose
    bias is uniform. The prediction of Bayes, Laplace's rule, is a martingale: the mean of the next
    prediction is this one. `gap_n` says how far a model is off.
    `spread` is the standard deviation over permutations of the flips, which are equally likely. It
    is 0 for one causal layer without positions that reads a separator last; without a separator the
    last flip is the query. `risk` is the mean KL from Laplace's rule. The mean of a model's
    predictions over permutations is the paper's debiasing. Differs from the paper: p_n is
    renormalised over the two symbols.

    Args:
      model: a decoder; one that was trained on flips, or a language model.
      symbols: ids that stand for 0 and 1.
      separator: the id that follows every flip; None for none.
      counts: the n, ascending.
      sequences: coins.
      orders: permutations for each of them, at least 2; 20 or more for a stable spread.
      seed: draws coins, flips and permutations.
      batch: sequences that are read at a time.

    Raises:
      ValueError: queries see later tokens; equal or unknown ids; counts that do not ascend from
        1 or more; no sequence, fewer than two orders.

    Reference: Chlon, Khamis, Chlon, El Zein, Awada, arXiv 2507.11768.

    Example:
      >>> from posenc_jax.lab.model.tiny import tiny_model
      >>> model = tiny_model('nope()', vocab_size=2)
      >>> martingale_gap(model, (0, 1), counts=(2, 5), sequences=2, orders=2).gap.shape
      (2,)
    """
    check_causal('martingale_gap', model)
    if symbols[0] == symbols[1] or min(symbols) < 0 or max(symbols) >= model.cfg.vocab_size:
        raise ValueError(
            f'symbols must be two different ids in 0 .. {model.cfg.vocab_size - 1}, got {symbols}'
        )
    if separator is not None and not 0 <= separator < model.cfg.vocab_size:
        raise ValueError(
            f'separator must be an id in 0 .. {model.cfg.vocab_size - 1}, got {separator}'
        )
    longest = int(max(counts, default=1)) + 1
    predict = predictor(model, symbols, longest, separator=separator, batch=batch)
    return gaps(predict, counts, sequences=sequences, orders=orders, seed=seed)


def _draw(figure, found):
    axes = figure.subplots(1, 3)
    for number, (name, one) in enumerate(found.items()):
        for axis, values in zip(axes, one[1:4]):
            shown = np.where(values > 0, values, np.nan)
            axis.loglog(one.counts, shown, 'o-', markersize=3, label=name, color=f'C{number}')
        n = np.geomspace(one.counts[0], one.counts[-1], 60)
        a, b, c = one.fit
        fitted = a * np.log(n) / n + b / n + c
        axes[0].loglog(n, np.where(fitted > 0, fitted, np.nan), ':', color=f'C{number}')
    labels = ('gap (dotted: fit)', 'standard deviation over orders', 'KL from Laplace, nats')
    for axis, label in zip(axes, labels):
        axis.set(xlabel='n, flips read', ylabel=label)
        tick_counts(axis, next(iter(found.values())).counts)
        small_legend(axis)


def _arguments(known: argparse.Namespace, subject: Subject) -> dict[str, Any]:
    separator = id_of(subject, '--separator is', known.separator) if known.separator else None
    return dict(
        symbols=symbols_of(known, subject),
        separator=separator,
        counts=powers(known, subject, 2, 64, tokens=2 if known.separator else 1),
        sequences=known.batches,
        batch=min(known.batches, 32),
    )


ANALYSIS = Comparison(
    measure=martingale_gap,
    batches=16,
    options={
        **SYMBOLS,
        'separator': dict(
            default='', metavar='C', help='a text of one token that follows every flip'
        ),
    },
    arguments=_arguments,
    columns=('n', 'gap', 'spread', 'KL from Laplace'),
    rows=lambda one: zip(*one[:4]),
    draw=_draw,
    title='Predictions of coin flips',
    size=(11.0, 3.5),
    remarks=lambda found: [
        f'{name}: gap ~ {one.fit[0]:.3g} ln(n) / n + {one.fit[1]:.3g} / n + {one.fit[2]:.3g}'
        for name, one in found.items()
    ],
)
