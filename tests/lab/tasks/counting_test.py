import numpy as np
import pytest

from posenc_jax.lab.tasks.formal import Counting


def run(text):
    """What a program prints, and its values after every step."""
    words, values, history = text.split(), {}, []
    while words:
        word = words.pop(0)
        if word == 'print':
            return values[words.pop(0)], history
        if word == 'set':
            name, number = words.pop(0), words.pop(0)
            assert number == '0'
            values[name] = 0
        elif word == 'incr':
            values[words.pop(0)] += 1
        else:
            assert word == 'pass'
        history.append((word, dict(values)))


@pytest.mark.parametrize('variables', [1, 3, 5])
@pytest.mark.parametrize('length', [40, (6, 30)])
def test_the_answer_is_what_the_program_prints(variables, length):
    task = Counting(variables=variables, passes=0.3)
    batch = task.sample(np.random.default_rng(0), 100, length)
    high = length if isinstance(length, int) else length[1]
    assert batch['tokens'].shape == (100, task.width(length)) == (100, 3 * high + 2)
    assert (batch['loss_mask'].sum(axis=1) == 1).all()
    sizes, printed = set(), set()
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        text = task.decode(tokens).rstrip('_ ')
        value, history = run(text)
        assert task.decode(targets[mask == 1]) == str(value)
        assert task.decode(tokens[mask == 1]) == text.split('print ')[1].split()[0]
        assert [word for word, _ in history[:variables]] == ['set'] * variables
        assert all(0 <= n <= 10 for _, values in history for n in values.values())
        sizes.add(len(history))
        printed.add(value)
    assert sizes == {40} if length == 40 else min(sizes) < 10 < 26 < max(sizes) <= 30
    assert len(printed) > 4


def test_operations_have_their_probabilities():
    task = Counting(passes=0.5, sets=0.2)
    batch = task.sample(np.random.default_rng(0), 100, 20)
    words = [w for row in batch['tokens'] for w, _ in run(task.decode(row).rstrip('_ '))[1][1:]]
    shares = [words.count(word) / len(words) for word in ('pass', 'set', 'incr')]
    np.testing.assert_allclose(shares, [0.5, 0.1, 0.4], atol=0.04)


def test_a_full_variable_is_set_to_0():
    task = Counting(passes=0.0, sets=0.0)
    text = task.decode(task.sample(np.random.default_rng(0), 1, 13)['tokens'][0])
    assert text.startswith('set a 0 ' + 'incr a ' * 10 + 'set a 0 incr a print a')
    value, history = run(text.rstrip('_ '))
    assert value == 1 and max(values['a'] for _, values in history) == 10


def steps(task, batch, length):
    """The operations of programs, each with the values before it."""
    rows = task.sample(np.random.default_rng(0), batch, length)['tokens']
    histories = [run(task.decode(row).rstrip('_ '))[1] for row in rows]
    return [
        (word, tuple(before.values()))
        for history in histories
        for (_, before), (word, _) in zip(history[task.variables - 1 :], history[task.variables :])
    ]


def test_the_mix_of_the_released_code():
    """Weights 1 : 50 : 7, and no program sets more often because a variable is full."""
    task = Counting(variables=3, passes=50 / 58, sets=1 / 8, full='redraw')
    found = steps(task, 60, 300)
    free = [word for word, values in found if 10 not in values]
    shares = [free.count(word) / len(free) for word in ('set', 'pass', 'incr')]
    np.testing.assert_allclose(shares, [1 / 58, 50 / 58, 7 / 58], atol=0.01)
    words = [word for word, _ in found]
    assert words.count('set') / len(words) == pytest.approx(1 / 58, abs=0.005)


@pytest.mark.parametrize('full', [(10, 0), (10, 10)])
def test_a_step_of_full_variables_is_drawn_again(full):
    """The shares are those of the steps that are possible."""
    task = Counting(variables=2, passes=0.2, sets=0.1, full='redraw')
    found = [
        word
        for word, values in steps(task, 150, 90)
        if sum(n == 10 for n in values) == full.count(10)
    ]
    weights = np.array([0.2, 0.8 * 0.1, 0.8 * 0.9 * (2 - full.count(10)) / 2])
    shares = [found.count(word) / len(found) for word in ('pass', 'set', 'incr')]
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.04)
