"""The search of LongRoPE2: its genomes and where they start, texts with a needle, the command."""

import json
import math

import numpy as np
import pytest

from posenc_jax.lab.config.protocols import Windows
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.lab.longrope_search import __main__ as command
from posenc_jax.lab.longrope_search import objective as objectives
from posenc_jax.lab.longrope_search import search as searches
from posenc_jax.lab.longrope_search.critical import CriticalSpace, CriticalTarget
from posenc_jax.lab.longrope_search.evolution import Sizes, State, advance, begin
from posenc_jax.lab.longrope_search.genome import Genome, crossover, mutate
from posenc_jax.lab.longrope_search.needles import needle_windows
from posenc_jax.lab.longrope_search.target import spec_of
from posenc_jax.lab.runs.prepare import prepare
from posenc_jax.methods.longrope import LongRoPE
from posenc_jax.methods.longrope2 import LongRoPE2, longrope2_factors
from tests.lab.evaluate.run_test import make_run
from tests.lab.longrope_search.genome_test import made

PLAIN = LongRoPE(long=(1.0,) * 8, factor=1.0, train_len=64)
TARGET = CriticalTarget(PLAIN, 'long', 4.0, 16, 100.0, seed=3)
SPACE = TARGET.space(256, 0.3)
SEEDS = TARGET.seeds(SPACE, 16, 100.0)


def test_one_genome_for_every_critical_plane_with_one_whole_number():
    """From the first plane with less than ten periods to the first with less than one."""
    turns = 64 * 100.0 ** (-np.arange(8) / 8) / (2 * np.pi)
    assert SPACE.low == int(np.argmax(turns < 10)) and SPACE.high == int(np.argmax(turns < 1))
    assert [genome.span[0] for genome in SEEDS] == [*range(SPACE.low, SPACE.high + 1)]
    for genome in SEEDS:
        (number,) = set(genome.factors[genome.span[0] :])
        assert number in (4, 5, 6, 7, 8) and genome in SPACE
    assert SEEDS == TARGET.seeds(SPACE, 16, 100.0)
    others = (CriticalTarget(PLAIN, 'long', 4.0, 16, 100.0, seed=n) for n in range(9))
    assert len({tuple(other.seeds(SPACE, 16, 100.0)) for other in others}) > 3


def test_where_the_last_planes_complete_their_periods():
    at = lambda base: CriticalTarget(PLAIN, 'long', 4.0, 16, base).space(256, 0.3)
    assert (at(10.0).low, at(10.0).high) == (1, 7)  # even the last completes one
    with pytest.raises(ValueError, match='every plane completes 10 periods within 64000 tokens'):
        long = LongRoPE(long=(1.0,) * 8, factor=1.0, train_len=64000)
        CriticalTarget(long, 'long', 4.0, 16, 100.0).space(256000, 0.3)
    with pytest.raises(ValueError, match=r'lie in 1 .. 7 of 8 planes, got 0 .. 3'):
        CriticalSpace(8, 4.0, low=0, high=3)


def check(genome):
    r = genome.span[0]
    tail = genome.factors[r:]
    assert genome in SPACE and SPACE.low <= r <= SPACE.high
    assert 4 <= min(tail) and max(tail) <= 8 and list(tail) == sorted(tail)
    before = [tail[0] ** (t / r) for t in range(r)]
    np.testing.assert_allclose(genome.factors[:r], before, rtol=1e-12)


def test_mutations_and_crossovers_keep_the_plane_and_change_the_factors_behind():
    rng = np.random.default_rng(0)
    seen = set(SEEDS)
    for _ in range(100):
        parent = SEEDS[rng.integers(len(SEEDS))]
        child = mutate(parent, SPACE, rng, seen)
        check(child)
        assert child.span == parent.span and child not in seen
        seen.add(child)
    mutants = [genome for genome in seen if genome not in SEEDS]
    for _ in range(100):
        better, other = (mutants[rng.integers(len(mutants))] for _ in range(2))
        child = crossover(better, other, SPACE, rng, seen)
        check(child)
        assert child.span == better.span
    assert Genome(SEEDS[0].factors, 0, None) not in SPACE
    wrong = (SEEDS[-1].factors[0] + 0.1, *SEEDS[-1].factors[1:])
    assert Genome(wrong, 0, SEEDS[-1].span) not in SPACE


def test_the_best_plane_and_factors_are_found():
    """A hidden optimum; the state survives its file."""
    best = np.log(longrope2_factors(3, (4.0, 4.5, 5.0, 6.0, 7.5)))
    objective = lambda genome: float(((np.log(genome.factors) - best) ** 2).sum())
    sizes = Sizes(population=16, iterations=20, parents=8, mutations=8, crossovers=4)
    state = begin(SEEDS, SPACE, sizes, objective, seed=0)
    for _ in range(20):
        state = advance(state, SPACE, sizes, objective)
        state = State.from_json(json.loads(json.dumps(state.to_json())))
    assert state.trace[-1] < 0.2 * min(map(objective, SEEDS)) and state.best.span == (3, 3)
    check(state.best)


