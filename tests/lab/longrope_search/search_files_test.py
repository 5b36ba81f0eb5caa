"""A search of longrope factors that is stopped goes on from its files; other files are refused."""

import pytest

from posenc_jax.lab.longrope_search import objective as objectives
from posenc_jax.lab.longrope_search import search as searches
from posenc_jax.lab.longrope_search import state_file
from posenc_jax.lab.longrope_search import target as targets
from posenc_jax.lab.longrope_search.evolution import Sizes
from posenc_jax.lab.longrope_search.genome import VARIANTS, Genome, Space, ramp_factors
from tests.lab.longrope_search.genome_test import PLAIN, SIZES, TARGET, distance, seeds_of


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


@pytest.mark.parametrize(
    'target', [TARGET, targets.Target(PLAIN, 'short', 4.0)], ids=lambda target: target.name
)
@pytest.mark.parametrize('variant', VARIANTS)
def test_a_stopped_search_ends_as_an_uninterrupted_one(tmp_path, capsys, variant, target):
    space, asked = Space(8, 4.0, variant=variant), {'seed': 3, 'factor': 4.0, 'variant': variant}
    whole, parts, other = (tmp_path / f'{name}.json' for name in ('whole', 'parts', 'other'))

    def run_search(path, state=None, objective=distance, **changes):
        asked_now = {**asked, **changes}
        given = seeds_of(space), space, SIZES
        return searches.run_search(path, asked_now, target, state, objective, *given)

    end = run_search(whole)
    assert end.iteration == 4 and 'iteration 4/4  best perplexity' in capsys.readouterr().out
    stops = 0
    for after in (5, 14, 9, 9, 100):  # the first one within the first population
        state, _ = state_file.read(parts, asked)
        try:
            run_search(parts, state, stopping(distance, after))
        except Stop:
            stops += 1
            assert parts.exists() == (stops > 1)
    assert stops == 4 and parts.read_text() == whole.read_text()
    assert f'{parts}: continuing after iteration 2 of 4' in capsys.readouterr().out
    assert run_search(other, seed=4).history != end.history
    assert list(tmp_path.glob('*.partial')) == []


def test_no_genome_is_scored_twice(tmp_path):
    """What was scored before a stop is kept within an iteration too; a line that was cut short is
    not.
    """
    space, asked, path = Space(8, 4.0), {'seed': 3, 'factor': 4.0}, tmp_path / 'f.json'
    scores, calls = path.with_name('f.json.scores'), []

    def objective(genome):
        if len(calls) in (3, 7, 12) and genome not in calls:
            calls.append(genome)
            raise Stop
        calls.append(genome)
        return distance(genome)

    stops = 0
    while not path.exists() or state_file.read(path, asked)[0].iteration < SIZES.iterations:
        try:
            state, _ = state_file.read(path, asked)
            given = seeds_of(space), space, SIZES
            end = searches.run_search(path, asked, TARGET, state, objective, *given)
        except Stop:
            stops += 1
            if stops == 2:
                scores.write_text(scores.read_text()[:-9])
    # Besides the genomes that were stopped at, that of the torn line is scored again.
    assert stops == 3 and len(calls) == len(end.history) + stops + 1
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
    path, space = tmp_path / 'a.json', Space(8, 4.0)
    asked = {'seed': 0, 'factor': 4.0, 'overrides': {}}
    assert state_file.read(path, asked) == (None, {})
    searches.run_search(path, asked, TARGET, None, distance, seeds_of(space), space, SIZES)
    # A file of a version without second searches has no rule.
    assert state_file.read(path, {**asked, 'rule': None})[0].iteration == 4
    before = path.read_text()
    for changes, told in (
        ({'rule': 'longrope(...)'}, r"rule: None there, 'longrope\(\.\.\.\)' here"),
        ({'seed': 1, 'documents': 5}, 'seed: 0 there, 1 here; documents: None there, 5 here; give'),
    ):
        with pytest.raises(state_file.SettingsChangedError, match=told):
            state_file.read(path, {**asked, **changes})
    assert path.read_text() == before
    for text in ('{"a": 1}', 'no json', '[]'):
        path.write_text(text)
        with pytest.raises(ValueError, match='was not written by a search'):
            state_file.read(path, asked)


@pytest.mark.full
@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: Space(8, 0.5), 'must be at least 1, got 0.5'),
        (lambda: Space(0, 2.0), 'at least 1 rotary plane, got 0'),
        (lambda: Space(8, 2.0, probability=0.0), r'probability must lie in \(0, 1\], got 0.0'),
        (
            lambda: Space(8, 2.0, starts=(-1, 2)),
            r'one or more counts of first positions, each at least 0, got \(-1, 2\)',
        ),
        (
            lambda: Space(8, 2.0, variant='dim_mono'),
            "variant is 'dim_mono'; did you mean 'dim_piece_mono'",
        ),
        (lambda: Space(8, 1.0, variant='dim_piece_mono'), 'use the variant free'),
        (
            lambda: Sizes(population=8, parents=9),
            '9 parents cannot be selected from a population of 8',
        ),
        (lambda: Sizes(parents=1), 'a crossover has two parents'),
        (lambda: Sizes(mutations=0, crossovers=0), 'both 0'),
        (lambda: Sizes(iterations=-1), 'iterations must be at least 0, got -1'),
        (lambda: ramp_factors(16, 1e4, 0.5, 64), 'must be at least 1, got 0.5'),
        (lambda: objectives.pick_documents(99, 50, 2), 'use at most 1 documents, or a longer text'),
        (lambda: objectives.pick_documents(99, 50, 0), 'documents must be at least 1, got 0'),
    ],
)
def test_wrong_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
