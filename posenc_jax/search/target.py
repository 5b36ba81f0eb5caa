"""What a search of LongRoPE factors is for: which list of which rule of a model is searched, and
the spec string of the rule that a genome stands for.
"""

import dataclasses
from typing import Literal

import numpy as np

from posenc_jax.core.registry import SpecError
from posenc_jax.model.transformer import Transformer
from posenc_jax.rotation.frequencies.longrope import LongRoPE
from posenc_jax.rotation.rope import Rotary
from posenc_jax.search.genome import STARTS, Genome, Space, initial_genomes, short_genomes


def spec_of(rule: LongRoPE) -> str:
    """The context extension that puts a rule in the place of the one that a model has.

    It says the original length: a run that was tuned at a longer one would give that.

    Example:
      >>> spec_of(LongRoPE(long=(1.0, 2.5), factor=4.0, start=4, train_len=64))
      'longrope(long=(1.0, 2.5), factor=4.0, start=4, train_len=64)'
    """
    values = [(field, getattr(rule, field.name)) for field in dataclasses.fields(rule)]
    given = [f'{field.name}={value!r}' for field, value in values if value != field.default]
    return f'longrope({", ".join(given)})'


@dataclasses.dataclass(frozen=True)
class Target:
    """What is searched: one list of a rule.

    Attributes:
      now: the rule of the run; factors of 1 where that is not LongRoPE.
      name: 'long', whose factors those of a genome multiply, or 'short', whose factors they are.
      factor: of the rule that is found, longest length / original length.
    """

    now: LongRoPE
    name: Literal['long', 'short']
    factor: float

    def rule(self, genome: Genome) -> LongRoPE:
        """The rule that a genome stands for.

        Example:
          >>> now = LongRoPE(long=(1.0, 3.0), factor=4.0, train_len=64)
          >>> Target(now, 'long', 16.0).rule(Genome((1.5, 2.0), 8)).long
          (1.5, 6.0)
        """
        if self.name == 'short':
            return dataclasses.replace(self.now, short=genome.factors)
        long = np.multiply(self.now.long, genome.factors).round(10)  # genomes are as exact
        return dataclasses.replace(
            self.now, long=tuple(long.tolist()), start=genome.start, factor=self.factor
        )

    def space(self, length: int, probability: float, variant: str) -> Space:
        """Of genomes: the list short reaches as far as the list long, and the one n_hat of both
        stays as it is.
        """
        planes = len(self.now.long)
        if self.name == 'short':
            return Space(planes, self.factor, (self.now.start,), probability, variant)
        starts = tuple(
            start for start in dict.fromkeys((self.now.start, *STARTS)) if start < length
        )
        return Space(planes, self.factor / self.now.factor, starts, probability, variant)

    def seeds(self, space: Space, rotary_dim: int, base: float) -> list[Genome]:
        """The first genomes."""
        if self.name == 'short':
            return short_genomes(space, self.now.long, self.now.short)
        return initial_genomes(space, rotary_dim, base, _reach(self.now), self.now.long)


def _reach(rule: LongRoPE) -> int:
    """The length that a rule is for."""
    return round(rule.factor * rule.train_len)


def target_of(run: str, part: Rotary, train_len: int, length: int) -> Target:
    """What a search at this length is for.

    Args:
      run: what messages call it.
      part, train_len: its rotary encoding, and the length it was trained at.
      length: T.

    Raises:
      ValueError: nothing is searched at this length, or no search goes on from a rule of this kind.
    """
    now = part.freqs
    if now is not None and not isinstance(now, LongRoPE):
        raise SpecError(
            f'{run} has the frequencies {now}, whose factors no search knows; it starts from '
            'rope or from longrope'
        )
    if now is None:
        if length < train_len:
            raise ValueError(
                f'length {length} is shorter than the trained one; it must be at least {train_len}'
            )
        plain = LongRoPE(long=(1.0,) * (part.rotary_dim // 2), factor=1.0, train_len=train_len)
        return Target(plain, 'long', length / train_len)
    for name, usual in (('dynamic', False), ('mode', 'length')):
        if (value := getattr(now, name)) != usual:
            raise SpecError(
                f'{run} has longrope with {name}={value!r}; a search goes on from '
                f'{name}={usual!r} only'
            )
    if length > _reach(now):
        return Target(now, 'long', length / now.train_len)
    if length > now.train_len:
        raise ValueError(
            f'{run} has factors of LongRoPE up to length {_reach(now)} already; ask for more to '
            'search what multiplies them, '
            f'or for at most {now.train_len} to search the list short; got {length}'
        )
    if length <= now.start:
        raise ValueError(
            f'the first {now.start} positions of {run} have no factors; at length {length} none '
            'is searched'
        )
    return Target(now, 'short', now.factor)


def rotary_part(model: Transformer) -> Rotary:
    """The rotary encoding that `longrope` takes over, one kind in all layers that have any.

    Args:
      model: possibly of shapes only.

    Raises:
      SpecError: there is none, or layers differ in its width, its base, or factors that it has
        already.
    """
    found = {
        (part.rotary_dim, part.base, factors_of(part)): part
        for part in model.shared
        if isinstance(part, Rotary)
    }
    if not found:
        raise SpecError(
            f'longrope extends a rotary encoding; there is none in {" / ".join(model.cfg.specs)}'
        )
    if len(found) > 1:
        kinds = ', '.join(
            f'width {width} with base {base}' + (f' and {rule}' if rule else '')
            for width, base, rule in found
        )
        raise SpecError(
            f'one list of factors serves one kind of rotary encoding; this model has {kinds}'
        )
    return next(iter(found.values()))


def factors_of(part):
    return spec_of(part.freqs) if isinstance(part.freqs, LongRoPE) else None
