"""The 15 tasks: a solver written from their text, the published examples, the shapes and the
masks.
"""

import math

import numpy as np
import pytest

from posenc_jax.lab.tasks.chomsky15.chomsky15 import CLASSES, PROBLEMS, Chomsky15
from posenc_jax.protocol.errors import SpecError

# The published sizes: input ids, output ids, and the output length for n = 9.
SIZES = {
    'even_pairs': (2, 2, 1),
    'modular_arithmetic': (9, 5, 1),
    'parity_check': (2, 2, 1),
    'cycle_navigation': (3, 5, 1),
    'stack_manipulation': (5, 3, 10),
    'reverse_string': (2, 2, 9),
    'modular_arithmetic_brackets': (11, 5, 1),
    'solve_equation': (11, 5, 1),
    'duplicate_string': (2, 2, 18),
    'missing_duplicate_string': (4, 2, 1),
    'odds_first': (2, 2, 9),
    'binary_addition': (3, 3, 10),
    'binary_multiplication': (3, 3, 9),
    'compute_sqrt': (2, 2, 5),
    'bucket_sort': (5, 5, 9),
}
# Inputs and outputs by hand, from the paper's appendix and from the text of the released code.
EXAMPLES = [
    ('even_pairs', [0, 1, 0, 1], [1]),
    ('even_pairs', [0, 1, 1, 0], [0]),
    ('parity_check', [1, 0, 1, 1], [1]),
    ('modular_arithmetic', [2, 6, 3, 7, 1, 7, 1], [4]),
    ('modular_arithmetic', [0, 7, 1, 5, 4, 7, 3, 6, 2], [0]),
    ('cycle_navigation', [2, 0, 1, 0, 0], [3]),
    ('stack_manipulation', [0, 1, 1, 0, 4, 2, 2], [1, 1, 0, 2, 0, 0, 0, 0]),
    ('stack_manipulation', [1, 1, 0, 2, 2, 2, 2], [2, 0, 0, 0, 0, 0, 0, 0]),
    ('reverse_string', [1, 0, 0], [0, 0, 1]),
    ('modular_arithmetic_brackets', [8, 0, 6, 8, 6, 3, 9, 9], [3]),
    ('solve_equation', [7, 0, 6, 6, 9, 8, 10, 3], [3]),
    ('duplicate_string', [1, 0], [1, 0, 1, 0]),
    ('missing_duplicate_string', [0, 1, 1, 0, 0, 1, 2, 0], [1]),
    ('missing_duplicate_string', [1, 0, 1, 1, 2, 1, 3], [0]),
    ('odds_first', [1, 1, 1, 1, 0, 0, 0, 1], [1, 1, 0, 1, 1, 1, 0, 0]),
    ('binary_addition', [0, 0, 1, 2, 0, 1, 1, 0, 1], [0, 1, 0, 1, 1, 2, 0, 0, 0, 0]),
    ('binary_multiplication', [0, 0, 1, 2, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 0, 1, 2, 0]),
    ('compute_sqrt', [0, 0, 1, 1, 1, 0, 1, 1], [0, 1, 1, 1]),
    ('compute_sqrt', [1, 0, 0, 1, 0, 1], [1, 1, 0]),
    ('bucket_sort', [3, 0, 4, 0], [0, 0, 3, 4]),
]

every_name = pytest.mark.parametrize('name', SIZES)


def little(text):
    return sum(2**place for place, bit in enumerate(text) if bit == '1')


def little_text(number):
    return f'{number:b}'[::-1]


def run_stack(text):
    stack = ''
    for symbol in text:
        stack = stack[:-1] if symbol == '2' else stack + {'3': '0', '4': '1'}.get(symbol, symbol)
    return stack[::-1]


def value(ids, symbols):
    return eval(''.join(symbols[i] for i in ids)) % 5


def root_of(ids):
    if len(ids) < 3:
        return 0
    left, right = ''.join('01234+-()x='[i] for i in ids).split('=')
    (x,) = [x for x in range(5) if (eval(left.replace('x', str(x))) - int(right)) % 5 == 0]
    return x


