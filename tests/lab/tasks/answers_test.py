"""Tasks whose answers stand in the text itself: solvers that read the words of a row say which
words are scored and what they are.
"""

import numpy as np
import pytest

from tests.lab.tasks.rows import make


def words_of(task, length, batch=200):
    """The words of each row without padding, and the places of those that are scored."""
    data = task.sample(np.random.default_rng(0), batch, length)
    for tokens, targets, mask in zip(data['tokens'], data['targets'], data['loss_mask']):
        words = task.decode(np.append(tokens[:1], targets)).split()
        end = words.index('_') if '_' in words else len(words)
        assert set(words[end:]) <= {'_'} and set(mask) <= {0, 1}
        yield words[:end], 1 + np.flatnonzero(mask)


def passkey(words, digits):
    key, ask = words.index('KEY'), words.index('ASK')
    filler = words[:key] + words[key + 1 + digits : ask]
    assert all(word[0] == 'f' for word in filler)
    return {ask + i: words[key + i] for i in range(1, digits + 1)}, len(words) - 1


def passkeys(words, keys, size):
    places = [words.index(f'{mark}{k}') for mark in ('KEY', 'ASK') for k in range(1, keys + 1)]
    said = {place + i for place in places for i in range(size + 1)}
    assert places == sorted(places) and len(said) == 2 * keys * (size + 1)
    assert all((word[0] == 'f') == (i not in said) for i, word in enumerate(words))
    pairs = list(zip(places, places[keys:]))
    answers = {ask + i: words[key + i] for key, ask in pairs for i in range(1, size + 1)}
    assert all(word[0] == 'w' for word in answers.values())
    return answers, len(words) - 1


def flip_flop(words):
    assert words[0] == 'w' and words[-2] == 'r'
    memory, read = '', {}
    for place, (instruction, bit) in enumerate(zip(words[::2], words[1::2])):
        memory = bit if instruction == 'w' else memory
        read |= {2 * place + 1: memory} if instruction == 'r' else {}
    return read, len(words) // 2


def selective_copy(words, blanks):
    equals = words.index('=')
    symbols = [word for word in words[:equals] if word != '.']
    assert equals - len(symbols) == int(blanks * len(symbols) + 0.5)
    return dict(enumerate([*symbols, '$'], equals + 1)), len(symbols)


def code_mixed(words, switches):
    asked = [i for i, word in enumerate(words) if word.endswith('?')]
    text, numbers = words[: asked[0]], [int(words[i][:-1]) for i in asked]
    after = [i for i in range(1, len(text)) if text[i][0] != text[i - 1][0]]
    assert len(after) == switches and sorted(numbers) == list(range(1, switches + 1))
    assert asked == [len(text) + 2 * i for i in range(switches)]
    return {i + 1: text[after[-k]] for i, k in zip(asked, numbers)}, len(text)


def kv_slots(words, size):
    ask = words.index('ASK')
    values = {words[i]: words[i + 1 : i + 1 + size] for i in range(0, ask, size + 1)}
    assert all(key[0] == 'k' for key in values) and len(values) * (size + 1) == ask
    assert all(word[0] == 'v' for pair in values.values() for word in pair)
    return dict(enumerate(values[words[ask + 1]], ask + 2)), len(values)


SOLVERS = {
    'passkey(digits=1)': (passkey, (1,), [48, 3, (9, 20)]),
    'passkey(digits=3)': (passkey, (3,), [48, 7, (9, 20)]),
    'passkeys(keys=2, words=3, alphabet=9, fillers=5)': (passkeys, (2, 3), [40, 15, (15, 30)]),
    'flip_flop(ignore=0.1)': (flip_flop, (), [8, (3, 20)]),
    'flip_flop(ignore=0.8)': (flip_flop, (), [8, (3, 20)]),
    'flip_flop(ignore=0.98)': (flip_flop, (), [8, (3, 20)]),
    'selective_copy(symbols=16, blanks=0.5)': (selective_copy, (0.5,), [8, (1, 12)]),
    'selective_copy(symbols=16, blanks=1.0)': (selective_copy, (1.0,), [8, (1, 12)]),
    'selective_copy(symbols=16, blanks=2.0)': (selective_copy, (2.0,), [8, (1, 12)]),
    'code_mixed()': (code_mixed, (6,), [24, 7, (9, 20)]),
    'code_mixed(letters=2, switches=3)': (code_mixed, (3,), [24, 7, (9, 20)]),
    'kv_slots(keys=9, values=5)': (kv_slots, (2,), [4, (3, 6)]),
    'kv_slots(keys=9, values=5, words=1)': (kv_slots, (1,), [4, (3, 6)]),
}


@pytest.mark.parametrize(
    'spec, length',
    [(spec, length) for spec, (*_, lengths) in SOLVERS.items() for length in lengths],
)
def test_the_scored_words_are_those_that_a_reader_finds(spec, length):
    solver, options, _ = SOLVERS[spec]
    seen = set()
    for words, scored in words_of(make(spec), length):
        answers, own_length = solver(words, *options)
        assert {int(place): words[place] for place in scored} == answers
        seen.add(own_length)
    low, high = length if isinstance(length, tuple) else (length, length)
    assert seen == set(range(low, high + 1))