def test_the_rule_of_a_genome():
    genome = SPACE.of(3, (4.0, 4.25, 4.5, 5.0, 8.0))
    rule = TARGET.rule(genome)
    assert isinstance(rule, LongRoPE2) and made(spec_of(rule)) == rule
    assert spec_of(rule) == (
        'longrope2(critical=3, tail=(4.0, 4.25, 4.5, 5.0, 8.0), factor=4.0, train_len=64)'
    )
    np.testing.assert_allclose(rule.long, genome.factors, rtol=1e-12)


def encode(text):
    return np.frombuffer(text, np.uint8).astype(np.int32)


def test_a_needle_stands_at_the_start_and_its_answer_at_the_end():
    stream, starts = np.full(1000, ord('.')), np.array([0, 500])
    own = Windows(160, starts, np.full(2, 160), np.full(2, 160))
    texts, windows = needle_windows(encode, stream, own, seed=1)
    assert texts.shape == (2 * 161,) and windows.start.tolist() == [0, 161]
    assert windows.scored.tolist() == [8, 8] and windows.size.tolist() == [160, 160]
    numbers = []
    for row in texts.reshape(2, 161):
        text = bytes(row.astype(np.uint8)).decode()
        number = text[-7:]
        assert number.isdigit() and number[0] != '0'
        assert text.startswith(f'The special magic number is {number}. Remember it.\n.')
        assert text.endswith(
            f'.\nWhat is the special magic number? The special magic number is {number}'
        )
        numbers.append(number)
    assert len(set(numbers)) == 2
    again, _ = needle_windows(encode, stream, own, seed=1)
    np.testing.assert_array_equal(again, texts)
    short = Windows(100, starts, np.full(2, 100), np.full(2, 100))
    with pytest.raises(ValueError, match='take 121 tokens, windows of length 100 hold 101'):
        needle_windows(encode, stream, short)


def test_the_perplexity_is_that_of_the_scored_targets():
    windows = Windows(4, np.array([0, 5]), np.full(2, 4), np.array([2, 1]))
    nats = np.array([[9.0, 9.0, 1.0, 3.0], [9.0, 9.0, 9.0, 2.0]], np.float32)
    score = lambda tokens, targets, tok, key: (nats[: len(tokens)], nats > 0)
    found = objectives.perplexity_of(score, np.arange(10), windows, 2)
    assert found == pytest.approx((math.exp(2) + math.exp(2)) / 2)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    changes = dict(model={'tie': False}, eval={'lengths': (), 'samples': 256})
    return make_run(tmp_path_factory.mktemp('rope'), encoding='rope(base=20.0)', **changes)


@pytest.mark.full
def test_the_objective_is_the_exact_rule(run):
    job = prepare(run, {'eval.lengths': (64,), 'eval.split': 'validation'})
    model, _ = job.load()
    stream = job.task.tokens('validation')
    windows = objectives.pick_documents(len(stream) - 1, 64, 3)
    now = LongRoPE(long=(1.0,) * 4, factor=1.0, train_len=16)
    target = CriticalTarget(now, 'long', 4.0, 8, 20.0)
    genome = target.space(64, 0.3).of(1, (4.0, 6.0, 7.0))
    objective = objectives.make_objective(model, target, stream, windows, 3)
    longer = model.extend(spec_of(target.rule(genome)))
    wanted = objectives.perplexity_of(scorer(longer), stream, windows, 3)
    assert objective(genome) == pytest.approx(wanted, rel=2e-6)


@pytest.mark.full
def test_the_command_searches_critical_planes_by_needles(run, tmp_path, capsys):
    sizes = dict(population=4, iterations=1, parents=2, mutations=1, crossovers=1, documents=2)
    options = [f'--{name}={size}' for name, size in sizes.items()]
    out = tmp_path / 'found.json'
    asked = [f'--run={run}', '--length=160', *options, f'--out={out}', '--objective=needle']
    assert command.main([*asked, '--variant=critical']) == 0
    fields = json.loads(out.read_text())
    rule, exact = made(fields['spec']), fields['exact']
    assert isinstance(rule, LongRoPE2) and (rule.factor, rule.train_len) == (10.0, 16)
    assert exact['perplexity'] == pytest.approx(fields['best']['perplexity'], rel=2e-6)
    assert exact['perplexity'] <= exact['critical'] and fields['settings']['objective'] == 'needle'
    shown = capsys.readouterr().out
    assert 'perplexity of needles at 160' in shown and 'with the first critical plane' in shown
    assert command.main([*asked, '--variant=critical', '--objective=perplexity']) == 2
    assert "objective: 'needle' there, 'perplexity' here" in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--length=160', '--objective=needles'], "objective is 'needles'; did you mean 'needle'"),
        (['--length=100', '--objective=needle'], 'use a longer length'),
        (['--length=16', '--variant=critical'], 'are searched above the trained length alone'),
        (['--length=32', '--variant=criticle'], "variant is 'criticle'; did you mean 'critical'"),
    ],
)
@pytest.mark.full_but_one
def test_the_command_says_what_is_wrong(run, arguments, message, capsys):
    assert command.main([f'--run={run}', *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.full
def test_a_run_with_factors_is_refused(run):
    longer = f'{run} | longrope(long=(1.0, 1.0, 2.0, 2.0), factor=2.0)'
    with pytest.raises(ValueError, match='search of critical planes starts from rope'):
        searches.search(longer, 160, Sizes(3, 0, 2), variant='critical')