def missing(text):
    if len(text) == 1:
        return '1'
    bits, half = text.rstrip('3'), len(text) // 2
    (found,) = [b if a == '2' else a for a, b in zip(bits, bits[half:]) if '2' in a + b]
    return found


def product(text):
    a, _, b = text.partition('2')
    return little_text(little(a) * little(b)) if len(text) > 2 else '0' * (len(text) - 1)


def square_root(text):
    root, number = 0, little(text[::-1])
    while (root + 1) ** 2 <= number:
        root += 1
    return little_text(root).ljust((len(text) + 1) // 2, '0')[::-1]


# Solvers that were written from the text of the tasks, by other means; they read the ids as text.
SOLVERS = {
    'even_pairs': lambda x: sum(a != b for a, b in zip(x, x[1:])) % 2,
    'parity_check': lambda x: x.count('1') % 2,
    'cycle_navigation': lambda x: (x.count('2') - x.count('0')) % 5,
    'reverse_string': lambda x: ''.join(reversed(x)),
    'duplicate_string': lambda x: x * 2,
    'odds_first': lambda x: x[1::2] + x[::2],
    'bucket_sort': lambda x: ''.join(symbol * x.count(symbol) for symbol in '01234'),
    'missing_duplicate_string': missing,
    'stack_manipulation': lambda x: (run_stack(x) + '2').ljust(len(x) + 1, '0'),
    'binary_addition': lambda x: (little_text(sum(map(little, x.split('2')))) + '2').ljust(
        len(x) + 1, '0'
    ),
    'binary_multiplication': lambda x: (product(x) + '2').ljust(len(x), '0'),
    'compute_sqrt': square_root,
}
OF_IDS = {  # solvers that read the ids themselves, since an id of two digits is no letter
    'modular_arithmetic': lambda ids: value(ids, '01234+-*'),
    'modular_arithmetic_brackets': lambda ids: value(ids, '01234+-*()'),
    'solve_equation': root_of,
}


def solved(name, ids):
    return str(OF_IDS[name](ids) if name in OF_IDS else SOLVERS[name](''.join(map(str, ids))))


def parts(task, batch):
    """The input and the output ids of each row, found by `valid` and the empty token."""
    for tokens, targets, valid in zip(batch['tokens'], batch['targets'], batch['valid']):
        tokens, empty = tokens[valid], tokens[valid] == task.vocab_size - 1
        begin = int(np.argmax(empty))
        assert empty[begin:].all()
        yield tokens[:begin].tolist(), targets[valid][begin:].tolist()


@every_name
def test_a_solver_agrees_on_a_thousand_samples(name):
    task = Chomsky15(name)
    rows = [
        row
        for number in range(40)
        for row in parts(task, task.sample(np.random.default_rng(number), 25, (1, 16)))
    ]
    assert len(rows) == 1000 and len({len(ids) for ids, _ in rows}) > 7
    for ids, answer in rows:
        assert ''.join(map(str, answer)) == solved(name, ids), ids
    assert len({tuple(ids) for ids, _ in rows}) > 300
    if name != 'missing_duplicate_string':  # where few long strings are equal, every class occurs
        assert {a for _, answer in rows for a in answer} == set(range(task.output_size))


@pytest.mark.parametrize('name, ids, answer', EXAMPLES)
def test_published_examples(name, ids, answer):
    assert PROBLEMS[name].solve(np.array([ids]))[0].tolist() == answer


@every_name
def test_sizes_are_the_published_ones(name):
    task, (inputs, outputs, output_length) = Chomsky15(name), SIZES[name]
    assert (task.vocab_size, task.output_size) == (inputs + 1, outputs)
    assert task.width(9) == 9 + output_length
    ((ids, answer),) = parts(task, task.sample(np.random.default_rng(0), 1, 9))
    assert (len(ids), len(answer)) == (9, output_length)
    assert set(SIZES) == set(PROBLEMS)


def test_an_even_length_of_modular_arithmetic_has_one_symbol_less():
    task = Chomsky15('modular_arithmetic')
    assert task.width(8) == 7 + 1 and task.width((1, 8)) == 8
    ((ids, _),) = parts(task, task.sample(np.random.default_rng(0), 1, 8))
    assert len(ids) == 7


@every_name
def test_a_batch_has_one_length_and_the_width_of_the_longest(name):
    task, seen = Chomsky15(name), set()
    for seed in range(60):
        batch = task.sample(np.random.default_rng(seed), 3, (2, 6))
        count = batch['valid'].sum(axis=1)
        assert batch['tokens'].shape == (3, task.width(6)) and len(set(count)) == 1
        assert batch['valid'][0, : count[0]].all()
        assert not batch['loss_mask'][~batch['valid']].any()
        seen.add(int(count[0]))
    assert seen == {task.width(n) for n in range(2, 7)}


@every_name
def test_all_outputs_bear_loss_in_training(name):
    task = Chomsky15(name)
    batch = task.sample(np.random.default_rng(0), 8, 9)
    np.testing.assert_array_equal(batch['loss_mask'] == 1, batch['tokens'] == task.vocab_size - 1)
    assert not batch['targets'][batch['loss_mask'] == 0].any()


@every_name
def test_what_follows_the_terminator_does_not_count_in_evaluation(name):
    task = Chomsky15(name)
    plain = task.sample(np.random.default_rng(0), 200, 9)
    scored = task.for_evaluation().sample(np.random.default_rng(0), 200, 9)
    ending = ('binary_addition', 'binary_multiplication', 'stack_manipulation')
    assert np.array_equal(plain['loss_mask'], scored['loss_mask']) == (name not in ending)
    for targets, before, mask in zip(plain['targets'], plain['loss_mask'], scored['loss_mask']):
        answer, kept = targets[before == 1].tolist(), mask[before == 1].tolist()
        count = answer.index(2) + 1 if name in ending else len(answer)
        assert kept == [1.0] * count + [0.0] * (len(answer) - count)


def test_operands_are_positive():
    tokens = Chomsky15('binary_addition').sample(np.random.default_rng(0), 2000, 9)['tokens']
    of_three = tokens[np.argmax(tokens[:, :9] == 2, axis=1) == 3]
    assert {little(''.join(map(str, row[:3]))) for row in of_three} == set(range(1, 8))


def test_roots_of_long_numbers_are_exact():
    """Far beyond 64 bits: the root is the largest number whose square is not above."""
    task = Chomsky15('compute_sqrt')
    for ids, answer in parts(task, task.sample(np.random.default_rng(0), 20, 301)):
        number, root = (int(''.join(map(str, bits)), 2) for bits in (ids, answer))
        assert root == math.isqrt(number) and root**2 <= number < (root + 1) ** 2


@every_name
def test_a_class_is_the_one_symbol_of_the_output(name):
    if SIZES[name][2] > 1:
        with pytest.raises(SpecError, match=f'the output of {name} has .*, or one of even_pairs, '):
            Chomsky15(name, readout='class')
        return
    tape, task = Chomsky15(name), Chomsky15(name, readout='class')
    assert (tape.predicts, task.predicts) == ('here', 'class') and name in CLASSES
    assert (task.width(9), task.width((1, 9))) == (9, 9)
    for seed in range(5):
        plain = tape.sample(np.random.default_rng(seed), 6, (3, 9))
        batch = task.sample(np.random.default_rng(seed), 6, (3, 9))
        count = int(batch['valid'][0].sum())
        assert count == plain['valid'][0].sum() - 1 and batch['valid'][:, :count].all()
        np.testing.assert_array_equal(batch['tokens'][:, :count], plain['tokens'][:, :count])
        assert (batch['tokens'] < task.vocab_size - 1).sum() == 6 * count
        np.testing.assert_array_equal(batch['targets'], plain['targets'][:, count : count + 1])
        np.testing.assert_array_equal(batch['loss_mask'], np.ones((6, 1), np.float32))
