"""The search of longrope factors: operators, populations, files that continue, and the command on a real run."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from configs import default
from posenc_jax.core.registry import SpecError
from posenc_jax.evaluation import settings
from posenc_jax.evaluation.run import Job, evaluate, prepare
from posenc_jax.evaluation.scoring import scorer
from posenc_jax.model.pretrained import export_pretrained
from posenc_jax.model.transformer import Transformer, TransformerConfig
from posenc_jax.rotation.frequencies.longrope import rescaled_factors
from posenc_jax.rotation.frequencies.yarn import yarn_frequencies
from posenc_jax.rotation.rope import rope_frequencies
from posenc_jax.rotation.search import __main__ as command
from posenc_jax.rotation.search.evolution import (
    STARTS, VARIANTS, Genome, Sizes, Space, State, advance, begin, children, crossover, initial_genomes,
    initial_population, mutate, ramp_factors,
)  # fmt: skip
from posenc_jax.training import config as configs
from tests.evaluation.run_test import make_run

GOLDEN = json.loads((Path(__file__).parents[1] / 'golden' / 'longrope.json').read_text())['values']
SIZES = Sizes(population=12, iterations=4, parents=6, mutations=4, crossovers=4)


def seeds_of(space, train_len=64):
    return initial_genomes(space, 2 * space.planes, 1e4, train_len)


def test_golden_first_factors():
    factors = ramp_factors(128, 1e4, 32.0, 4096)
    np.testing.assert_allclose(factors[GOLDEN['planes']], GOLDEN['initial'], atol=6e-6)
    assert rescaled_factors(factors, 32.0, 16.0)[33] == pytest.approx(GOLDEN['rescaled_33'], abs=1e-9)
    assert seeds_of(Space(64, 32.0), 4096)[0].factors == pytest.approx(factors, abs=1e-9)


def test_the_seeds_are_the_known_extensions():
    ramp, yarn, ntk, pi = seeds_of(Space(8, 4.0))
    theta = rope_frequencies(16, 1e4)
    np.testing.assert_allclose(theta / yarn.factors, yarn_frequencies(16, 1e4, 4.0, 64), rtol=1e-9)
    assert ntk.factors[0] == 1.0 and ntk.factors[-1] == 4.0
    np.testing.assert_allclose(theta / ntk.factors, 48760.546 ** (-np.arange(8) / 8), rtol=1e-7)  # b' of the spec of ntk_aware
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
    assert {genome.start for genome in seen} > {0} and {genome.start for genome in seen} <= set(STARTS)


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
    found = [crossover(better, other, space, np.random.default_rng(seed), {better, other}) for seed in range(200)]
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
    assert sorted(genome.factors[0] for genome in population) == [round(1 + k / 100, 2) for k in range(101)]
    assert children(population, space, rng, set(population), SIZES) == []


def distance(genome):
    """A hidden optimum that is no known extension."""
    return sum((f - g) ** 2 for f, g in zip(genome.factors, (1.0, 1.1, 1.2, 2.0, 2.5, 3.0, 4.5, 5.0))) + abs(genome.start - 8)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_best_ever_is_kept_and_beats_the_known_extensions(variant):
    space = Space(8, 4.0, variant=variant)
    state = begin(seeds_of(space), space, SIZES, distance, seed=0)
    for number in range(1, 21):
        before, state = state, advance(state, space, SIZES, distance)
        assert state.iteration == number and len(state.history) == 12 + 8 * number
        assert set(before.population[:6]) < set(state.population) and len(state.population) == 14
        assert state.trace[-1] == min(state.history.values()) == state.history[state.best] == distance(state.best)
    assert state.trace == sorted(state.trace, reverse=True)
    assert state.trace[-1] < 0.5 * min(map(distance, seeds_of(space)))


def test_where_yarn_is_the_optimum_yarn_is_the_answer():
    space = Space(8, 4.0)
    seeds = seeds_of(space)
    objective = lambda genome: sum(abs(f - g) for f, g in zip(genome.factors, seeds[0].factors)) + genome.start
    state = begin(seeds, space, SIZES, objective, seed=0)
    for _ in range(5):
        state = advance(state, space, SIZES, objective)
    assert state.best == seeds[0] and state.trace == [0.0] * 6


def test_a_genome_without_a_finite_score_is_the_last():
    space = Space(8, 4.0)
    seeds = seeds_of(space)
    state = begin(seeds, space, SIZES, lambda genome: math.nan if genome.start else distance(genome), seed=0)
    last = state.population[-1]
    assert state.history[last] == math.inf and last.start
    again = State.from_json(json.loads(json.dumps(state.to_json())))
    assert again.history == state.history and again.population == state.population
    with pytest.raises(ValueError, match='first genome, YaRN as factors, scores inf'):
        begin(seeds, space, SIZES, lambda genome: math.nan, seed=0)


class Stop(Exception):
    pass


def stopping(objective, after):
    left = [after]

    def counted(genome):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return objective(genome)

    return counted


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_stopped_search_ends_as_an_uninterrupted_one(tmp_path, capsys, variant):
    space, asked = Space(8, 4.0, variant=variant), {'seed': 3, 'factor': 4.0, 'variant': variant}
    whole, parts = tmp_path / 'whole.json', tmp_path / 'parts.json'
    end = command.run_search(whole, asked, None, distance, seeds_of(space), space, SIZES)
    assert end.iteration == 4 and 'iteration 4/4  best perplexity' in capsys.readouterr().out
    stops = 0
    for after in (5, 14, 9, 9, 100):  # the first one within the first population
        state, _ = command.read(parts, asked)
        try:
            command.run_search(parts, asked, state, stopping(distance, after), seeds_of(space), space, SIZES)
        except Stop:
            stops += 1
            assert parts.exists() == (stops > 1)
    assert stops == 4 and parts.read_text() == whole.read_text()
    assert f'{parts}: continuing after iteration 2 of 4' in capsys.readouterr().out
    other = command.run_search(tmp_path / 'other.json', {**asked, 'seed': 4}, None, distance, seeds_of(space), space, SIZES)
    assert other.history != end.history
    assert list(tmp_path.glob('*.partial')) == []


def test_no_genome_is_scored_twice(tmp_path):
    """What was scored before a stop is kept within an iteration too; a line that was cut short is not."""
    space, asked, path = Space(8, 4.0), {'seed': 3, 'factor': 4.0}, tmp_path / 'f.json'
    scores, calls = path.with_name('f.json.scores'), []

    def objective(genome):
        if len(calls) in (3, 7, 12) and genome not in calls:
            calls.append(genome)
            raise Stop
        calls.append(genome)
        return distance(genome)

    stops = 0
    while not path.exists() or command.read(path, asked)[0].iteration < SIZES.iterations:
        try:
            end = command.run_search(path, asked, command.read(path, asked)[0], objective, seeds_of(space), space, SIZES)
        except Stop:
            stops += 1
            if stops == 2:
                scores.write_text(scores.read_text()[:-9])
    assert stops == 3 and len(calls) == len(end.history) + stops + 1  # the genomes that were stopped at, and the torn line
    assert not scores.exists()
    scores.write_text('{"seed": 4}\n[0.0, 0, [1.0]]\n')  # of another search
    assert command.remembered(scores, asked, lambda genome: 5.0)(Genome((1.0,), 0)) == 5.0


def test_a_file_of_another_search_is_refused(tmp_path):
    path, space, asked = tmp_path / 'a.json', Space(8, 4.0), {'seed': 0, 'factor': 4.0, 'overrides': {}}
    assert command.read(path, asked) == (None, {})
    command.run_search(path, asked, None, distance, seeds_of(space), space, SIZES)
    assert command.read(path, asked)[0].iteration == 4
    before = path.read_text()
    with pytest.raises(command.SettingsChangedError, match=r'seed: 0 there, 1 here\n  documents: None there, 5 here\n'):
        command.read(path, {**asked, 'seed': 1, 'documents': 5})
    assert path.read_text() == before
    for text in ('{"a": 1}', 'no json', '[]'):
        path.write_text(text)
        with pytest.raises(ValueError, match='was not written by a search'):
            command.read(path, asked)


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: Space(8, 0.5), 'must be at least 1, got 0.5'),
        (lambda: Space(0, 2.0), 'at least 1 rotary plane, got 0'),
        (lambda: Space(8, 2.0, probability=0.0), r'probability must lie in \(0, 1\], got 0.0'),
        (lambda: Space(8, 2.0, starts=(1, 2)), '0 among them'),
        (lambda: Space(8, 2.0, variant='dim_mono'), "variant is 'dim_mono'; did you mean 'dim_piece_mono'"),
        (lambda: Space(8, 1.0, variant='dim_piece_mono'), 'use the variant free'),
        (lambda: Sizes(population=8, parents=9), '9 parents cannot be selected from a population of 8'),
        (lambda: Sizes(parents=1), 'a crossover has two parents'),
        (lambda: Sizes(mutations=0, crossovers=0), 'both 0'),
        (lambda: Sizes(iterations=-1), 'iterations must be at least 0, got -1'),
        (lambda: ramp_factors(16, 1e4, 0.5, 64), 'must be at least 1, got 0.5'),
        (lambda: command.pick_documents(99, 50, 2), 'use at most 1 documents, or a longer text'),
        (lambda: command.pick_documents(99, 50, 0), 'documents must be at least 1, got 0'),
    ],
)
def test_wrong_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    changes = dict(model={'tie': False}, eval={'lengths': (), 'samples': 256})
    return make_run(tmp_path_factory.mktemp('rope'), encoding='rope()', **changes)


@pytest.mark.parametrize('genome', [Genome((1.0, 1.5, 3.0, 3.5)), Genome((1.0, 2.0, 2.0, 5.0), 8)], ids=['start 0', 'start 8'])
def test_the_objective_is_the_exact_rule_compiled_once(run, genome, monkeypatch):
    traces, plain = [], command.token_scores
    monkeypatch.setattr(command, 'token_scores', lambda *args: traces.append(1) or plain(*args))
    job = prepare(run, {'eval.lengths': (64,), 'eval.split': 'validation'})
    model, _ = job.load()
    stream = job.task.tokens('validation')
    windows = command.pick_documents(len(stream) - 1, 64, 3)
    objective = command.make_objective(model, 4.0, stream, windows, rows=3)
    exact = scorer(model.extend(command.spec_of(genome, 4.0)))
    wanted = command.perplexity_of(exact, stream, windows, 3)
    others = [objective(Genome((1.0,) * 4)), objective(Genome((4.0,) * 4, 4))]
    assert objective(genome) == pytest.approx(wanted, rel=2e-6)
    assert all(abs(other - wanted) > 1e-4 * wanted for other in others) and len(traces) == 1


SMALL = ['--length=32', '--population=5', '--iterations=2', '--parents=3', '--mutations=1', '--crossovers=1', '--documents=2']


@pytest.fixture(scope='module')
def finished(run):
    """A whole search by the command."""
    assert command.main([f'--run={run}', *SMALL]) == 0
    return command.default_output(run, 32)


def test_the_command_writes_what_it_found(run, finished):
    fields = json.loads(finished.read_text())
    assert finished == Path(run, 'longrope_32.json')
    assert list(fields)[-1] == 'spec' and fields['iteration'] == 2 and fields['settings']['factor'] == 2.0
    assert fields['trace'][-1] <= fields['trace'][0] <= fields['exact']['yarn_ramp']
    assert fields['exact']['perplexity'] == pytest.approx(fields['best']['perplexity'], rel=2e-6)
    found = evaluate([run], {'extend': fields['spec'], 'eval.lengths': (32,), 'eval.protocols': 'nonoverlapping'})
    assert found.runs[0].extend == fields['spec']


def test_the_command_continues_where_it_was_stopped(run, finished, tmp_path, capsys, monkeypatch):
    path = tmp_path / 'parts.json'
    again = [f'--run={run}', *SMALL, f'--out={path}']
    with monkeypatch.context() as patch:
        make = command.make_objective
        patch.setattr(command, 'make_objective', lambda *a: interrupted(make(*a), after=6))
        assert command.main(again) == 130
    assert 'the same command continues' in capsys.readouterr().err
    assert json.loads(path.read_text())['iteration'] == 0
    assert command.main(again) == 0
    shown = capsys.readouterr().out
    assert 'evaluation 9/9' in shown and shown.endswith(f'{path}\n{json.loads(path.read_text())["spec"]}\n')
    assert path.read_text() == finished.read_text()


def test_the_command_shows_or_refuses_what_is_there(run, finished, capsys, monkeypatch):
    monkeypatch.setattr(command, 'run_search', None)  # nothing is searched any more
    before = finished.read_text()
    capsys.readouterr()
    assert command.main([f'--run={run}', *SMALL]) == 0
    assert capsys.readouterr().out.endswith(f'{finished}\n{json.loads(before)["spec"]}\n')
    assert command.main([f'--run={run}', *SMALL, '--seed=1']) == 2
    assert 'seed: 0 there, 1 here' in capsys.readouterr().err
    changed = json.loads(before)
    changed['settings']['step'] = 1
    finished.write_text(json.dumps(changed))
    assert command.main([f'--run={run}', *SMALL]) == 2
    assert 'step: 1 there, 2 here' in capsys.readouterr().err
    finished.write_text(before)


def interrupted(objective, after):
    counted = stopping(objective, after)

    def stops(genome):
        try:
            return counted(genome)
        except Stop:
            raise KeyboardInterrupt from None

    return stops


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--length=8'], 'length 8 is shorter than the trained one; it must be at least 16'),
        (['--length=32', '--documents=100000'], 'the validation split has'),
        (['--length=32', '--variant=piece'], "variant is 'piece'"),
        (['--length=32', '--config.extend=yarn(factor=2.0)'], 'config.extend is decided by the search'),
        (['--length=32', '--config.eval.lenths=3'], "did you mean 'eval.lengths'"),
        (['--length=32', '--seed=-1'], 'seed must be at least 0'),
        (['--length=32', '--probability=2'], 'probability must lie in'),
    ],
)
def test_the_command_says_what_is_wrong(run, arguments, message, capsys):
    before = set(Path(run).iterdir())
    assert command.main([f'--run={run}', *arguments]) == 2
    assert message in capsys.readouterr().err
    assert set(Path(run).iterdir()) == before


@pytest.mark.parametrize('arguments, message', [
    (['--population=8'], '32 parents cannot be selected from a population of 8'),
    (['--populations=8', '8'], 'cannot read'),
])  # fmt: skip
def test_the_command_reads_its_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(['--run=x', '--length=32', *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    'pattern, message',
    [
        (('alibi()', 'alibi()'), 'pi extends one rotary encoding'),
        (('rope()', 'rope(base=100.0)'), 'width 8 with base 10000.0, width 8 with base 100.0'),
    ],
)
def test_models_that_cannot_be_searched(pattern, message):
    cfg = TransformerConfig(vocab_size=7, train_len=8, layers=2, width=16, heads=2, encoding='', pattern=pattern)
    with pytest.raises(SpecError, match=message):
        command.rotary_part(settings.abstract_model(cfg, command._PROBE))


def test_layers_without_a_rotary_part_stay_as_they_are():
    pattern = ('rope(partial=0.5)', 'alibi()')
    cfg = TransformerConfig(vocab_size=7, train_len=8, layers=2, width=16, heads=2, encoding='', pattern=pattern)
    assert command.rotary_part(settings.abstract_model(cfg, command._PROBE)).rotary_dim == 4


def test_tasks_without_a_perplexity_are_refused(monkeypatch):
    config = default.get_config()
    config.task = 'copy()'
    task = configs.make_task(config)
    job = Job(Path('x'), config, task, configs.model_config(config, task), load=None)
    monkeypatch.setattr(command, 'prepare', lambda *_: job)
    with pytest.raises(SpecError, match='which has none'):
        command.search('x', 512)


def test_a_run_that_has_factors_is_refused(monkeypatch):
    config = default.get_config()
    config.encoding = 'rope(freqs=longrope(long=(1.0, 2.0), factor=2.0, train_len=64))'
    config.model.update(layers=1, width=8, heads=2)
    task = configs.make_task(config)
    job = Job(Path('x'), config, task, configs.model_config(config, task), load=None)
    monkeypatch.setattr(command, 'prepare', lambda *_: job)
    with pytest.raises(SpecError, match='has factors of LongRoPE already; search on the run it was continued from'):
        command.search('x', 512)


def test_an_extension_is_not_part_of_the_run():
    with pytest.raises(SpecError, match='give the run alone'):
        command.search('runs/rope | pi(factor=2.0)', 32)


def test_a_public_checkpoint_is_searched(tmp_path):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    cfg = TransformerConfig(vocab_size=256, train_len=16, layers=1, width=16, heads=2, mlp='swiglu', encoding='rope()')
    export_pretrained(Transformer(cfg, rngs=nnx.Rngs(0)), tmp_path / 'model', tokenizer=tokenizer)
    path = command.search(str(tmp_path / 'model'), 24, Sizes(3, 0, 2), documents=1, out=tmp_path / 'a' / 'found.json')
    fields = json.loads(path.read_text())
    assert fields['settings']['train_len'] == 16 and fields['settings']['factor'] == 1.5 and fields['evaluations'] == 3
    assert fields['exact']['perplexity'] == pytest.approx(fields['best']['perplexity'], rel=2e-6)


def test_where_the_file_of_a_checkpoint_lies(tmp_path):
    checkpoint_file = tmp_path / 'small.gguf'
    checkpoint_file.write_bytes(b'GGUF')
    assert command.default_output(str(checkpoint_file), 32) == Path('runs/small/longrope_32.json')
