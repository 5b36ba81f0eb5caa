"""Characters of tokens: the mapping and its inverse, the vocabulary, mappings and questions."""

import re

import numpy as np
import pytest

from posenc_jax.lab.tasks.language.embedded import EmbeddedCorpus
from posenc_jax.lab.tasks.language.tipa import Tipa, character_mapping, learned_tokens, mapped_text


def texts(task, batch):
    """The tokens before the mark, and the rest, of each row, as text."""
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        words = task.decode(np.append(tokens[:1], targets)).split(' ')
        at = next(i for i, word in enumerate(words[1:], 1) if tokens[i] >= task.size + task.most)
        scored = task.decode(targets[mask == 1])
        yield words[:at], words[at], ' '.join(words[at + 1 :]).rstrip('_ '), scored


def spelled(word):
    """The reverse mapping as text, written from its definition."""
    pairs = [f'{number}: {character}' for number, character in enumerate(word, 1)]
    return ' '.join(pairs[::-1])


@pytest.mark.parametrize('text', ['a', 'int', 'naïve', '日本語', '𝄞𝄞', 'noon', '’s'])
def test_the_mapping_returns_to_the_text(text):
    for reverse in (True, False):
        mapping = character_mapping(text, reverse=reverse)
        assert mapped_text(mapping) == text and len(mapping) == len(text)
        assert [*mapping] == sorted(mapping, reverse=reverse)
    assert mapped_text(dict(sorted(character_mapping(text).items()))) == text


def test_the_mapping_by_hand():
    assert [*character_mapping('cat').items()] == [(3, 't'), (2, 'a'), (1, 'c')]
    assert character_mapping('é') == {1: 'é'}  # one character, though two bytes
    assert character_mapping('') == {}
    with pytest.raises(ValueError, match=r'must be 1 .. 2, got \[1, 3\]'):
        mapped_text({1: 'a', 3: 'b'})


@pytest.mark.parametrize('count', [1, (1, 4)])
def test_a_solver_agrees_on_a_thousand_mappings(count):
    task, single = Tipa(), 0
    vocabulary = set(task.vocabulary)
    batch = task.sample(np.random.default_rng(0), 1000, count)
    for tokens, mark, answer, scored in texts(task, batch):
        assert mark == '=' and answer == scored == f'{spelled("".join(tokens))} $'
        assert set(tokens) <= vocabulary
        single += len(tokens) == 1
    assert single == 1000 if count == 1 else 180 < single < 320


@pytest.mark.parametrize('held_out', [False, True])
def test_a_solver_agrees_on_a_thousand_questions(held_out):
    task = Tipa('character', held_out=held_out)
    batch = task.sample(np.random.default_rng(0), 1000, (1, 3))
    shares = []
    for tokens, mark, answer, scored in texts(task, batch):
        place, character = re.fullmatch(r'(\d+): (.)', answer).groups()
        word = ''.join(tokens)
        assert mark == '?' and scored == character == word[int(place) - 1]
        shares.append((int(place) - 0.5) / len(word))
    assert abs(np.mean(shares) - 0.5) < 0.04  # uniform over the word


def test_the_vocabulary_is_learned_from_the_text():
    tokens = learned_tokens(512)
    text = '\n'.join(text.decode() for text in EmbeddedCorpus('pydoc_topics').documents('train'))
    assert len(set(tokens)) == len(tokens) == 512
    assert all(token in text for token in tokens)
    assert {token for token in tokens if len(token) == 1} == set(''.join(text.split()))
    assert not any(re.search(r'\W', token) for token in tokens if len(token) > 1)
    learned_tokens.cache_clear()
    assert learned_tokens(512) == tokens


def test_questions_of_training_and_evaluation_share_no_token():
    training, evaluation = Tipa('both'), Tipa('both').for_evaluation()
    assert evaluation.form == 'character' and evaluation.held_out
    asked, held = set(training.asked()), set(evaluation.asked())
    assert not asked & held and asked | held == set(range(512))
    assert all(len(training.vocabulary[i]) > 1 for i in held) and 80 < len(held) < 120
    batch = training.sample(np.random.default_rng(0), 2000, 1)
    rows = list(texts(training, batch))
    ids = {token: i for i, token in enumerate(training.vocabulary)}
    questions = [ids[tokens[0]] for tokens, mark, _, _ in rows if mark == '?']
    mappings = [ids[tokens[0]] for tokens, mark, _, _ in rows if mark == '=']
    assert set(questions) <= asked and abs(len(questions) - 1000) < 120
    assert set(mappings) & held and set(mappings) & asked
    for tokens, mark, _, _ in texts(evaluation, evaluation.sample(np.random.default_rng(0), 99, 2)):
        assert mark == '?' and {ids[token] for token in tokens} <= held
    assert Tipa().for_evaluation().form == 'mapping'


def test_forward_mappings_begin_with_the_first_character():
    task = Tipa(reverse=False)
    for tokens, _, answer, _ in texts(task, task.sample(np.random.default_rng(0), 50, 2)):
        assert answer.startswith(f'1: {tokens[0][0]}')


def test_words_longer_than_the_positions_are_refused():
    longest = max(map(len, learned_tokens(512)))
    task = Tipa(most=longest)
    assert task.width(1) == 2 + 2 * longest
    with pytest.raises(ValueError, match=f'use at most 1 tokens or most={2 * longest}'):
        task.width(2)
