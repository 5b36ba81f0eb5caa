"""The evolutionary search of LongRoPE: populations of genomes, from one iteration to the next.

This module does not know the model. An objective gives a score to each genome
(`posenc_jax.lab.longrope_search.genome`); lower scores are better.

Reference: Ding, Zhang, Zhang, Xu, Shang, Xu et al., arXiv 2402.13753.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from posenc_jax.lab.longrope_search.genome import Genome, Space, crossover, mutate
from posenc_jax.protocol.errors import check_number

_MOST = 100_000  # limit of each size: all genomes are kept, and each costs an evaluation


def initial_population(
    seeds: Sequence[Genome], space: Space, rng: np.random.Generator, population: int
) -> list[Genome]:
    """The seeds and then mutants of randomly chosen seeds, all different. There are fewer than
    `population` genomes if the space has no more.
    """
    found = dict.fromkeys(seeds[:population])
    while len(found) < population:
        mutant = mutate(seeds[rng.integers(len(seeds))], space, rng, found)
        if mutant is None:
            break
        found[mutant] = None
    return list(found)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the search.

    Args:
      population: genomes of the first population.
      iterations: how often parents are selected and have children.
      parents: how many of the best genomes become parents and stay in the population.
      mutations, crossovers: children of each kind in an iteration.

    Raises:
      ValueError: sizes that do not fit together.
    """

    population: int = 64
    iterations: int = 40
    parents: int = 32
    mutations: int = 16
    crossovers: int = 16

    def __post_init__(self):
        for name, least in (
            ('population', 1),
            ('iterations', 0),
            ('parents', 1),
            ('mutations', 0),
            ('crossovers', 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f'longrope search: {name} must be at least {least}, got {getattr(self, name)}'
                )
            check_number(f'longrope search: {name}', getattr(self, name), most=_MOST)
        if self.population < self.parents:
            raise ValueError(
                f'longrope search: {self.parents} parents cannot be selected from a population '
                f'of {self.population}; '
                f'use at most {self.population} parents or a population of at least {self.parents}'
            )
        if self.crossovers and self.parents < 2:
            raise ValueError(
                'longrope search: a crossover has two parents; use at least 2 parents or 0 '
                f'crossovers, got {self.parents} and {self.crossovers}'
            )
        if self.mutations + self.crossovers == 0:
            raise ValueError(
                'longrope search: mutations and crossovers are both 0, so no iteration would find '
                'a new genome; use at least 1 of either'
            )

    @property
    def evaluations(self) -> int:
        """How many genomes are scored at most."""
        return self.population + self.iterations * (self.mutations + self.crossovers)


def children(
    parents: Sequence[Genome],
    space: Space,
    rng: np.random.Generator,
    seen: Collection[Genome],
    sizes: Sizes,
) -> list[Genome]:
    """The children of one iteration: mutants of random parents, then crossovers of two distinct
    parents. No child is in `seen`, and all are different. `parents` has the best genome first.
    """
    known, born = set(seen), []
    for number in range(sizes.mutations + sizes.crossovers):
        if number < sizes.mutations or len(parents) < 2:
            child = mutate(parents[rng.integers(len(parents))], space, rng, known)
        else:
            better, other = sorted(rng.choice(len(parents), 2, replace=False))
            child = crossover(parents[better], parents[other], space, rng, known)
        if child is not None:
            known.add(child)
            born.append(child)
    return born


@dataclasses.dataclass
class State:
    """The state of a search; `to_json` holds everything that the next iterations depend on.

    Attributes:
      rng: draws the children.
      history: every genome that was scored, in order, with its score.
      population: the present population, the best genome first.
      trace: the best score of the first population and after each iteration.
    """

    rng: np.random.Generator
    history: dict[Genome, float]
    population: list[Genome]
    trace: list[float]

    @property
    def iteration(self) -> int:
        return len(self.trace) - 1

    @property
    def best(self) -> Genome:
        return self.population[0]

    def to_json(self) -> dict[str, Any]:
        number = {genome: i for i, genome in enumerate(self.history)}
        number_or_none = lambda score: score if np.isfinite(score) else None
        return {
            'rng': self.rng.bit_generator.state,
            'history': [
                [number_or_none(score), g.start, g.factors, g.span]
                for g, score in self.history.items()
            ],
            'population': [number[genome] for genome in self.population],
            'trace': self.trace,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> 'State':
        rng = np.random.default_rng()
        rng.bit_generator.state = fields['rng']
        genome = lambda start, factors, span: Genome(
            tuple(factors), start, None if span is None else tuple(span)
        )
        history = {
            genome(*rest): np.inf if score is None else score for score, *rest in fields['history']
        }
        genomes = list(history)
        return cls(rng, history, [genomes[i] for i in fields['population']], list(fields['trace']))


Objective = Callable[[Genome], float]


def begin(
    seeds: Sequence[Genome], space: Space, sizes: Sizes, objective: Objective, seed: int
) -> State:
    """The state of a new search: the first population with its scores.

    Raises:
      ValueError: the first seed has no finite score.
    """
    rng = np.random.default_rng(seed)
    genomes = initial_population(seeds, space, rng, sizes.population)
    history = {}
    for genome in genomes:
        history[genome] = _score(objective, genome)
        if genome == seeds[0] and not np.isfinite(history[genome]):
            raise ValueError(
                f'longrope search: the first genome scores {history[genome]}; expected a finite '
                'perplexity'
            )
    population = sorted(genomes, key=history.get)
    return State(rng, history, population, [history[population[0]]])


def advance(state: State, space: Space, sizes: Sizes, objective: Objective) -> State:
    """The state after one more iteration: the best genomes are the parents, and parents and
    children are the next population. `state` itself does not change.

    Example:
      >>> space, sizes, objective = (
      ...     Space(planes=4, factor=4.0),
      ...     Sizes(8, 2, 4, 4, 4),
      ...     lambda genome: sum(genome.factors),
      ... )
      >>> state = begin([Genome((4.0,) * 4)], space, sizes, objective, seed=0)
      >>> state = advance(state, space, sizes, objective)
      >>> len(state.population), state.trace[1] <= state.trace[0] <= 16.0
      (12, True)
    """
    rng = np.random.default_rng()
    rng.bit_generator.state = state.rng.bit_generator.state
    parents = state.population[: sizes.parents]
    born = children(parents, space, rng, state.history, sizes)
    history = {**state.history, **{genome: _score(objective, genome) for genome in born}}
    population = sorted([*parents, *born], key=history.get)
    return State(rng, history, population, [*state.trace, history[population[0]]])


def _score(objective, genome):
    score = float(objective(genome))
    return score if score == score else np.inf  # a NaN cannot be sorted
