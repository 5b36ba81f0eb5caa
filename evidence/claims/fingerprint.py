"""What a measure computes, as a digest, so that a record is stale once its measure has changed."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from evidence.claims.claim import Measurement, MissingResultError, Results
from posenc_jax.lab.runs import entries


class Probe(Results):
    """Numbers that depend on nothing but their names, to tell measures apart."""

    def __init__(self, seeds: Sequence[int]):
        self.rows, self.read, self.seeds = [], [], seeds

    def values(self, name: str, field: str = 'value', **where: object) -> dict[int, float]:
        asked = name, field, sorted((key, str(value)) for key, value in where.items())
        made = {seed: entries.digest([*asked, seed]) for seed in self.seeds}
        return {seed: 1 + int(digest[:8], 16) / 2**32 for seed, digest in made.items()}


@functools.cache
def fingerprint(how: Measurement) -> str:
    """A digest of the margin and of the effects that the measure computes from a probe. A measure
    that goes through the rows of the results by itself is known by its code instead.
    """
    try:
        effects = dict(how.measure(Probe(how.seeds)))
    except (LookupError, ArithmeticError, ValueError, TypeError, MissingResultError):
        effects = {}
    found = {str(seed): f'{effect:.6g}' for seed, effect in effects.items()}
    return entries.digest([how.margin, found or _described(how.measure)])[:12]


def _described(value: Any) -> Any:
    """A value as JSON; of a function its source, or the names and numbers in a lambda, and the
    values that it keeps.
    """
    if inspect.isfunction(value):
        code, kept = value.__code__, inspect.getclosurevars(value).nonlocals
        numbers = sorted(str(c) for c in code.co_consts if isinstance(c, int | float))
        is_lambda = value.__name__ == '<lambda>'
        own = [*code.co_names, *numbers] if is_lambda else inspect.getsource(value).split()
        return [own, {name: _described(kept[name]) for name in kept}]
    if isinstance(value, Mapping):
        return {str(key): _described(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_described(one) for one in value]
    return str(value)
