"""Genomes of the search of longrope factors: their operators, populations, and rules."""

import json
import math

import numpy as np
import pytest

from posenc_jax.lab.longrope_search import target as targets
from posenc_jax.lab.longrope_search.evolution import (
    Sizes,
    State,
    advance,
    begin,
    children,
    initial_population,
)
from posenc_jax.lab.longrope_search.genome import (
    STARTS,
    VARIANTS,
    Genome,
    Space,
    crossover,
    initial_genomes,
    mutate,
    ramp_factors,
    short_genomes,
)
from posenc_jax.language import spec as spec_language
from posenc_jax.methods.longrope import LongRoPE, longrope_factors
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.methods.yarn import yarn_frequencies
from tests.golden_files import golden, golden_suite

GOLDEN = golden('longrope')['values']
SIZES = Sizes(population=12, iterations=4, parents=6, mutations=4, crossovers=4)
PLAIN = LongRoPE(long=(1.0,) * 8, factor=1.0, train_len=64)  # of a run without factors
TARGET = targets.Target(PLAIN, 'long', 4.0)


def seeds_of(space, train_len=64):
    return initial_genomes(space, 2 * space.planes, 1e4, train_len)


def first_factors(around):
    """The farthest from the sheet of four ways: plain; of a length 10 times as long, which moves a
    frequency by 16 planes (base 1e4, width 128); of frequencies that are divided by 10 as well; and
    of the first genome for these.
    """
    planes, tens = np.asarray(around['planes']), (10.0,) * 64
    found = [
        ramp_factors(128, 1e4, 32.0, 4096)[planes],
        ramp_factors(128, 1e4, 32.0, 40960)[planes + 16],
        ramp_factors(128, 1e4, 32.0, 40960, tens)[planes],
    ]
    now = LongRoPE(long=tens, factor=10.0, start=5, train_len=4096)
    longer = targets.Target(now, 'long', 320.0)
    first = longer.seeds(longer.space(64, 0.3, 'free'), 128, 1e4)[0]
    assert first.start == 5
    found.append(np.array(first.factors)[planes])
    return max(found, key=lambda one: np.abs(one - around['initial']).max())


test_golden = golden_suite(
    'longrope',
    {
        'initial': first_factors,
        'rescaled_33': (
            lambda: longrope_factors(ramp_factors(128, 1e4, 32.0, 4096), 32.0, 16.0)[33],
            {'atol': 1e-9},
        ),
    },
    atol=6e-6,
)


def test_the_first_genome_has_the_factors_of_the_ramp():
    whole = Space(64, 32.0)
    factors = ramp_factors(128, 1e4, 32.0, 4096)
    assert seeds_of(whole, 4096)[0].factors == pytest.approx(factors, abs=1e-9)
    assert initial_genomes(whole, 128, 1e4, 40960, (10.0,) * 64) == seeds_of(whole, 4096)
    planes, initial = GOLDEN['planes'], GOLDEN['initial']
    mixed = ramp_factors(128, 1e4, 32.0, 40960, np.where(np.arange(64) < 33, 1.0, 10.0))
    np.testing.assert_allclose(mixed[planes], [1.0, 1.0, *initial[2:]], atol=6e-6)
    # The ramp from 52 to 78 goes on behind the last plane.
    plain, divided = (ramp_factors(128, 1e4, 32.0, 409600, now)[63] for now in ((), (100.0,) * 64))
    assert plain == pytest.approx(1 + 31 * 11 / 26) and divided == 32.0


def test_the_first_lists_short_lie_between_ones_and_long():
    space = Space(4, 4.0, starts=(7,))
    # The list long descends and is above 1 + s.
    found = short_genomes(space, (1.0, 3.0, 2.0, 9.0), short=(1.0, 1.0, 1.5, 2.0))
    assert {genome.start for genome in found} == {7}
    assert [genome.factors for genome in found] == [
        (1.0, 1.0, 1.0, 1.0), (1.0, 3.0, 3.0, 5.0), (1.0, 1.0, 1.5, 2.0),
        (1.0, 1.5, 1.5, 3.0), (1.0, 2.0, 2.0, 5.0), (1.0, 2.5, 2.5, 5.0),
    ]  # fmt: skip
    draw = lambda seed: mutate(found[1], space, np.random.default_rng(seed), found)
    assert {draw(seed).start for seed in range(20)} == {7}


TUNED = 'longrope(long=(1.0, 1.5, 2.0, 2.5), factor=2.0, start=2, train_len=16)'


LONG, SHORT = 'long=(1.0, 1.5, 2.0, 2.5), factor=2.0, ', (1.0, 1.0, 1.0, 2.0)


