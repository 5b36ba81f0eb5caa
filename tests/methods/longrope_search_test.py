"""The search of longrope factors: operators, populations, files that continue, and the command on a
real run.
"""

import dataclasses
import json
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from configs import default, extend
from posenc_jax.lab.evaluate import scoring
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.lab.files.lock import hold
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import abstract_model
from posenc_jax.lab.pretrained import export_pretrained
from posenc_jax.lab.runs import initial
from posenc_jax.lab.runs.prepare import prepare
from posenc_jax.lab.runs.run import Run
from posenc_jax.lab.search import __main__ as command
from posenc_jax.lab.search import longrope, state_file
from posenc_jax.lab.search import objective as objectives
from posenc_jax.lab.search import target as targets
from posenc_jax.lab.search.evolution import (
    Sizes,
    State,
    advance,
    begin,
    children,
    initial_population,
)
from posenc_jax.lab.search.genome import (
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
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.methods.longrope import LongRoPE, rescaled_factors
from posenc_jax.methods.rope import Rotary, rope_frequencies
from posenc_jax.methods.yarn import yarn_frequencies
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden, golden_suite
from tests.lab.evaluate.run_test import make_run
from tests.methods.refusals import refused
from tests.small_models import small_model

GOLDEN = golden('longrope')['values']
SIZES = Sizes(population=12, iterations=4, parents=6, mutations=4, crossovers=4)
PLAIN = LongRoPE(long=(1.0,) * 8, factor=1.0, train_len=64)  # of a run without factors
SPACE = Space(8, 4.0)
TUNED = 'longrope(long=(1.0, 1.5, 2.0, 2.5), factor=2.0, start=2, train_len=16)'


def seeds_of(space, train_len=64):
    return initial_genomes(space, 2 * space.planes, 1e4, train_len)


def made(spec):
    return spec_language.build(spec_language.parse(spec, ('frequencies',)).nodes[0], {})


def ramp(planes=slice(None), train_len=4096, now=()):
    return ramp_factors(128, 1e4, 32.0, train_len, now)[planes]


PLANES = np.asarray(GOLDEN['planes'])
test_golden = golden_suite(
    'longrope',
    {
        'initial': (lambda: ramp(PLANES), {'atol': 6e-6}),
        'rescaled_33': (lambda: rescaled_factors(ramp(), 32.0, 16.0)[33], {'atol': 1e-9}),
    },
)


def test_the_first_seed_has_the_first_factors():
    assert seeds_of(Space(64, 32.0), 4096)[0].factors == pytest.approx(ramp(), abs=1e-9)


def test_golden_first_factors_of_frequencies_that_are_divided_already():
    """Dividing by 10 moves a frequency by 16 planes (base 1e4, width 128), and so does a length 10
    times as long.
    """
    kept = np.where(np.arange(64) < 33, 1.0, 10.0)
    for found, expected in (
        (ramp(PLANES + 16, 40960), GOLDEN['initial']),
        (ramp(PLANES, 40960, np.full(64, 10.0)), GOLDEN['initial']),
        (ramp(PLANES, 40960, kept), [1.0, 1.0, *GOLDEN['initial'][2:]]),
    ):
        np.testing.assert_allclose(found, expected, atol=6e-6)
    # The ramp from 52 to 78 goes on behind the last plane.
    assert ramp(63, 409600) == pytest.approx(1 + 31 * 11 / 26)
    assert ramp(63, 409600, (100.0,) * 64) == 32.0
    space = Space(64, 32.0)
    assert initial_genomes(space, 128, 1e4, 40960, (10.0,) * 64) == seeds_of(space, 4096)


def test_the_first_lists_short_lie_between_ones_and_long():
    """The list long descends once, and is above 1 + s at its end."""
    space, rng = Space(4, 4.0, starts=(7,)), np.random.default_rng
    found = short_genomes(space, (1.0, 3.0, 2.0, 9.0), short=(1.0, 1.0, 1.5, 2.0))
    assert [genome.factors for genome in found] == [
        (1.0, 1.0, 1.0, 1.0), (1.0, 3.0, 3.0, 5.0), (1.0, 1.0, 1.5, 2.0),
        (1.0, 1.5, 1.5, 3.0), (1.0, 2.0, 2.0, 5.0), (1.0, 2.5, 2.5, 5.0),
    ]  # fmt: skip
    mutants = [mutate(found[1], space, rng(seed), found) for seed in range(20)]
    assert {genome.start for genome in (*found, *mutants)} == {7}


@pytest.mark.parametrize(
    'more, name, genome, spec, m',
    [
        # sqrt(1 + ln 8 / ln 16)
        ({}, 'long', Genome((1.0, 1.0, 2.5, 4.2), 8),
         'long=(1.0, 1.5, 5.0, 10.5), factor=8.0, start=8', 1.322876),
        ({}, 'long', Genome((1.1, 1.1, 1.1, 1.1)),
         'long=(1.1, 1.65, 2.2, 2.75), factor=8.0', 1.322876),
        ({}, 'short', Genome((1.0, 1.0, 1.25, 3.0), 2),
         'long=(1.0, 1.5, 2.0, 2.5), factor=2.0, short=(1.0, 1.0, 1.25, 3.0), start=2', 1.118034),
        ({'magnitude': 'yarn', 'short': (1.0, 1.0, 1.0, 2.0)}, 'long', Genome((1.0, 1.0, 1.0, 3.0)),
         'long=(1.0, 1.5, 2.0, 7.5), factor=8.0, short=(1.0, 1.0, 1.0, 2.0), '
         "magnitude='yarn'", 1.207944),
        ({'magnitude': 1.5, 'short': (1.0, 1.0, 1.0, 2.0)}, 'short', Genome((1.0,) * 4, 2),
         'long=(1.0, 1.5, 2.0, 2.5), factor=2.0, short=(1.0, 1.0, 1.0, 1.0), start=2, '
         'magnitude=1.5', 1.5),
    ],
)  # fmt: skip
def test_golden_answers(more, name, genome, spec, m):
    now = dataclasses.replace(made(TUNED), **more)
    rule = targets.Target(now, name, 8.0 if name == 'long' else 2.0).rule(genome)
    assert targets.spec_of(rule) == f'longrope({spec}, train_len=16)'
    assert rule.temperature == pytest.approx(m, abs=6e-7)
    assert made(targets.spec_of(rule)) == rule


def test_where_a_search_goes_on_from():
    lists = dict(long=(10.0,) * 64, short=(1.0,) * 32 + (1.5,) * 32)
    now = LongRoPE(**lists, factor=10.0, start=5, train_len=4096)
    longer, short = targets.Target(now, 'long', 320.0), targets.Target(now, 'short', 10.0)
    space = longer.space(64, 0.3, 'free')
    # The starts are those that leave positions to the factors.
    assert space == Space(64, 32.0, (5, 0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32))
    first = longer.seeds(space, 128, 1e4)[0]
    np.testing.assert_allclose(np.array(first.factors)[PLANES], GOLDEN['initial'], atol=6e-6)
    assert first.start == 5
    space = short.space(64, 0.3, 'free')
    assert space == Space(64, 10.0, (5,))
    found = [genome.factors for genome in short.seeds(space, 128, 1e4)]
    assert found[:3] == [(1.0,) * 64, now.long, now.short] and len(found) == 6


def test_the_seeds_are_the_known_extensions():
    ramp, yarn, ntk, pi = seeds_of(SPACE)
    theta = rope_frequencies(16, 1e4)
    np.testing.assert_allclose(theta / yarn.factors, yarn_frequencies(16, 1e4, 4.0, 64), rtol=1e-9)
    assert ntk.factors[0] == 1.0 and ntk.factors[-1] == 4.0
    by_ntk = 48760.546 ** (-np.arange(8) / 8)  # b' of the spec of ntk_aware
    np.testing.assert_allclose(theta / ntk.factors, by_ntk, rtol=1e-7)
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
        population = children(population[:8], space, rng, seen, SIZES)
        assert len(set(population)) == len(population) == 8 and not seen & set(population)
        seen |= set(population)
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
    found = [
        crossover(better, other, space, np.random.default_rng(seed), {better, other})
        for seed in range(200)
    ]
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
    found = sorted(genome.factors[0] for genome in population)
    assert found == [round(1 + k / 100, 2) for k in range(101)]
    assert children(population, space, rng, set(population), SIZES) == []


def distance(genome, optimum=(1.0, 1.1, 1.2, 2.0, 2.5, 3.0, 4.5, 5.0), start=8):
    """From a hidden optimum that is no known extension."""
    factors = sum((f - g) ** 2 for f, g in zip(genome.factors, optimum))
    return factors + abs(genome.start - start)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_best_ever_is_kept_and_beats_the_known_extensions(variant):
    space = Space(8, 4.0, variant=variant)
    state = begin(seeds_of(space), space, SIZES, distance, seed=0)
    for number in range(1, 21):
        before, state = state, advance(state, space, SIZES, distance)
        assert state.iteration == number and len(state.history) == 12 + 8 * number
        assert set(before.population[:6]) < set(state.population) and len(state.population) == 14
        assert state.trace[-1] == state.history[state.best] == distance(state.best)
        assert state.trace[-1] == min(state.history.values())
    assert state.trace == sorted(state.trace, reverse=True)
    assert state.trace[-1] < 0.5 * min(map(distance, seeds_of(space)))


def test_where_yarn_is_the_optimum_yarn_is_the_answer():
    seeds = seeds_of(SPACE)
    objective = lambda genome: distance(genome, seeds[0].factors, 0)
    state = begin(seeds, SPACE, SIZES, objective, seed=0)
    for _ in range(5):
        state = advance(state, SPACE, SIZES, objective)
    assert state.best == seeds[0] and state.trace == [0.0] * 6


def test_a_genome_without_a_finite_score_is_the_last():
    objective = lambda genome: math.nan if genome.start else distance(genome)
    state = begin(seeds_of(SPACE), SPACE, SIZES, objective, seed=0)
    last = state.population[-1]
    assert state.history[last] == math.inf and last.start
    again = State.from_json(json.loads(json.dumps(state.to_json())))
    assert again.history == state.history and again.population == state.population
    with pytest.raises(ValueError, match='first genome scores inf'):
        begin(seeds_of(SPACE), SPACE, SIZES, lambda genome: math.nan, seed=0)


class Stop(Exception):
    pass


def stopping(objective, after, error=Stop):
    left = [after]

    def counted(genome):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return objective(genome)

    return counted


def interrupted(objective, after):
    return stopping(objective, after, KeyboardInterrupt)


def search_in(path, asked, objective=distance, target='long'):
    """A search of the variant that is asked for, from what the file has."""
    space = Space(8, 4.0, variant=asked.get('variant', 'free'))
    rule = targets.Target(PLAIN, target, 4.0)
    state, _ = state_file.read(path, asked)
    return longrope.run_search(path, asked, rule, state, objective, seeds_of(space), space, SIZES)


@pytest.mark.parametrize('target', ['long', 'short'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_a_stopped_search_ends_as_an_uninterrupted_one(tmp_path, capsys, variant, target):
    asked = {'seed': 3, 'factor': 4.0, 'variant': variant}
    whole, parts = tmp_path / 'whole.json', tmp_path / 'parts.json'
    end = search_in(whole, asked, target=target)
    assert end.iteration == 4 and 'iteration 4/4  best perplexity' in capsys.readouterr().out
    for number, after in enumerate((5, 14, 9, 9)):  # the first one within the first population
        with pytest.raises(Stop):
            search_in(parts, asked, stopping(distance, after), target)
        assert parts.exists() == (number > 0)
    search_in(parts, asked, target=target)
    assert parts.read_text() == whole.read_text()
    assert f'{parts}: continuing after iteration 2 of 4' in capsys.readouterr().out
    other = search_in(tmp_path / 'other.json', {**asked, 'seed': 4}, target=target)
    assert other.history != end.history
    assert list(tmp_path.glob('*.partial')) == []


def test_no_genome_is_scored_twice(tmp_path):
    """What was scored before a stop is kept within an iteration too; a line that was cut short is
    not.
    """
    asked, path = {'seed': 3, 'factor': 4.0}, tmp_path / 'f.json'
    scores, calls = path.with_name('f.json.scores'), []

    def objective(genome):
        stops = len(calls) in (3, 7, 12) and genome not in calls
        calls.append(genome)
        if stops:
            raise Stop
        return distance(genome)

    for number in range(3):
        with pytest.raises(Stop):
            search_in(path, asked, objective)
        if number == 1:
            scores.write_text(scores.read_text()[:-9])
    end = search_in(path, asked, objective)
    # Twice called are the genomes that were stopped at, and that of the torn line.
    assert end.iteration == SIZES.iterations and len(calls) == len(end.history) + 3 + 1
    assert not scores.exists()
    scores.write_text('{"seed": 4}\n[0.0, 0, [1.0]]\n')  # of another search
    assert state_file.remembered(scores, asked, lambda genome: 5.0)(Genome((1.0,), 0)) == 5.0


def test_what_is_no_file_is_refused(tmp_path):
    path = tmp_path / 'a.json'
    path.symlink_to('/dev/null')
    told = f'^{path} is a symbolic link to a device, expected a regular file'
    with pytest.raises(ValueError, match=told):
        state_file.read(path, {})
    with pytest.raises(ValueError, match=told):
        state_file.remembered(path, {}, lambda genome: 5.0)
    path.unlink()
    path.write_text('[' * 5000)
    with pytest.raises(ValueError, match='a.json was not written by a search of longrope factors'):
        state_file.read(path, {})


def test_a_file_of_another_search_is_refused(tmp_path):
    path, asked = tmp_path / 'a.json', {'seed': 0, 'factor': 4.0, 'overrides': {}}
    assert state_file.read(path, asked) == (None, {})
    search_in(path, asked)
    # The settings of a first search may lack what only later searches have.
    assert state_file.read(path, {**asked, 'rule': None})[0].iteration == 4
    before = path.read_text()
    for more, message in (
        ({'rule': 'longrope(...)'}, r"rule: None there, 'longrope\(\.\.\.\)' here"),
        ({'seed': 1, 'documents': 5}, 'seed: 0 there, 1 here; documents: None there, 5 here; give'),
    ):
        with pytest.raises(state_file.SettingsChangedError, match=message):
            state_file.read(path, {**asked, **more})
    assert path.read_text() == before
    for text in ('{"a": 1}', 'no json', '[]'):
        path.write_text(text)
        with pytest.raises(ValueError, match='was not written by a search'):
            state_file.read(path, asked)


test_wrong_calls = pytest.mark.full(
    refused(
        {
            'longrope search.*must be at least 1, got 0.5': lambda: Space(8, 0.5),
            'at least 1 rotary plane, got 0': lambda: Space(0, 2.0),
            r'probability must lie in \(0, 1\], got 0.0': lambda: Space(8, 2.0, probability=0.0),
            r'one or more counts of first positions, each at least 0, got \(-1, 2\)': lambda: Space(
                8, 2.0, starts=(-1, 2)
            ),
            "variant is 'dim_mono'; did you mean 'dim_piece_mono'": lambda: Space(
                8, 2.0, variant='dim_mono'
            ),
            'use the variant free': lambda: Space(8, 1.0, variant='dim_piece_mono'),
            '9 parents cannot be selected from a population of 8': lambda: Sizes(
                population=8, parents=9
            ),
            'a crossover has two parents': lambda: Sizes(parents=1),
            'both 0': lambda: Sizes(mutations=0, crossovers=0),
            'iterations must be at least 0, got -1': lambda: Sizes(iterations=-1),
            'must be at least 1, got 0.5': lambda: ramp_factors(16, 1e4, 0.5, 64),
            'use at most 1 documents, or a longer text': lambda: objectives.pick_documents(
                99, 50, 2
            ),
            'documents must be at least 1, got 0': lambda: objectives.pick_documents(99, 50, 0),
        }
    )
)


LAB = dict(model={'tie': False}, eval={'lengths': (), 'samples': 256})


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp('rope'), encoding='rope()', **LAB)


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
    """As the run would be after training with factors for twice its length."""
    changes = dict(LAB, encoding=f'rope(freqs={TUNED})', train={'length': 32})
    return make_run(tmp_path_factory.mktemp('tuned'), **changes)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'source, length, genome, spec',
    [
        ('run', 64, Genome((1.0, 1.5, 3.0, 3.5)),
         'longrope(long=(1.0, 1.5, 3.0, 3.5), factor=4.0)'),
        ('tuned', 64, Genome((1.0, 2.0, 2.0, 3.0), 8),
         'longrope((1.0, 3.0, 4.0, 7.5), start=8, factor=4.0, train_len=16)'),
        ('tuned', 16, Genome((1.0, 2.0, 2.0, 3.0), 2),
         TUNED.replace('factor', 'short=(1.0, 2.0, 2.0, 3.0), factor')),
    ],
    ids=['start 0', 'longer', 'short'],
)  # fmt: skip
def test_the_objective_is_the_exact_rule_compiled_once(
    request, source, length, genome, spec, monkeypatch
):
    traces, plain = [], scoring.token_scores
    path = request.getfixturevalue(source)
    job = prepare(path, {'eval.lengths': (length,), 'eval.split': 'validation'})
    model, _ = job.load()
    stream = job.task.tokens('validation')
    windows = objectives.pick_documents(len(stream) - 1, length, 3)
    target = targets.target_of(path, targets.rotary_part(model), 16, length)
    mesh, rows = (make_mesh(data=4, sequence=2), 4) if genome.start else (None, 3)
    objective = objectives.make_objective(model, target, stream, windows, rows, mesh)
    wanted = objectives.perplexity_of(scorer(model.extend(spec)), stream, windows, 3)
    counted = lambda *args, **given: traces.append(1) or plain(*args, **given)
    monkeypatch.setattr(scoring, 'token_scores', counted)
    others = [objective(Genome((1.0,) * 4)), objective(Genome((4.0,) * 4, 4))]
    assert objective(genome) == pytest.approx(wanted, rel=2e-6)
    assert all(abs(other - wanted) > 1e-4 * wanted for other in others) and len(traces) < 2


@pytest.mark.full
def test_a_length_that_the_mesh_does_not_divide(run, tmp_path, monkeypatch):
    cut = longrope.search(
        run, 19, Sizes(3, 0, 2), documents=2, out=tmp_path / 'cut.json',
        overrides={'mesh.data': '2', 'mesh.sequence': '4'},
    )  # fmt: skip
    one = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(Run, 'mesh', one)
    whole = longrope.search(run, 19, Sizes(3, 0, 2), documents=2, out=tmp_path / 'whole.json')
    found, expected = found_in(cut), found_in(whole)
    assert found['spec'] == expected['spec'] and len(expected['state']['history']) == 3
    assert found['trace'] == pytest.approx(expected['trace'], rel=2e-6)
    assert found['exact'] == pytest.approx(expected['exact'], rel=2e-6)


def options(population, iterations, parents, mutations, crossovers):
    given = dict(locals(), documents=2)
    return [f'--{name}={value}' for name, value in given.items()]


SMALL = ['--length=32', *options(5, 2, 3, 1, 1)]


def found_in(path):
    return json.loads(Path(path).read_text())


@pytest.fixture(scope='module')
def finished(run):
    """A whole search by the command."""
    assert command.main([f'--run={run}', *SMALL]) == 0
    return longrope.default_output(run, 32)


@pytest.mark.full
def test_the_command_writes_what_it_found(run, finished):
    fields = found_in(finished)
    assert finished == Path(run, 'longrope_32.json')
    assert list(fields)[-1] == 'spec' and fields['iteration'] == 2
    assert fields['settings']['factor'] == 2.0
    assert fields['trace'][-1] <= fields['trace'][0] <= fields['exact']['yarn_ramp']
    assert fields['exact']['perplexity'] == pytest.approx(fields['best']['perplexity'], rel=2e-6)
    how = {'eval.lengths': (32,), 'eval.protocols': 'nonoverlapping'}
    (read,) = evaluate([run], {'extend': fields['spec'], **how}).runs
    assert read.extend == fields['spec']


def test_two_searches_of_one_file_are_refused(run, finished, capsys):
    before, lock = finished.read_text(), finished.with_name(finished.name + '.lock')
    with hold(lock, f'{finished} is being searched', 'choose another --out'):
        assert command.main([f'--run={run}', *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'longrope search: {finished} is being searched by process ')
    assert line.endswith('choose another --out')
    assert finished.read_text() == before


@pytest.mark.full
def test_progressive_extension(tuned, monkeypatch, capsys):
    """Search at four times the original length, then, on the run with these factors, the list
    short.
    """
    sizes = options(7, 1, 3, 2, 2)
    assert command.main([f'--run={tuned}', '--length=64', *sizes]) == 0
    fields = found_in(longrope.default_output(tuned, 64))
    rule, best = made(fields['spec']), fields['best']
    assert fields['settings']['rule'] == TUNED
    assert (rule.factor, rule.train_len, rule.short) == (4.0, 16, None)
    np.testing.assert_allclose(rule.long, np.multiply(made(TUNED).long, best['factors']))
    assert rule.start == best['start'] and best['factors'][-1] <= 1 + 64 / 32
    check_score(fields, tuned)

    config = extend.get_config()
    config.init.update(source=tuned, extend=fields['spec'])
    resolved = initial.resolve(config, initial.open_initial(tuned))
    assert resolved.encoding == f'rope(freqs={fields["spec"]})'

    rule = dataclasses.replace(rule, start=0)  # an untrained model may want any
    longer = f'{tuned} | {targets.spec_of(rule)}'
    assert command.main([f'--run={longer}', '--length=12', *sizes]) == 0
    fields = found_in(longrope.default_output(tuned, 12))
    best, exact = fields['best'], fields['exact']
    assert dataclasses.replace(made(fields['spec']), short=None) == rule
    assert list(made(fields['spec']).short) == best['factors']
    assert exact['ones'] == next(iter(fields['state']['history']))[0] >= best['perplexity']
    assert f'{exact["as_it_is"]:.4f} with nothing changed' in capsys.readouterr().out
    assert exact['as_it_is'] != exact['ones']
    check_score(fields, tuned)
    monkeypatch.setattr(longrope, 'run_search', None)
    assert command.main([f'--run={longer}', '--length=12', *sizes]) == 0  # what is there


def check_score(fields, run):
    """The answer is taken as it is, and is worth what the search says."""
    assert fields['exact']['perplexity'] == pytest.approx(fields['best']['perplexity'], rel=2e-6)
    how = {'eval.lengths': (fields['settings']['length'],), 'eval.protocols': ('nonoverlapping',)}
    run = prepare(f'{run} | {fields["spec"]}', how)
    parts = abstract_model(run.cfg, run.config.extend).shared
    (part,) = [part for part in parts if isinstance(part, Rotary)]
    assert part.freqs == made(fields['spec'])


@pytest.mark.full
def test_the_command_continues_where_it_was_stopped(run, finished, tmp_path, capsys, monkeypatch):
    path, make = tmp_path / 'parts.json', objectives.make_objective
    again = [f'--run={run}', *SMALL, f'--out={path}']
    with monkeypatch.context() as patch:
        stopped = lambda *given: interrupted(make(*given), after=6)
        patch.setattr(longrope, 'make_objective', stopped)
        assert command.main(again) == 130
    assert 'the same command continues' in capsys.readouterr().err
    assert found_in(path)['iteration'] == 0
    assert command.main(again) == 0
    shown = capsys.readouterr().out
    assert 'evaluation 9/9' in shown and shown.endswith(f'{path}\n{found_in(path)["spec"]}\n')
    assert path.read_text() == finished.read_text()


def test_the_command_shows_or_refuses_what_is_there(run, finished, capsys, monkeypatch):
    monkeypatch.setattr(longrope, 'run_search', None)  # nothing is searched any more
    before, changed = finished.read_text(), found_in(finished)
    capsys.readouterr()
    assert command.main([f'--run={run}', *SMALL]) == 0
    assert capsys.readouterr().out.endswith(f'{finished}\n{changed["spec"]}\n')
    assert command.main([f'--run={run}', *SMALL, '--seed=1']) == 2
    assert 'seed: 0 there, 1 here' in capsys.readouterr().err
    changed['settings']['step'] = 1
    finished.write_text(json.dumps(changed))
    assert command.main([f'--run={run}', *SMALL]) == 2
    assert 'step: 1 there, 2 here' in capsys.readouterr().err
    finished.write_text(before)


SAID = {  # options -> what the command says
    '--length=8': 'length 8 is shorter than the trained length; it must be at least 16',
    '--length=32 --documents=100000': 'the validation split has',
    '--length=32 --variant=piece': "variant is 'piece'",
    '--length=32 --config.extend=yarn(factor=2.0)': 'config.extend is decided by the search',
    '--length=32 --config.eval.lenths=3': "did you mean 'eval.lengths'",
    '--length=32 --seed=-1': 'seed must be at least 0',
    '--length=32 --probability=2': 'probability must lie in',
}


@pytest.mark.parametrize('given', SAID)
def test_the_command_says_what_is_wrong(run, given, capsys):
    before = set(Path(run).iterdir())
    assert command.main([f'--run={run}', *given.split()]) == 2
    assert SAID[given] in capsys.readouterr().err
    assert set(Path(run).iterdir()) == before


@pytest.mark.parametrize('arguments, message', [
    (['--population=8'], '32 parents cannot be selected from a population of 8'),
    (['--populations=8', '8'], 'cannot read'),
])  # fmt: skip
def test_the_command_reads_its_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(['--run=x', '--length=32', *arguments])
    assert message in capsys.readouterr().err


def model_of(*pattern):
    sizes = dict(vocab_size=7, train_len=8, layers=2, width=16, heads=2, encoding='')
    return abstract_model(TransformerConfig(**sizes, pattern=pattern))


BASE = 'width 8 with base 10000.0'
test_models_that_cannot_be_searched = refused(
    {
        r'longrope extends a rotary encoding; there is none in alibi\(\) / alibi\(\)': lambda: (
            targets.rotary_part(model_of('alibi()', 'alibi()'))
        ),
        f'{BASE}, width 8 with base 100.0': lambda: targets.rotary_part(
            model_of('rope()', 'rope(base=100.0)')
        ),
        rf'{BASE}, {BASE} and longrope\(long=': lambda: targets.rotary_part(
            model_of('rope()', f'rope(freqs={TUNED})')
        ),
    }
)


def test_layers_without_a_rotary_part_stay_as_they_are():
    assert targets.rotary_part(model_of('rope(partial=0.5)', 'alibi()')).rotary_dim == 4


def test_tasks_without_a_perplexity_are_refused(monkeypatch):
    config = default.get_config()
    config.task = 'copy()'
    monkeypatch.setattr(longrope, 'prepare', lambda *_, **__: Run.of(config))
    with pytest.raises(SpecError, match='which has none'):
        longrope.search('x', 512)


RULE = 'longrope(long=(1.0, 2.0), factor=2.0, train_len=16{})'
CONTINUES = 'a search continues only from'


@pytest.mark.parametrize(
    'freqs, length, message',
    [
        (RULE.format(''), 17, 'already has factors of LongRoPE up to length 32; give a longer '
         'length .* or at most 16 to .* short; got 17'),
        (RULE.format(''), 32, 'already has factors of LongRoPE up to length 32;'),
        (RULE.format(', start=256'), 16, 'the first 256 positions of x keep the original '
         'frequencies, so length 16 has no factors to search; it must be above 256'),
        (RULE.format(', dynamic=True'), 64,
         f'x has longrope with dynamic=True; {CONTINUES} dynamic=False'),
        (RULE.format(", mode='long'"), 16,
         f"x has longrope with mode='long'; {CONTINUES} mode='length'"),
        ('yarn(factor=4.0)', 64, r'x has the frequencies YaRN\(factor=4.0.*; a search starts from '
         'rope or from longrope'),
    ],
)  # fmt: skip
def test_runs_that_are_not_searched_on(freqs, length, message, monkeypatch):
    config = default.get_config()
    config.encoding = f'rope(freqs={freqs})'
    config.model.update(layers=1, width=8, heads=2)
    monkeypatch.setattr(longrope, 'prepare', lambda *_, **__: Run.of(config))
    with pytest.raises(ValueError, match=message):
        longrope.search('x', length)


@pytest.mark.parametrize(
    'extension', ['pi(factor=2.0)', 'longrope(long=(1.0, 2.0), factor=2.0) | dca()']
)
def test_another_extension_is_not_part_of_the_run(extension):
    with pytest.raises(SpecError, match='give the run alone or with longrope, not'):
        longrope.search(f'runs/rope | {extension}', 32)


def public_checkpoint(path, encoding, train_len):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sizes = dict(vocab_size=256, train_len=train_len, layers=1, width=16, heads=2, mlp='swiglu')
    return export_pretrained(small_model(**sizes, encoding=encoding), path, tokenizer=tokenizer)


@pytest.mark.full
def test_a_public_checkpoint_is_searched(tmp_path):
    model, out = public_checkpoint(tmp_path / 'model', 'rope()', 16), tmp_path / 'a' / 'found.json'
    fields = found_in(longrope.search(str(model), 24, Sizes(3, 0, 2), documents=1, out=out))
    assert fields['settings']['train_len'] == 16 and fields['settings']['factor'] == 1.5
    assert fields['evaluations'] == 3
    assert fields['exact']['perplexity'] == pytest.approx(fields['best']['perplexity'], rel=2e-6)


@pytest.mark.full
def test_a_public_checkpoint_with_factors_is_searched_on(tmp_path, capsys):
    """In the layout of Phi-3: the original length beside the scaling, no factor, both lists, one of
    which descends.
    """
    long, short = [1.0, 3.0, 2.0, 4.0], [1.0, 1.25, 1.0, 1.5]
    rule = f'longrope(long={tuple(long)}, short={tuple(short)}, factor=2.0, train_len=16)'
    model = public_checkpoint(tmp_path / 'model', f'rope(freqs={rule})', 32)
    scaling = {'type': 'longrope', 'long_factor': long, 'short_factor': short}
    config = found_in(model / 'config.json')
    config |= {'rope_scaling': scaling, 'original_max_position_embeddings': 16}
    (model / 'config.json').write_text(json.dumps(config))
    path = longrope.search(str(model), 40, Sizes(4, 0, 2), documents=1, out=tmp_path / 'found.json')
    assert 'its factors descend in places' in capsys.readouterr().out
    fields, answer = found_in(path), made(found_in(path)['spec'])
    assert (answer.factor, answer.short, answer.magnitude) == (2.5, tuple(short), 'su')
    np.testing.assert_allclose(answer.long, np.multiply(long, fields['best']['factors']))
    check_score(fields, model)


def test_where_the_file_of_a_checkpoint_lies(tmp_path):
    checkpoint = tmp_path / 'small.gguf'
    checkpoint.write_bytes(b'GGUF')
    path = str(longrope.default_output(str(checkpoint), 32))
    assert re.fullmatch(r'runs/small-[0-9a-f]{6}/longrope_32\.json', path)
