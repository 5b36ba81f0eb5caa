"""The tests of `ruler_lite`: answers that a reader of the prompt finds, and where lines lie."""

import collections
import re
import uuid

import numpy as np
import pytest

from posenc_jax.lab.tasks.retrieval.ruler_lite import NAMES, NEEDLES, RulerLite, string_match_all
from posenc_jax.lab.tasks.retrieval.ruler_texts import NOISE, words, zeta_counts

LENGTH = {'common_words': 7000}
NEEDLE = re.compile(r'One of the special magic (\w+) for ([a-z-]+\d*) is: (\S+)\.')


def found(name, prompt):
    """The answer, from the text of the prompt alone."""
    if name in NEEDLES:
        values = collections.defaultdict(list)
        for _, key, value in NEEDLE.findall(prompt):
            values[key].append(value)
        asked = re.search(r'What are all the special magic \w+ for (.*?) mentioned', prompt)[1]
        return [value for key in re.split(', and |, ', asked) for value in values[key]]
    if name == 'variable_tracking':
        wanted = re.search(r'assigned the value (\d+)\.', prompt)[1]
        held, names = {}, []
        for left, right in re.findall(r'VAR (\w+) = (?:VAR )?(\w+)', prompt):
            held[left] = right if right.isdigit() else held[right]
            names += [left] * (held[left] == wanted)
        return names
    if name == 'common_words':
        entries = re.findall(r'(\d+)\. (\S+)', prompt)
        assert [int(number) for number, _ in entries] == [*range(1, len(entries) + 1)]
        counts = collections.Counter(word for _, word in entries)
        assert sorted(set(counts.values())) in ([3, 30], [30])
        return [word for word, n in counts.items() if n == 30]
    text = prompt.split('\n')[1].split()
    counts = collections.Counter(text).most_common()
    assert counts[0][0] == '...' and all(re.fullmatch('[a-z]{6}', word) for word, _ in counts[1:])
    assert counts[1][1] > counts[2][1] > counts[3][1] > counts[4][1]
    return [word for word, _ in counts[1:4]]


@pytest.mark.parametrize('name', NAMES)
def test_a_reader_finds_the_answer(name):
    task, length = RulerLite(name), LENGTH.get(name, 1500)
    count = 6
    batch = task.sample(np.random.default_rng(0), count, length)
    asked = task.questions(np.random.default_rng(0), count, length)
    assert batch['tokens'].shape == (count, length)
    for row, (prompt, references) in enumerate(asked):
        scored = np.flatnonzero(batch['loss_mask'][row])
        assert length - 120 < scored[-1] + 1 <= length
        assert task.decode(batch['tokens'][row][1 : scored[0] + 1]) == prompt
        answer = task.decode(batch['targets'][row][scored])
        assert answer == f' {", ".join(references)}' and list(references) == found(name, prompt)
        several = 4 if name in ('niah_multivalue', 'niah_multiquery') else 1
        expected = {'variable_tracking': 5, 'common_words': 10, 'freq_words': 3}
        assert len(references) == expected.get(name, several)
    assert len({references for _, references in asked}) == count


@pytest.mark.parametrize('name', ['niah_single', 'niah_multikey', 'variable_tracking'])
@pytest.mark.parametrize('depth', [0.0, 0.5, 1.0])
def test_the_first_line_lies_at_its_depth(name, depth):
    task = RulerLite(name, depth=depth)
    other = RulerLite(name, depth=0.3).questions(np.random.default_rng(1), 4, 1600)
    for (prompt, references), (_, same) in zip(
        task.questions(np.random.default_rng(1), 4, 1600), other
    ):
        lines = prompt.split('\n')[1:-1]
        first = next(i for i, line in enumerate(lines) if references[0] in line)
        before = lines[:first].count(NOISE)
        assert before == int(depth * lines.count(NOISE) + 0.5) and references == same


def test_chains_keep_their_order_and_places_vary():
    places = set()
    task = RulerLite('variable_tracking')
    for prompt, names in task.questions(np.random.default_rng(0), 20, 900):
        at = [prompt.index(f'VAR {name} =') for name in names]
        assert at == sorted(at)
        places.add(tuple(prompt[:start].count(NOISE) for start in at))
    assert len(places) > 10


def test_needles_of_other_keys_are_a_haystack():
    task = RulerLite('niah_multikey', haystack='needles', values='uuids', needles=3)
    for prompt, (value,) in task.questions(np.random.default_rng(0), 3, 3000):
        lines = prompt.split('\n')[1:-1]
        kinds, keys, values = zip(*(NEEDLE.fullmatch(line).groups() for line in lines))
        assert len(lines) > 20 and set(kinds) == {'uuids'} and len(set(keys)) == len(lines)
        assert all(uuid.UUID(v).version == 4 for v in values) and values.count(value) == 1
    plain = RulerLite('niah_single').questions(np.random.default_rng(0), 1, 900)[0][0]
    assert len(NEEDLE.findall(plain)) == 1 and plain.count(NOISE) == 6


def test_counts_are_those_of_the_zeta_law():
    share = sum(1 / k**2 for k in range(1, 200_000))
    for n in (80, 500):
        expected = [int(n / k**2 / share) for k in range(1, n)]
        assert zeta_counts(n) == [count for count in expected if count]


def test_words_are_different_and_begin_alike():
    many = words(np.random.default_rng(0), 6000)
    assert len(set(many)) == 6000 and many[:10] == words(np.random.default_rng(0), 10)


def test_the_score_of_ruler():
    references = [['1234567', '7654321'], ['AbC']]
    assert string_match_all(['7654321 and 1234567', 'is abc.'], references) == 100
    assert string_match_all(['7654321', 'none'], references) == 25
    with pytest.raises(ValueError, match='got 1 outputs and 2 lists'):
        string_match_all(['a'], references)
