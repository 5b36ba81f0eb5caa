"""The target of a LongRoPE search: which list of factors of a model is searched, and the rule and
the spec string that belong to a genome.
"""

import dataclasses
from typing import Literal

import numpy as np

from posenc_jax.lab.longrope_search.genome import (
    STARTS,
    Genome,
    Space,
    initial_genomes,
    short_genomes,
)
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.longrope import LongRoPE
from posenc_jax.methods.longrope2 import LongRoPE2
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.calls import written
from posenc_jax.protocol.errors import SpecError


def spec_of(rule: LongRoPE | LongRoPE2) -> str:
    """The spec string of the context extension that gives a model the frequency rule `rule`.

    The string states the original length, because a run that was tuned at a longer length would
    otherwise supply the longer one.

    Example:
      >>> spec_of(LongRoPE(long=(1.0, 2.5), factor=4.0, start=4, train_len=64))
      'longrope(long=(1.0, 2.5), factor=4.0, start=4, train_len=64)'
    """
    return written(rule)


@dataclasses.dataclass(frozen=True)
class Target:
    """The list of factors that is searched, and the rule to which it belongs.

    Attributes:
      now: the rule of the run; factors of 1 if the run has plain `rope`.
      name: 'long', where the factors of a genome multiply those of `now.long`, or 'short', where
        they replace `now.short`.
      factor: s of the rule that is found, its longest length over the original length.
    """

    now: LongRoPE
    name: Literal['long', 'short']
    factor: float

    @property
    def first(self) -> str:
        """The name of the first genome, from which the search starts."""
        return 'yarn_ramp' if self.name == 'long' else 'ones'

    def rule(self, genome: Genome) -> LongRoPE | LongRoPE2:
        """The rule with the factors of a genome.

        Example:
          >>> now = LongRoPE(long=(1.0, 3.0), factor=4.0, train_len=64)
          >>> Target(now, 'long', 16.0).rule(Genome((1.5, 2.0), 8)).long
          (1.5, 6.0)
        """
        if self.name == 'short':
            return dataclasses.replace(self.now, short=genome.factors)
        long = np.multiply(self.now.long, genome.factors).round(10)  # genomes have 10 digits too
        return dataclasses.replace(
            self.now, long=tuple(long.tolist()), start=genome.start, factor=self.factor
        )

    def space(self, length: int, probability: float, variant: str) -> Space:
        """The space of genomes. Factors of `short` may be as large as those of `long`, and n_hat,
        which both lists share, keeps its value while `short` is searched.
        """
        planes = len(self.now.long)
        if self.name == 'short':
            return Space(planes, self.factor, (self.now.start,), probability, variant)
        starts = tuple(
            start for start in dict.fromkeys((self.now.start, *STARTS)) if start < length
        )
        return Space(planes, self.factor / self.now.factor, starts, probability, variant)

    def seeds(self, space: Space, rotary_dim: int, base: float) -> list[Genome]:
        """The genomes from which the search starts."""
        if self.name == 'short':
            return short_genomes(space, self.now.long, self.now.short)
        return initial_genomes(space, rotary_dim, base, _reach(self.now), self.now.long)


def _reach(rule: LongRoPE) -> int:
    """The longest length that a rule is made for."""
    return round(rule.factor * rule.train_len)


def target_of(run: str, part: Rotary, train_len: int, length: int) -> Target:
    """The target of a search at `length`: the list `long` beyond the lengths that the run's rule is
    made for, the list `short` up to the original length of a run that has factors.

    Args:
      run: name of the run, for messages.
      part, train_len: rotary encoding of the run, and the length at which it was trained.
      length: T, in tokens.

    Raises:
      ValueError: there is nothing to search at this length, or a search cannot continue from the
        rule of the run.
    """
    now = part.freqs
    if now is not None and not isinstance(now, LongRoPE):
        raise SpecError(
            f'{run} has the frequencies {now}; a search starts from rope or from longrope'
        )
    if now is None:
        if length < train_len:
            raise ValueError(
                f'length {length} is shorter than the trained length; it must be at least '
                f'{train_len}'
            )
        plain = LongRoPE(long=(1.0,) * (part.rotary_dim // 2), factor=1.0, train_len=train_len)
        return Target(plain, 'long', length / train_len)
    for name, usual in (('dynamic', False), ('mode', 'length')):
        if (value := getattr(now, name)) != usual:
            raise SpecError(
                f'{run} has longrope with {name}={value!r}; a search continues only from '
                f'{name}={usual!r}'
            )
    if length > _reach(now):
        return Target(now, 'long', length / now.train_len)
    if length > now.train_len:
        raise ValueError(
            f'{run} already has factors of LongRoPE up to length {_reach(now)}; give a longer '
            'length to search factors that multiply them, '
            f'or at most {now.train_len} to search the list short; got {length}'
        )
    if length <= now.start:
        raise ValueError(
            f'the first {now.start} positions of {run} keep the original frequencies, so length '
            f'{length} has no factors to search; it must be above {now.start}'
        )
    return Target(now, 'short', now.factor)


def rotary_part(model: Transformer) -> Rotary:
    """The rotary encoding whose frequencies `longrope` replaces. It must be the same in all layers
    that have one.

    Args:
      model: a model; shapes without weights are enough (`abstract_model`).

    Raises:
      SpecError: no layer has a rotary encoding, or layers differ in its width, its base, or its
        present factors.
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
            'longrope needs the same rotary encoding in every layer that has one; this model has '
            f'{kinds}'
        )
    return next(iter(found.values()))


def factors_of(part):
    """The spec string of the LongRoPE rule of a rotary encoding, or None if it has another rule."""
    return spec_of(part.freqs) if isinstance(part.freqs, LongRoPE) else None
