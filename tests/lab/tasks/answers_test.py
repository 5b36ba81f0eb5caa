"""Tasks whose answers follow from the text in front of them: solvers that read a row say which of
its tokens are scored and what they are.
"""

import numpy as np
import pytest

from posenc_jax.lab.tasks.arithmetic.addition import add_digits
from tests.lab.tasks.rows import make, rows


def added(question, reverse=False, pad=0):
    """The sum of numbers, filled up to their length and `pad` digits more."""
    numbers = question.split('+')
    if pad:
        assert len(set(map(len, numbers))) == 1
    else:
        assert numbers == [str(int(number)) for number in numbers]
    total = str(sum(map(int, numbers))).zfill(pad and len(numbers[0]) + pad)
    return total[::-1] if reverse else total


def padded_as_much_as_sums_need(question):
    """Of several numbers: all are as long as the largest sum of numbers with as many digits."""
    numbers = question.split('+')
    longest = max(len(str(int(number))) for number in numbers)
    width = len(str(len(numbers) * (10**longest - 1)))
    assert {len(number) for number in numbers} == {width}
    return str(sum(map(int, numbers))).zfill(width)[::-1]


STRINGS = {  # tasks `$question=answer$`
    'copy()': lambda x: x,
    'reverse()': lambda x: x[::-1],
    'bucket_sort()': lambda x: ''.join(sorted(x)),
    'parity()': lambda x: '01'[len(x.replace('0', '')) % 2],
    'addition()': added,
    'addition(reverse_output=True)': lambda x: added(x, reverse=True),
    'addition(zero_pad=True)': lambda x: added(x, pad=1),
    'addition(zero_pad=True, reverse_output=True)': lambda x: added(x, reverse=True, pad=1),
    'sums(operands=2)': padded_as_much_as_sums_need,
    'sums(operands=3)': padded_as_much_as_sums_need,
    'sums(operands=7)': padded_as_much_as_sums_need,
}


@pytest.mark.parametrize('length', [1, 5, 30, (1, 8)])
@pytest.mark.parametrize('spec', STRINGS)
def test_a_solver_agrees_and_loss_covers_the_answer_and_the_end(spec, length):
    task, seen = make(spec), set()
    for ids, scored in rows(task, length, 400):
        whole = task.decode(ids).rstrip('_')
        question, answer = whole[1:-1].split('=')
        assert whole[0] == '$' and task.decode(ids[scored]) == f'{answer}$'
        assert answer == STRINGS[spec](question)
        seen.add(len(question.split('+')[0]))
    if 'pad' not in spec and 'sums' not in spec:
        assert seen == ({length} if isinstance(length, int) else set(range(1, 9)))


def test_a_vocabulary_is_the_symbols_and_three_signs():
    assert make('copy(symbols=4)').vocab_size == 7


def test_add_digits_carries_through():
    a, b = np.array([[9, 9, 9], [5, 0, 0]]), np.array([[1, 0, 0], [4, 0, 0]])
    np.testing.assert_array_equal(add_digits(a, b), [[0, 0, 0, 1], [9, 0, 0, 0]])


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


TEXTS = {  # solver, its options, and lengths
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
    'spec, length', [(spec, length) for spec, (*_, lengths) in TEXTS.items() for length in lengths]
)
def test_the_scored_words_are_those_that_a_reader_finds(spec, length):
    (solver, options, _), task, seen = TEXTS[spec], make(spec), set()
    for ids, scored in rows(task, length):
        words = task.decode(ids).split()
        end = words.index('_') if '_' in words else len(words)
        assert set(words[end:]) <= {'_'}
        answers, own_length = solver(words[:end], *options)
        assert {int(place): words[place] for place in scored} == answers
        seen.add(own_length)
    low, high = length if isinstance(length, tuple) else (length, length)
    assert seen == set(range(low, high + 1))