@pytest.mark.parametrize(
    'more, name, genome, spec, m',
    [
        (
            {},
            'long',
            Genome((1.0, 1.0, 2.5, 4.2), 8),
            'long=(1.0, 1.5, 5.0, 10.5), factor=8.0, start=8, train_len=16',
            1.322876,  # sqrt(1 + ln 8 / ln 16)
        ),
        (
            {},
            'long',
            Genome((1.1, 1.1, 1.1, 1.1)),
            'long=(1.1, 1.65, 2.2, 2.75), factor=8.0, train_len=16',
            1.322876,
        ),
        (
            {},
            'short',
            Genome((1.0, 1.0, 1.25, 3.0), 2),
            LONG + 'short=(1.0, 1.0, 1.25, 3.0), start=2, train_len=16',
            1.118034,
        ),
        (
            {'magnitude': 'yarn', 'short': SHORT},
            'long',
            Genome((1.0, 1.0, 1.0, 3.0)),
            f"long=(1.0, 1.5, 2.0, 7.5), factor=8.0, short={SHORT}, magnitude='yarn', train_len=16",
            1.207944,
        ),
        (
            {'magnitude': 1.5, 'short': SHORT},
            'short',
            Genome((1.0, 1.0, 1.0, 1.0), 2),
            LONG + 'short=(1.0, 1.0, 1.0, 1.0), start=2, magnitude=1.5, train_len=16',
            1.5,
        ),
    ],
)
def test_the_rule_of_a_genome(more, name, genome, spec, m):
    now = dict(long=(1.0, 1.5, 2.0, 2.5), factor=2.0, start=2, train_len=16)
    target = targets.Target(LongRoPE(**{**now, **more}), name, 8.0 if name == 'long' else 2.0)
    rule = target.rule(genome)
    assert targets.spec_of(rule) == f'longrope({spec})' and made(f'longrope({spec})') == rule
    assert rule.temperature == pytest.approx(m, abs=6e-7)


def test_where_a_search_goes_on_from():
    lists = dict(long=(10.0,) * 64, short=(1.0,) * 32 + (1.5,) * 32)
    now = LongRoPE(**lists, factor=10.0, start=5, train_len=4096)
    longer, short = targets.Target(now, 'long', 320.0), targets.Target(now, 'short', 10.0)
    starts = (5, 0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32)  # that leave positions to the factors
    assert longer.space(64, 0.3, 'free') == Space(64, 32.0, starts)
    space = short.space(64, 0.3, 'free')
    assert space == Space(64, 10.0, (5,))
    found = [genome.factors for genome in short.seeds(space, 128, 1e4)]
    assert found[:3] == [(1.0,) * 64, now.long, now.short] and len(found) == 6


def test_the_seeds_are_the_known_extensions():
    ramp, yarn, ntk, pi = seeds_of(Space(8, 4.0))
    theta = rope_frequencies(16, 1e4)
    np.testing.assert_allclose(theta / yarn.factors, yarn_frequencies(16, 1e4, 4.0, 64), rtol=1e-9)
    assert ntk.factors[0] == 1.0 and ntk.factors[-1] == 4.0
    base = 48760.546  # b' of the sheet of ntk_aware
    np.testing.assert_allclose(theta / ntk.factors, base ** (-np.arange(8) / 8), rtol=1e-7)
    assert pi.factors == (4.0,) * 8 and ramp.factors != yarn.factors
    assert all(genome.start == 0 for genome in (ramp, yarn, ntk, pi))


def test_without_a_scale_all_known_extensions_are_rope():
    assert seeds_of(Space(8, 1.0)) == [Genome((1.0,) * 8)]


def check(genome, space):
    factors = genome.factors
    assert len(factors) == space.planes and genome.start in space.starts
    assert 1 <= factors[0] and factors[-1] <= 1 + space.factor and list(factors) == sorted(factors)
    if space.pieces:
        low, high = genome.span
        assert -1 <= low < high < space.planes
        assert set(factors[: low + 1]) <= {1.0} and set(factors[high + 1 :]) <= {space.factor}
    assert genome in space


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('factor', [1.5, 4.0, 4 / 3, 32.0])
def test_every_genome_is_monotone_within_range_and_new(factor, variant):
    space, rng = Space(8, factor, variant=variant), np.random.default_rng(0)
    population = initial_population(seeds_of(space), space, rng, 16)
    assert len(population) == 16
    seen = set(population)
    for _ in range(10):
        born = children(population[:8], space, rng, seen, SIZES)
        assert len(set(born)) == len(born) == 8 and not seen & set(born)
        seen |= set(born)
        population = born
    for genome in seen:
        check(genome, space)
    known = {f for genome in seeds_of(space) for f in genome.factors}
    chosen = np.array([f for genome in seen for f in genome.factors if f not in known])
    assert len(chosen) > 50 and np.all(chosen == chosen.round(2))
    assert {0} < {genome.start for genome in seen} <= set(STARTS)


