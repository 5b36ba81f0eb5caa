"""The search of LongRoPE2: genomes that have a critical plane, and where it starts from.

A genome has the critical plane r and factors that ascend from s to 2s from r on. Before r its
factors are those of a larger base, `lambda_t = lambda_r^(t/r)`; they follow from the others.

Differs from the paper: it does not say how two genomes are crossed. Here a child keeps the critical
plane of the better parent. A mutation chooses from a grid of 0.01, as the search of LongRoPE does.

Reference: Shang, Zhang, Wang, Zhang, Lopez, Yang, Chen, Yang, arXiv 2502.20082.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from posenc_jax.lab.longrope_search.genome import Genome, Space
from posenc_jax.lab.longrope_search.target import Target
from posenc_jax.methods.longrope2 import LongRoPE2, longrope2_critical_plane, longrope2_factors
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.errors import SpecError


@dataclasses.dataclass(frozen=True)
class CriticalSpace(Space):
    """The genomes with critical planes `low` to `high`. The span of a genome is (r, r).

    Args:
      low, high: the range of r, within 1 .. planes - 1.

    Raises:
      ValueError: another range; as for `Space`.
    """

    starts: tuple[int, ...] = (0,)
    low: int = 1
    high: int = 1

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.low <= self.high < self.planes:
            raise ValueError(
                f'longrope2 search: critical planes lie in 1 .. {self.planes - 1} of {self.planes} '
                f'planes, got {self.low} .. {self.high}'
            )

    @property
    def top(self) -> float:
        return 2.0 * self.factor

    @functools.cached_property
    def grid(self) -> np.ndarray:
        """The factors that a mutation may choose: s, s + 0.01, ... up to 2s."""
        return self.factor + np.arange(math.floor(self.factor * 100) + 1) / 100

    def of(self, critical: int, tail: Sequence[float]) -> Genome:
        """The genome with this critical plane and these factors from it on."""
        factors = longrope2_factors(critical, tuple(map(float, tail)))
        return Genome(tuple(factors.tolist()), 0, (critical, critical))

    def __contains__(self, genome: Genome) -> bool:
        if genome.span is None or not self.low <= (r := genome.span[0]) <= self.high:
            return False
        tail = genome.factors[r:]
        ascends = bool(np.all(np.diff(tail, prepend=self.factor, append=self.top) >= 0))
        return ascends and genome == self.of(r, tail)

    def swept(self, genome, rng):
        r = _critical(genome)
        return self.of(r, self.redrawn(genome.factors[r:], float(self.factor), self.top, rng))

    def crossed(self, child, other, pick):
        r = _critical(child)
        return self.of(r, pick(child.factors, other.factors)[r:])


def _critical(genome: Genome) -> int:
    if genome.span is None:
        raise ValueError('longrope2 search: the genome has no critical plane')
    return genome.span[0]


@dataclasses.dataclass(frozen=True)
class CriticalTarget(Target):
    """The factors of a run with plain `rope`, and the rule `longrope2` to which they belong.

    Attributes:
      rotary_dim, base: D, b of the rotary encoding.
      seed: draws the first genomes.
    """

    rotary_dim: int
    base: float
    seed: int = 0

    @property
    def first(self):
        return 'critical'

    def rule(self, genome: Genome) -> LongRoPE2:
        r, now = _critical(genome), self.now
        own: dict[str, Any] = dict(magnitude=now.magnitude, train_len=now.train_len)
        return LongRoPE2(r, genome.factors[r:], self.factor, **own)

    def space(self, length, probability, variant='critical'):
        """The critical planes from the first that completes less than 10 periods within the trained
        length to the first that completes less than one, or to the last plane.
        """
        planes = self.rotary_dim // 2
        low, high = (
            longrope2_critical_plane(self.rotary_dim, self.base, self.now.train_len, periods)
            for periods in (10.0, 1.0)
        )
        if low >= planes:
            raise ValueError(
                f'longrope2 search: every plane completes 10 periods within {self.now.train_len} '
                'tokens, so none is critical; search with the variant free'
            )
        return CriticalSpace(
            planes, self.factor, probability=probability, low=low, high=min(high, planes - 1)
        )

    def seeds(self, space: Any, rotary_dim, base):
        """For every critical plane a genome whose factors from it on are one whole number, drawn
        from s .. 2s.
        """
        rng = np.random.default_rng(self.seed)
        low, high = math.ceil(self.factor), math.floor(2 * self.factor)
        return [
            space.of(r, [rng.integers(low, high, endpoint=True)] * (space.planes - r))
            for r in range(space.low, space.high + 1)
        ]


def critical_target(run: str, target: Target, part: Rotary, seed: int) -> CriticalTarget:
    """The target of a search of critical planes, at the length of another target.

    Raises:
      SpecError: the run has factors already.
      ValueError: a length that is not above the trained one.
    """
    if part.freqs is not None:
        raise SpecError(
            f'{run} has the frequencies {part.freqs}; a search of critical planes starts from rope'
        )
    if target.factor <= 1:
        raise ValueError(f'{run}: critical planes are searched above the trained length alone')
    return CriticalTarget(target.now, target.name, target.factor, part.rotary_dim, part.base, seed)
