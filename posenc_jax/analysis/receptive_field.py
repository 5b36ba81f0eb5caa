"""Receptive fields: how far attention reaches by the series of its bias, and by the probabilities
of a trained model.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.analysis.token_distance import spearman
from posenc_jax.analysis.watch import known, over_queries, watch_encodings
from posenc_jax.core import disk
from posenc_jax.core.attention import pair_logits
from posenc_jax.core.composite import name_of, parts_of
from posenc_jax.core.encoding import DOORS, Encoding
from posenc_jax.core.memory import main_memory, readable
from posenc_jax.core.registry import Card, Promises, register
from posenc_jax.core.tokens import Tokens
from posenc_jax.model.transformer import Transformer

REACH = 200_000
_CHUNK = 8192
_PROBES = 32


def decay_kernel(encoding: Encoding, heads: int, reach: int = REACH) -> Float[np.ndarray, 'N D']:
    """r(d), d = 0 .. reach - 1: what the encoding makes of equal logits 0 of the query at position
    `reach - 1`; float64.

    -inf where a mask hides the key. Distances are evaluated in pieces, so that many fit.

    Args:
      encoding: acts on logits by positions alone (opens `score` and `mask` only).
      heads: N.

    Raises:
      ValueError: an encoding that opens another door (it is named), fewer than 4 distances or more
        than fit, no head.

    Example:
      >>> import posenc_jax as pj
      >>> decay_kernel(pj.make('alibi()', heads=2), 2, 4)[0].tolist()
      [-0.0, -0.0625, -0.125, -0.1875]
    """
    if reach < 4 or heads < 1:
        raise ValueError(
            f'a decay kernel has at least 4 distances and 1 head, got {reach} and {heads}'
        )
    if (needed := 20 * heads * reach) > (
        limit := main_memory()
    ):  # in float32, joined, and in float64
        raise ValueError(
            f'{reach} distances of {heads} heads would take {readable(needed)}, this machine has '
            f'{readable(limit)}'
        )
    _check_additive(encoding)
    graphdef, state = nnx.split(encoding)
    pieces = []
    for start in range(0, reach, _CHUNK):
        distance = np.minimum(np.arange(start, start + min(_CHUNK, reach)), reach - 1)
        pieces.append(np.asarray(_row(graphdef, heads, state, distance, reach - 1, 0)))
    return np.concatenate(pieces, axis=1)[:, :reach].astype(np.float64)


def _check_additive(encoding: Encoding) -> None:
    for part in parts_of(encoding):
        other = [door for door in DOORS if part.opens(door) and door not in ('score', 'mask')]
        if other:
            raise ValueError(
                'a theoretical receptive field is that of a bias of the positions; '
                f'{name_of(part)} opens {other[0]!r} as well'
            )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _row(graphdef, heads, state, distance, row, shift):
    """r of one query against the keys at these distances before it, all positions moved by
    `shift`.
    """
    encoding = nnx.merge(graphdef, state)
    index = jnp.full((1, 1), row, jnp.int32)
    tok = lambda index: Tokens(index=index, pos=index + shift)
    tq, tk = tok(index), tok(index - distance[None])
    seen = encoding.mask(tq, tk)
    seen = jnp.ones((1, 1, 1, distance.shape[0]), bool) if seen is None else seen
    s, _ = encoding.score(
        jnp.zeros((1, heads, 1, distance.shape[0])), tq, tk, seen, encoding.init_carry(None, tq)
    )
    return jnp.where(seen, s, -jnp.inf)[0, :, 0]


def _is_relative(encoding: Encoding, heads: int, reach: int) -> bool:
    graphdef, state = nnx.split(encoding)
    distance = np.geomspace(1, reach, _PROBES).astype(np.int32) - 1
    here, there = (
        np.asarray(_row(graphdef, heads, state, distance, reach - 1, shift)) for shift in (0, reach)
    )
    # A bias made of terms that cancel (sandwich) is rounded as they are: alike in what is near and
    # what is far.
    seen = np.isfinite(here)
    spread = np.max(here, axis=1, where=seen, initial=-np.inf) - np.min(
        here, axis=1, where=seen, initial=np.inf
    )
    return bool(
        np.isclose(here, there, rtol=1e-5, atol=1e-5 * np.maximum(spread, 0.0)[:, None]).all()
    )


def field_of(r: Float[np.ndarray, '*n D'], epsilon: float = 0.05) -> Int[np.ndarray, '*n']:
    """The smallest J with `sum_(d < J) exp(r_d) > (1 - epsilon) sum_d exp(r_d)` over the distances
    given.

    Raises:
      ValueError: epsilon outside (0, 1).

    Example:
      >>> field_of(-0.5 * np.arange(1000.0), 0.1).item()
      5
    """
    _check_epsilon(epsilon)
    held = np.cumsum(_weights(r), axis=-1)
    return 1 + np.argmax(held > (1 - epsilon) * held[..., -1:], axis=-1)


def undecided(r: Float[np.ndarray, '*n D'], epsilon: float = 0.05) -> Bool[np.ndarray, '*n']:
    """Whether more than epsilon of the whole series may lie beyond these distances: it diverges, or
    falls too slowly to tell.

    By blocks of doubled width (Cauchy's condensation): with A the sum over [D/4, D/2) and B over
    [D/2, D), what follows is at least `B rho / (1 - rho)`, `rho = B / A`, if rho does not fall, and
    without end where rho >= 1.

    Example:
      >>> d = np.arange(100_000.0)
      >>> undecided(np.stack([-2 * np.log1p(d), -np.log1p(d)])).tolist()
      [False, True]
    """
    _check_epsilon(epsilon)
    weights = _weights(r)
    size = weights.shape[-1]
    before, last = weights[..., size // 4 : size // 2].sum(-1), weights[..., size // 2 :].sum(-1)
    shrinks = last < before
    ratio = np.where(shrinks, last / np.where(before > 0, before, 1.0), 0.0)
    rest = np.where(shrinks, last * ratio / (1 - ratio), np.where(last > 0, np.inf, 0.0))
    return rest > epsilon * weights.sum(-1)


def _weights(r):
    return np.exp(np.asarray(r, np.float64) - np.max(r, axis=-1, keepdims=True))


def _check_epsilon(epsilon):
    if not 0 < epsilon < 1:
        raise ValueError(
            'epsilon, the share of the weight that may lie beyond a receptive field, is in (0, '
            f'1), got {epsilon}'
        )


def theoretical_field(
    encoding: Encoding, heads: int, *, reach: int = REACH, epsilon: float = 0.05
) -> Float[np.ndarray, 'N']:
    """TRF of each head, in keys: `field_of` the decay kernel; inf where the series is `undecided`
    by the distances there are.

    What lies beyond `reach` is not in the sum: of a series that falls as 1/d^2 a field of 1 % of
    `reach` is 1 % too narrow. Where the bias is not one of the distance alone (FIRE), the sum ends
    with the keys of the query at position `reach - 1`, and nothing is inf.

    Example:
      >>> import posenc_jax as pj
      >>> (
      ...     theoretical_field(pj.make('alibi()', heads=2), 2).tolist(),
      ...     theoretical_field(pj.make('nope()'), 1).tolist(),
      ... )
      ([48.0, 767.0], [inf])
    """
    r = decay_kernel(encoding, heads, reach)
    fields = field_of(r, epsilon).astype(np.float64)
    return (
        np.where(undecided(r, epsilon), np.inf, fields)
        if _is_relative(encoding, heads, reach)
        else fields
    )


def trained_field(
    model: Transformer, *, reach: int = REACH, epsilon: float = 0.05
) -> Float[np.ndarray, 'layers N']:
    """`theoretical_field` of every layer, with the parameters the model has.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=2, width=8, heads=2, encoding='alibi()'
      ... )
      >>> trained_field(Transformer(cfg, rngs=nnx.Rngs(0))).tolist()
      [[48.0, 767.0], [48.0, 767.0]]
    """
    encodings = [model.encoding(place, block) for place, block in model.layers()]
    return np.stack(
        [theoretical_field(e, model.cfg.heads, reach=reach, epsilon=epsilon) for e in encodings]
    )


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """Sums over the queries of one or more batches; the properties are what is asked for.

    Attributes:
      widths: sums of each query's smallest J, [layers, N].
      rows: how many queries, [layers, N].
      mass: sums of the attention at each distance, [layers, N, L].
      having: how many queries have a token of their document at each distance, [L].
      epsilon: the share of the weight that may lie beyond J keys.
    """

    widths: Float[np.ndarray, 'layers N']
    rows: Float[np.ndarray, 'layers N']
    mass: Float[np.ndarray, 'layers N L']
    having: Int[np.ndarray, 'L']
    epsilon: float

    @property
    def erf(self) -> Float[np.ndarray, 'layers N']:
        """Mean J, in keys."""
        return self.widths / np.maximum(self.rows, 1)

    @property
    def profile(self) -> Float[np.ndarray, 'layers N L']:
        """Mean attention to the token at each distance, over the queries that have one."""
        return self.mass / np.maximum(self.having, 1)

    def merge(self, other: 'ReceptiveField') -> 'ReceptiveField':
        """The sums over the queries of both.

        Raises:
          ValueError: other lengths or another epsilon.
        """
        if self.mass.shape != other.mass.shape or self.epsilon != other.epsilon:
            mine, theirs = (self.mass.shape, self.epsilon), (other.mass.shape, other.epsilon)
            raise ValueError(
                f'receptive fields of {mine} and {theirs} (layers, heads, length; epsilon) '
                'cannot be merged'
            )
        sums = (
            getattr(self, name) + getattr(other, name)
            for name in ('widths', 'rows', 'mass', 'having')
        )
        return ReceptiveField(*sums, self.epsilon)


@register(
    'receptive_field',
    kind='analysis',
    card=Card(
        name='receptive fields',
        title='Exploring Transformer Extrapolation',
        arxiv='2307.10156',
        door='analysis',
        equation='TRF = min J: sum_(d<J) exp(r_d) > (1 - eps) sum_d exp(r_d); '
        'ERF = mean_i min J: sum_(d<J) p_(i,i-d) > 1 - eps',
        source='the paper (its code, OpenNLPLab/Rpe, was not found)',
        authors='Qin, Zhen and Zhong, Yiran and Deng, Hui',
        year=2024,
        example='receptive_field(model, tokens)',
        promises=Promises(sweep_free=False, blockwise=False),
    ),
)
def receptive_field(
    model: Transformer,
    tokens: Int[Array, 'B L'],
    tok: Tokens | None = None,
    *,
    epsilon: float = 0.05,
    block: int = 128,
) -> ReceptiveField:
    """The empirical receptive field of every head: how many keys back hold all but epsilon of the
    attention of a query.

    `ERF = mean over i of min J: sum_(d < J) p_(i, i-d) > 1 - epsilon`, p the probabilities of the
    model, whatever its encoding. One forward pass, in blocks of queries: O(L^2 D) time, O(block L)
    memory. Its theoretical counterpart, which needs no model, is `theoretical_field`. Differs from
    the paper: its epsilon and averages are not known; these are ours.

    Args:
      model: a decoder.
      tokens: ids. For more text, `merge` the results of several batches.
      tok: what is known about the tokens; padding is left out, and a document ends where it began.
      epsilon: in (0, 1).
      block: queries at a time.

    Raises:
      ValueError: a model whose queries see later tokens, an epsilon outside (0, 1), a block below
        1.

    Reference: Qin, Zhong, Deng, arXiv 2307.10156.

    Example:
      >>> from posenc_jax.model import TransformerConfig
      >>> cfg = TransformerConfig(
      ...     vocab_size=7, train_len=8, layers=2, width=16, heads=2, encoding='alibi()'
      ... )
      >>> found = receptive_field(
      ...     Transformer(cfg, rngs=nnx.Rngs(0)), jnp.arange(14).reshape(2, 7) % 5
      ... )
      >>> found.erf.shape, found.profile.shape, found.mass.sum(-1).round(3).tolist()
      ((2, 2), (2, 2, 7), [[14.0, 14.0], [14.0, 14.0]])
    """
    _check_epsilon(epsilon)
    if block < 1:
        raise ValueError(f'receptive_field: block must be at least 1, got {block}')
    for place, layer in model.layers():
        if not model.cfg.causal or 'sees_later' in model.encoding(place, layer).traits:
            raise ValueError(
                'receptive_field is defined for causal attention; this model lets queries see '
                'later tokens'
            )
    graphdef, state = nnx.split(model)
    widths, rows, mass, having = _fields((graphdef, epsilon, block), state, tokens, tok)
    return ReceptiveField(*map(np.asarray, (widths, rows, mass, having[0])), epsilon)


@functools.partial(jax.jit, static_argnums=0)
def _fields(static, state, tokens, tok):
    graphdef, epsilon, block = static

    def look(encoding, before, after):
        return attention_fields(encoding, *after, epsilon, block)

    return watch_encodings(nnx.merge(graphdef, state), tokens, tok, look)


def attention_fields(
    encoding: Encoding,
    q: Float[Array, 'B L N H'],
    k: Float[Array, 'B L K H'],
    tq: Tokens,
    tk: Tokens,
    epsilon: float,
    block: int,
) -> tuple[Float[Array, 'N'], Float[Array, 'N'], Float[Array, 'N L'], Int[Array, 'L']]:
    """The sums behind `ReceptiveField` for one layer, from projected queries and keys."""
    batch, length, heads, _ = q.shape
    tq, tk = known(tq, batch), known(tk, batch)
    k, distance = jnp.swapaxes(k, 1, 2), jnp.arange(length)

    def one(sums, start, own):
        q_rows, rows = jnp.swapaxes(own[0], 1, 2), own[1]
        s, _, seen = pair_logits(encoding, q_rows, k, rows, tk, encoding.init_carry(q_rows, rows))
        seen = seen & rows.valid[:, None, :, None]
        p = jnp.where(seen, jax.nn.softmax(jnp.where(seen, s, -1e30), axis=-1), 0.0)
        at = (start + jnp.arange(rows.length))[:, None] - distance
        p = jnp.where(
            at >= 0, jnp.take_along_axis(p, jnp.clip(at, 0, length - 1)[None, None], axis=-1), 0.0
        )
        width = 1 + (jnp.cumsum(p, axis=-1) <= 1 - epsilon).sum(-1)
        looks = p.sum(-1) > 0.5  # not a row without a key
        has = rows.valid[..., None] & (rows.order[..., None] >= distance)
        has = jnp.broadcast_to(has, (batch, rows.length, length))
        here = (
            jnp.where(looks, width, 0).sum((0, 2)),
            looks.sum((0, 2)),
            p.sum((0, 2)),
            has.sum((0, 1)),
        )
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, here)

    empty = (
        jnp.zeros(heads),
        jnp.zeros(heads),
        jnp.zeros((heads, length)),
        jnp.zeros(length, jnp.int32),
    )
    return over_queries(one, empty, (q, tq), block)


class Compared(NamedTuple):
    """A method, or a run of it, with both of its fields, averaged over heads and layers; `trf` is
    NaN where there is none.
    """

    label: str
    trf: float
    erf: float


def rank_correlation(rows: Sequence[Compared]) -> float:
    """Spearman's correlation of TRF and ERF over methods; those without a TRF are left out, those
    whose TRF is inf are tied.

    Raises:
      ValueError: fewer than two methods are left.

    Example:
      >>> rank_correlation(
      ...     [Compared('a', 5.0, 4.0), Compared('b', 90.0, 20.0), Compared('c', np.inf, 31.0)]
      ... )
      1.0
    """
    both = [row for row in rows if not np.isnan(row.trf)]
    if len(both) < 2:
        raise ValueError(
            'a rank correlation of TRF and ERF needs two methods that have a TRF, got '
            f'{len(both)} of {len(rows)}'
        )
    return spearman(np.array([row.trf for row in both]), np.array([row.erf for row in both]))


def by_method(rows: Sequence[Compared]) -> list[Compared]:
    """One row per label, with the means over its runs.

    Example:
      >>> by_method([Compared('a', 5.0, 4.0), Compared('a', 7.0, 5.0)])
      [Compared(label='a', trf=6.0, erf=4.5)]
    """
    mean = lambda label, name: float(
        np.mean([getattr(row, name) for row in rows if row.label == label])
    )
    return [
        Compared(label, mean(label, 'trf'), mean(label, 'erf'))
        for label in dict.fromkeys(row.label for row in rows)
    ]


def _axis(path: str | pathlib.Path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.8), layout='constrained')
    axis = figure.subplots()
    axis.spines[['top', 'right']].set_visible(False)
    return pathlib.Path(path), figure, axis


def decay_plot(
    kernels: Mapping[str, Float[np.ndarray, 'N D']],
    fields: Mapping[str, Float[np.ndarray, 'N']],
    path: str | pathlib.Path,
) -> pathlib.Path:
    """Writes `exp(r(d) - max r)` against d + 1 as a PNG, with a dot at each finite TRF.

    All heads of one encoding, or the means of several. Needs matplotlib.

    Example:
      >>> import tempfile, posenc_jax as pj
      >>> alibi = pj.make('alibi()', heads=2)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = folder + '/decay.png'
      ...     drawn = decay_plot(
      ...         {'alibi()': decay_kernel(alibi, 2, 99)},
      ...         {'alibi()': theoretical_field(alibi, 2)},
      ...         path,
      ...     )
      ...     drawn.stat().st_size > 1000
      True
    """
    path, figure, axis = _axis(path)
    several = len(kernels) > 1
    for number, (label, r) in enumerate(kernels.items()):
        lines, trf = _weights(r), np.asarray(fields[label])
        if several:
            lines, trf = lines.mean(0, keepdims=True), trf.mean(keepdims=True)
        at = np.unique(np.geomspace(1, r.shape[-1], 400).astype(int)) - 1
        for head, (line, field) in enumerate(zip(lines, trf)):
            name = label if several else f'head {head}'
            (drawn,) = axis.plot(
                at + 1, np.maximum(line[at], 1e-30), label=f'{name}: TRF {field:.0f}', linewidth=1.2
            )
            if np.isfinite(field) and field <= len(line):
                axis.plot(
                    field,
                    max(line[int(field) - 1], 1e-30),
                    'o',
                    color=drawn.get_color(),
                    markersize=4,
                )
    axis.set(
        xscale='log', yscale='log', ylim=(1e-8, 2.0), xlabel='distance d + 1', ylabel='exp(r(d))'
    )
    axis.set_title('decay of attention' if several else next(iter(kernels)), fontsize=10)
    axis.legend(frameon=False, fontsize=7, ncols=1 + (len(axis.lines) > 12))
    disk.save_figure(figure, path, dpi=160)
    return path


def profile_plot(found: ReceptiveField, path: str | pathlib.Path) -> pathlib.Path:
    """Writes the mean attention at each distance as a PNG, a line for each layer, a dot at its ERF;
    needs matplotlib.

    Example:
      >>> import tempfile
      >>> ones = np.ones((2, 2))
      >>> found = ReceptiveField(3 * ones, ones, np.ones((2, 2, 5)), np.ones(5, int), 0.05)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     profile_plot(found, folder + '/profile.png').stat().st_size > 1000
      True
    """
    path, figure, axis = _axis(path)
    at = 1 + np.arange(found.profile.shape[-1])
    for layer, (line, erf) in enumerate(zip(found.profile.mean(1), found.erf.mean(1))):
        (drawn,) = axis.plot(
            at, np.maximum(line, 1e-12), label=f'layer {layer}: ERF {erf:.1f}', linewidth=1.2
        )
        axis.plot(
            erf, max(np.interp(erf, at, line), 1e-12), 'o', color=drawn.get_color(), markersize=4
        )
    axis.set(xscale='log', yscale='log', xlabel='distance d + 1', ylabel='mean attention')
    axis.legend(frameon=False, fontsize=8)
    disk.save_figure(figure, path, dpi=160)
    return path


def rank_plot(rows: Sequence[Compared], path: str | pathlib.Path) -> pathlib.Path:
    """Writes ERF against TRF as a PNG, a point for each method; those without a finite TRF at the
    right. Needs matplotlib.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     rank_plot(
      ...         [Compared('a', 5.0, 4.0), Compared('b', np.inf, 20.0)], folder + '/ranks.png'
      ...     ).stat().st_size > 1000
      True
    """
    path, figure, axis = _axis(path)
    rows = [row for row in rows if not np.isnan(row.trf)]
    finite = [row.trf for row in rows if np.isfinite(row.trf)]
    end = 4 * max(finite, default=1.0)
    for row in rows:
        at = row.trf if np.isfinite(row.trf) else end
        axis.plot(at, row.erf, 'o' if np.isfinite(row.trf) else '>', alpha=0.8, label=row.label)
    axis.set(xscale='log', xlabel=f'TRF (inf at {end:.0f})', ylabel='ERF')
    figure.legend(loc='outside lower center', ncols=2, frameon=False, fontsize=7)
    disk.save_figure(figure, path, dpi=160)
    return path