def test_a_certain_visit_changes_start_and_every_factor_within_its_neighbours():
    space, parent = Space(3, 4.0, starts=(0, 7), probability=1.0), Genome((1.0, 2.0, 3.0))
    found = [mutate(parent, space, np.random.default_rng(seed), {parent}) for seed in range(200)]
    first, second, third = np.array([genome.factors for genome in found]).T
    assert first.min() < 1.1 and 1.9 < first.max() <= 2.0
    assert second.max() <= 3.0 and third.max() > 4.8 and np.all(third >= second)
    assert {genome.start for genome in found} == {0, 7}


def test_a_crossover_has_genes_of_both_parents_and_mostly_of_the_better():
    space = Space(8, 8.0)
    better = Genome(tuple(np.arange(1.0, 9.0).tolist()), 4)
    other = Genome(tuple(np.arange(1.5, 9.0).tolist()), 8)  # any mixture ascends
    draw = lambda seed: crossover(
        better, other, space, np.random.default_rng(seed), {better, other}
    )
    found = [draw(seed) for seed in range(200)]
    for child in found:
        check(child, space)
        assert all(f in (a, b) for f, a, b in zip(child.factors, better.factors, other.factors))
    copied = np.mean([np.not_equal(child.factors, better.factors) for child in found])
    assert 0.12 < copied < 0.25  # 0.3 x 0.5 in a sweep, and one more sweep where nothing was copied
    assert {child.start for child in found} == {4, 8}


def test_a_crossover_of_equal_genes_is_a_mutant():
    space, parent = Space(4, 4.0), Genome((1.0, 2.0, 3.0, 4.0))
    child = crossover(parent, parent, space, np.random.default_rng(0), {parent})
    check(child, space)
    assert child != parent


def test_an_exhausted_space_has_no_child():
    space, rng = Space(1, 1.0, starts=(0,)), np.random.default_rng(0)
    population = initial_population([Genome((1.0,))], space, rng, 1000)
    every = [round(1 + k / 100, 2) for k in range(101)]
    assert sorted(genome.factors[0] for genome in population) == every
    assert children(population, space, rng, set(population), SIZES) == []


def distance(genome):
    """A hidden optimum that is no known extension."""
    best = (1.0, 1.1, 1.2, 2.0, 2.5, 3.0, 4.5, 5.0)
    return sum((f - g) ** 2 for f, g in zip(genome.factors, best)) + abs(genome.start - 8)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_best_ever_is_kept_and_beats_the_known_extensions(variant):
    space = Space(8, 4.0, variant=variant)
    state = begin(seeds_of(space), space, SIZES, distance, seed=0)
    for number in range(1, 21):
        before, state = state, advance(state, space, SIZES, distance)
        assert state.iteration == number and len(state.history) == 12 + 8 * number
        assert set(before.population[:6]) < set(state.population) and len(state.population) == 14
        best = {min(state.history.values()), state.history[state.best], distance(state.best)}
        assert best == {state.trace[-1]}
    assert state.trace == sorted(state.trace, reverse=True)
    assert state.trace[-1] < 0.5 * min(map(distance, seeds_of(space)))


def test_where_yarn_is_the_optimum_yarn_is_the_answer():
    space = Space(8, 4.0)
    seeds = seeds_of(space)
    apart = lambda genome: np.abs(np.subtract(genome.factors, seeds[0].factors)).sum()
    objective = lambda genome: apart(genome) + genome.start
    state = begin(seeds, space, SIZES, objective, seed=0)
    for _ in range(5):
        state = advance(state, space, SIZES, objective)
    assert state.best == seeds[0] and state.trace == [0.0] * 6


def test_a_genome_without_a_finite_score_is_the_last():
    space = Space(8, 4.0)
    seeds = seeds_of(space)
    objective = lambda genome: math.nan if genome.start else distance(genome)
    state = begin(seeds, space, SIZES, objective, seed=0)
    last = state.population[-1]
    assert state.history[last] == math.inf and last.start
    again = State.from_json(json.loads(json.dumps(state.to_json())))
    assert again.history == state.history and again.population == state.population
    with pytest.raises(ValueError, match='first genome scores inf'):
        begin(seeds, space, SIZES, lambda genome: math.nan, seed=0)


def made(spec):
    return spec_language.build(spec_language.parse(spec, ('frequencies',)).nodes[0], {})
