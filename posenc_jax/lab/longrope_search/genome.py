"""Genomes of the LongRoPE search: their space, the known extensions from which the search starts,
mutation and crossover.

A genome holds the factors lambda_t, which divide the present rotary frequencies, and n_hat
(`start`), the number of first positions that keep the original frequencies. The factors ascend with
t and lie in [1, 1 + s].

Differs from the paper: the factors reach 1 + s as in the released code; the text of the paper says
1.25 s. The paper does not say how n_hat changes; here it is one more gene. The first population
also holds the frequencies of YaRN; the paper's ramp of factors is a variant of these.

Reference: Ding, Zhang, Zhang, Xu, Shang, Xu et al., arXiv 2402.13753.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np

from posenc_jax.methods.yarn import yarn_ramp
from posenc_jax.protocol.checks import check_factor
from posenc_jax.protocol.errors import check_choice

STARTS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 64, 128, 256)
VARIANTS = ('free', 'dim_piece_mono')
Variant = Literal['free', 'dim_piece_mono']
_CROSSOVER_SWEEPS = 20
_MUTATION_SWEEPS = 1000  # if so many sweeps find no new genome, the space counts as exhausted


@dataclasses.dataclass(frozen=True)
class Genome:
    """One candidate. Genomes with the same factors and the same start are equal.

    Attributes:
      factors: lambda_t, ascending.
      start: n_hat, how many first positions keep the original frequencies.
      span: (alpha, beta) of the variant `dim_piece_mono`: the factors are 1 up to plane alpha (-1
        for none) and s after plane beta. None in the variant `free`.
    """

    factors: tuple[float, ...]
    start: int = 0
    span: tuple[int, int] | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Space:
    """The genomes that a search may visit, and the probability that a gene changes.

    Args:
      planes: rotary width / 2, the number of factors.
      factor: s, at least 1.
      starts: allowed values of n_hat; the search starts with genomes that have the first of them.
      probability: probability that a sweep visits a gene, in (0, 1].
      variant: 'free' searches all factors. In 'dim_piece_mono' the first factors are 1, the last
        are s, and the search covers the factors between them and the two borders.

    Raises:
      ValueError: a number out of range, an unknown variant, or 'dim_piece_mono' where s is 1 or
        there is one plane.
    """

    planes: int
    factor: float
    starts: tuple[int, ...] = STARTS
    probability: float = 0.3
    variant: Variant = 'free'

    def __post_init__(self):
        check_factor('longrope search', self.factor)
        check_choice('variant', self.variant, VARIANTS)
        if self.planes < 1:
            raise ValueError(
                f'longrope search: there must be at least 1 rotary plane, got {self.planes}'
            )
        if not self.starts or min(self.starts) < 0:
            raise ValueError(
                'longrope search: starts must be one or more counts of first positions, each at '
                f'least 0, got {self.starts}'
            )
        if not 0 < self.probability <= 1:
            raise ValueError(
                f'longrope search: probability must lie in (0, 1], got {self.probability}'
            )
        if self.pieces and (self.factor == 1 or self.planes < 2):
            raise ValueError(
                'longrope search: dim_piece_mono chooses between 1 and s on at least 2 planes, '
                f'got s={self.factor} and '
                f'{self.planes} planes; use the variant free'
            )

    @property
    def pieces(self) -> bool:
        return self.variant == 'dim_piece_mono'

    @property
    def top(self) -> float:
        """The largest factor: 1 + s, or s where the last factors are s."""
        return float(self.factor if self.pieces else 1 + self.factor)

    @functools.cached_property
    def grid(self) -> np.ndarray:
        """The factors that a mutation may choose: 1, 1.01, ... up to `top`."""
        values = np.round(1.0 + np.arange(round((self.top - 1) * 100) + 1) / 100, 2)
        return values[values <= self.top]

    def __contains__(self, genome: Genome) -> bool:
        factors = np.asarray(genome.factors)
        fits = len(factors) == self.planes and bool(
            np.all(np.diff(factors, prepend=1.0, append=self.top) >= 0)
        )
        fits = fits and genome.start in self.starts and (genome.span is not None) == self.pieces
        if fits and self.pieces:
            low, high = genome.span
            fits = -1 <= low < high < self.planes and genome.factors == self._fixed(
                genome.factors, low, high
            )
        return fits

    def genome(self, factors) -> Genome:
        """A genome with these factors, made ascending and clipped to [1, `top`]. The borders of
        `dim_piece_mono` are read off the factors.
        """
        # Factors that are quotients of frequencies miss 1 and s by rounding errors.
        factors = np.asarray(factors, np.float64).round(10)
        factors = np.where(np.isclose(factors, self.factor, rtol=1e-9), self.factor, factors)
        factors = np.clip(np.maximum.accumulate(factors), 1.0, self.top)
        span = None
        if self.pieces:
            low = min(int(np.sum(factors == 1.0)), self.planes - 1) - 1
            span = low, max(self.planes - int(np.sum(factors == self.factor)) - 1, low + 1)
        return Genome(tuple(factors.tolist()), self.starts[0], span)

    def _fixed(self, factors: Sequence[float], low: int, high: int) -> tuple[float, ...]:
        searched = tuple(factors[low + 1 : high + 1])
        return (1.0,) * (low + 1) + searched + (float(self.factor),) * (self.planes - 1 - high)

    def swept(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """The genome behind one sweep of `mutate`."""
        factors, start, span = list(genome.factors), genome.start, genome.span
        visits = lambda: rng.random() < self.probability
        if visits():
            start = int(rng.choice(self.starts))
        first, end = 0, self.planes
        if self.pieces:
            low, high = span
            low = int(rng.integers(-1, high)) if visits() else low
            high = int(rng.integers(low + 1, self.planes)) if visits() else high
            factors, span, first, end = (
                list(self._fixed(factors, low, high)),
                (low, high),
                low + 1,
                high + 1,
            )
        below = factors[first - 1] if first else 1.0
        above = factors[end] if end < self.planes else self.top
        factors[first:end] = self.redrawn(factors[first:end], below, above, rng)
        return Genome(tuple(factors), start, span)

    def redrawn(
        self, factors: Sequence[float], below: float, above: float, rng: np.random.Generator
    ) -> list[float]:
        """Factors of neighbouring planes, of which every one that is visited has a random value of
        the grid between its two neighbours. Those of the ends are `below` and `above`.
        """
        found = [below, *factors, above]
        for t in range(1, len(found) - 1):
            if rng.random() < self.probability:
                low = np.searchsorted(self.grid, found[t - 1], 'left')
                high = np.searchsorted(self.grid, found[t + 1], 'right')
                if low < high:
                    found[t] = float(self.grid[rng.integers(low, high)])
        return found[1:-1]

    def crossed(self, child: Genome, other: Genome, pick: Callable) -> Genome | None:
        """The genome behind one sweep of `crossover`, or None if its genes do not fit together.
        `pick(own, foreign)` chooses genes of two tuples.
        """
        (start,) = pick((child.start,), (other.start,))
        factors, span = pick(child.factors, other.factors), None
        if self.pieces:
            span = pick(child.span, other.span)
            if span[0] >= span[1]:
                return None
            factors = self._fixed(factors, *span)
        return Genome(factors, start, span)


def ramp_factors(
    rotary_dim: int, base: float, factor: float, train_len: int, now: Sequence[float] = ()
) -> np.ndarray:
    """`s ramp_t + 1 - ramp_t` with the ramp of YaRN: the first genome of the search.

    YaRN itself interpolates frequencies: `lambda_t = 1 / (1 - ramp_t + ramp_t / s)`. The two agree
    where the ramp is 0 or 1.

    Args:
      rotary_dim, base, train_len: D, b, and the length that the model is trained for now.
      factor: s, the target length over `train_len`.
      now: factors that divide the frequencies already; () for none.

    Example:
      >>> ramp_factors(128, 10000.0, 32.0, 4096)[[20, 21, 33, 45, 46]].round(4).tolist()
      [1.0, 2.1923, 16.5, 30.8077, 32.0]
    """
    check_factor('longrope search', factor)
    ramp = _ramp(rotary_dim, base, train_len, now)
    return factor * ramp + (1.0 - ramp)


def _ramp(rotary_dim, base, train_len, now):
    """YaRN's ramp of the present frequencies. Each of them is written as `base^(-2u/D)`, where the
    plane u need not be an integer.
    """
    planes = np.arange(rotary_dim // 2, dtype=np.float64)
    if len(now):
        planes += rotary_dim * np.log(now) / (2 * np.log(base))
    return yarn_ramp(planes, rotary_dim, base, train_len)


def initial_genomes(
    space: Space, rotary_dim: int, base: float, train_len: int, now: Sequence[float] = ()
) -> list[Genome]:
    """Known extensions as genomes, the best guess first: YaRN's ramp of factors, YaRN, NTK-aware,
    position interpolation. Equal genomes appear once. Arguments as for `ramp_factors`.
    """
    s, planes, ramp = space.factor, np.arange(space.planes), _ramp(rotary_dim, base, train_len, now)
    ntk = s ** (planes / max(space.planes - 1, 1))
    known = (
        ramp_factors(rotary_dim, base, s, train_len, now),
        1.0 / (1.0 - ramp + ramp / s),
        ntk,
        np.full(space.planes, s),
    )
    return list(dict.fromkeys(space.genome(factors) for factors in known))


def short_genomes(
    space: Space, long: Sequence[float], short: Sequence[float] | None = None
) -> list[Genome]:
    """The genomes from which a search of the list `short` starts: factors of 1, the list `long`,
    the present list `short` if there is one, and three steps between 1 and `long`.

    Factors that descend in places, or exceed 1 + s, are changed as in `Space.genome`.

    Example:
      >>> [genome.factors for genome in short_genomes(Space(2, 4.0), (1.0, 5.0))]
      [(1.0, 1.0), (1.0, 5.0), (1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]
    """
    between = [1.0 + share * (np.asarray(long) - 1.0) for share in (0.25, 0.5, 0.75)]
    known = (np.ones(space.planes), long, *(() if short is None else (short,)), *between)
    return list(dict.fromkeys(space.genome(factors) for factors in known))


def mutate(
    genome: Genome, space: Space, rng: np.random.Generator, seen: Collection[Genome]
) -> Genome | None:
    """A mutant that is not in `seen`, or None if 1000 sweeps find none.

    A sweep visits each gene with the probability of the space. A visited factor takes a random
    value of the grid between its two neighbours.

    Example:
      >>> space = Space(planes=4, factor=4.0)
      >>> parent = Genome((1.0, 2.0, 3.0, 4.0))
      >>> child = mutate(parent, space, np.random.default_rng(0), {parent})
      >>> child in space, child == parent
      (True, False)
    """
    for _ in range(_MUTATION_SWEEPS):
        genome = space.swept(genome, rng)
        if genome not in seen:
            return genome
    return None


def crossover(
    better: Genome, other: Genome, space: Space, rng: np.random.Generator, seen: Collection[Genome]
) -> Genome | None:
    """The better parent with some genes of the other parent: each gene is visited with the
    probability of the space, and a visited gene is copied with probability 1/2.

    The sweeps end when the child is in `space` and not in `seen`. After 20 sweeps without success
    the child is a mutant of the better parent.
    """
    child = better
    for _ in range(_CROSSOVER_SWEEPS):
        copies = lambda: rng.random() < space.probability and rng.random() < 0.5
        pick = lambda own, foreign: tuple(b if copies() else a for a, b in zip(own, foreign))
        if (found := space.crossed(child, other, pick)) is None:
            continue
        child = found
        if child in space and child not in seen:
            return child
    return mutate(better, space, rng, seen)
