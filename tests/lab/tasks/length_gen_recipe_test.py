"""The recipe: the strings of the sheet, hints in question and answer, spaces in training only, ids
that FIRE sees.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.tasks.arithmetic import Addition, length_gen_recipe
from posenc_jax.lab.tasks.arithmetic.index_hints import draw_hints, hinted
from posenc_jax.lab.tasks.arithmetic.random_spaces import spread
from posenc_jax.protocol.capabilities import first_carry
from tests.golden_files import golden, golden_suite
from tests.lab.tasks.rows import make

GOLDEN = golden('length_gen_recipe')['values']
SYMBOLS = GOLDEN['symbols']
HINTED = dict(reverse_output=True, reverse_operands=True, index_hints=SYMBOLS)


def words(task, batch, row):
    """What a row says between its boundaries."""
    said = task.decode(np.append(batch['tokens'][row, :1], batch['targets'][row])).split()
    return said[1 : said.index('$', 1)]


def written(given, hints=lambda number: f'h{number}'):
    """Numbers as the format writes them, one after the other."""
    said, names = [], Addition(**HINTED)
    for sign, number in (('', given['a']), ('+', given['b']), ('=', given['a'] + given['b'])):
        digits = np.array([[int(d) for d in reversed(str(number))]])
        count = np.array([digits.shape[1]])
        values, count = hinted(digits, count, np.array([14 + given['start']]), True)
        said += [sign] * bool(sign) + names.decode(values[0, : count[0]]).split()
    return [hints(int(word[1:])) if word[0] == 'h' else word for word in said]


def highest_start(_, digits):
    starts = draw_hints(np.random.default_rng(0), np.full(20_000, int(digits) + 1), SYMBOLS)
    counts = np.bincount(starts)
    share = 1 / len(counts)  # of each start, all of which are equally likely
    assert abs(counts / 20_000 - share).max() < 5 * (share / 20_000) ** 0.5
    return starts.max()


test_golden = golden_suite(
    'length_gen_recipe',
    {
        'first.tokens': lambda given: written(given, 'abcdefghij'.__getitem__),
        'second.tokens': written,
        'highest_start_of_digits.*': highest_start,
    },
)


@pytest.mark.parametrize(
    'spec, reverse', [('length_gen_recipe(spaces=0)', True), ('addition(index_hints=102)', False)]
)
def test_every_digit_has_the_hint_of_its_significance(spec, reverse):
    """Against Python's own integers, for numbers of different lengths; the sum has no leading
    zero.
    """
    task = make(spec)
    batch = task.sample(np.random.default_rng(0), 200, (1, 6))
    carried = 0
    for row in range(200):
        numbers, start = [], None
        for number in re.split('[+=]', ' '.join(words(task, batch, row))):
            hints, digits = number.split()[::2], number.split()[1::2]
            order = slice(None) if reverse else slice(None, None, -1)
            hints = [int(h.removeprefix('h')) for h in hints[order]]
            start = hints[0] if start is None else start
            assert hints == list(range(start, start + len(digits)))
            numbers.append(''.join(digits[order][::-1]))
        a, b, c = map(int, numbers)
        assert numbers == [str(a), str(b), str(a + b)] and a + b == c
        carried += len(numbers[2]) > max(map(len, numbers[:2]))
        scored = batch['targets'][row][batch['loss_mask'][row] > 0]
        answer = words(task, batch, row)[-2 * len(numbers[2]) :]
        assert task.decode(scored).split() == [*answer, '$']
    assert carried > 10  # a carry has the next hint


@pytest.mark.parametrize('reverse', [True, False])
def test_hints_may_ascend_from_the_most_significant_digit(reverse):
    """As in the released code of position coupling: the digit of significance k has hint start + m
    - k, for operands of m digits and the sum of m + 1.
    """
    task = Addition(reverse_output=reverse, zero_pad=True, index_hints=12, first_hint='most')
    batch = task.sample(np.random.default_rng(0), 100, (1, 6))
    lowest, highest = set(), set()
    for row in range(100):
        of_a, of_b, of_c = (n.split() for n in re.split('[+=]', ' '.join(words(task, batch, row))))
        if reverse:
            of_c = [word for pair in zip(of_c[-2::-2], of_c[::-2]) for word in pair]
        a, b, c = (int(''.join(number[1::2])) for number in (of_a, of_b, of_c))
        assert a + b == c
        hints = [int(hint.removeprefix('h')) for hint in of_c[::2]]
        assert hints == list(range(hints[0], hints[0] + len(of_c) // 2))
        assert of_a[::2] == of_b[::2] == of_c[2::2]
        lowest.add(hints[0])
        highest.add(hints[-1])
    assert min(lowest) == 0 and max(highest) == 11


def test_starts_are_random_in_evaluation_as_well():
    task = length_gen_recipe().for_evaluation()
    batch = task.sample(np.random.default_rng(0), 100, 3)
    assert len({words(task, batch, row)[0] for row in range(100)}) > 50


def test_the_recipe_is_what_it_says():
    hinted = 'addition(reverse_output=True, reverse_operands=True, index_hints=102)'
    assert make('length_gen_recipe()') == make(f'random_spaces({hinted}, most=3)')
    plain = make('length_gen_recipe(reverse=False, index_hints=0, spaces=0)')
    assert plain == make('random_spaces(addition(), most=0)')


def test_spaces_in_training_only_and_one_vocabulary():
    task = length_gen_recipe()
    batch, plain = (t.sample(np.random.default_rng(1), 50, (1, 5)) for t in (task, task.task))
    test = task.for_evaluation()
    assert test.vocab_size == task.vocab_size == task.task.vocab_size + 1
    assert test.width(5) == task.task.width(5)
    spaces = 0
    for row in range(50):
        said = words(task, batch, row)
        spaces += said.count('.')
        assert [word for word in said if word != '.'] == words(task.task, plain, row)
    assert spaces > 500
    batch = test.sample(np.random.default_rng(1), 50, (1, 5))
    assert all('.' not in words(test, batch, row) for row in range(50))


def test_plain_ids_count_what_is_written():
    batch = length_gen_recipe(ids='plain').sample(np.random.default_rng(0), 20, (1, 4))
    for row in range(20):
        ends = int(np.nonzero(batch['loss_mask'][row])[0][-1]) + 1
        np.testing.assert_array_equal(batch['positions'][row, : ends + 1][:ends], np.arange(ends))


@pytest.mark.full
def test_fire_sees_the_drawn_ids():
    """`f(psi(p_i - p_j) / psi(max(T, p_i)))` at ids drawn for every row, in training and
    evaluation.
    """
    spec = f'randomized_pe(max_len={GOLDEN["fire_max_len"]}, per_row=True) | fire(width=8)'
    encoding = pj.make(spec, heads=2, rngs=nnx.Rngs(0))
    batch = length_gen_recipe(ids='plain').sample(np.random.default_rng(0), 2, (1, 2))
    tok = pj.Tokens.of(positions=batch['positions'][[0, 0]])
    fire, length = encoding.parts[1], tok.length
    psi = lambda x: np.log(np.abs(float(fire.c[...]) * x) + 1)
    for key in (None, jax.random.key(3)):
        placed = encoding.place(tok, key=key)
        p = np.asarray(placed.pos, np.float64)
        count = np.asarray(tok.pos).max()
        real = np.asarray(tok.pos) > 0
        assert p.max() > count and all((np.diff(row[of]) > 0).all() for row, of in zip(p, real))
        # A draw for every sequence; evaluation without a key has one.
        assert np.array_equal(p[0], p[1]) == (key is None)
        carry = first_carry(encoding, jnp.zeros((2, 2, length, 4)), placed)
        s, _ = encoding.logits(
            jnp.zeros((2, 2, length, length)), None, None, placed, placed, None, carry
        )
        i, j = 9, 4
        z = psi(p[:, i] - p[:, j]) / (psi(np.maximum(fire.threshold, p[:, i])) + 1e-6)
        hidden = np.maximum(np.asarray(fire.w1[0]) * z[:, None] + np.asarray(fire.w1[1]), 0)
        np.testing.assert_allclose(s[:, :, i, j], hidden @ np.asarray(fire.w2[...]), atol=1e-5)


def test_spread_keeps_loss_on_what_bore_it():
    batch = Addition().sample(np.random.default_rng(0), 30, (1, 4))
    gaps = np.random.default_rng(1).integers(0, 4, batch['tokens'].shape)
    spaced, ends = spread(batch, gaps, 99, batch['tokens'].shape[1] * 4)
    for row in range(30):
        kept = spaced['targets'][row] != 99
        for name in ('targets', 'loss_mask'):
            found = spaced[name][row][kept]
            np.testing.assert_array_equal(found, batch[name][row][: len(found)])
        assert not spaced['loss_mask'][row][~kept].any()
        assert ends[row] == np.nonzero(kept)[0][-1] + 2


def test_more_digits_than_hints_are_refused():
    with pytest.raises(ValueError, match='12 digits need 12 index hints, but there are 10'):
        draw_hints(np.random.default_rng(0), np.array([3, 12]), 10)


def test_it_trains_and_evaluates_from_a_config():
    """Everything that `validate` checks: the spec, shapes of model and data, the reach of the
    evaluation.
    """
    from configs import default
    from posenc_jax.lab.runs.run import validate

    config = default.get_config()
    config.task = 'length_gen_recipe(ids="plain")'
    config.encoding = 'randomized_pe(max_len=2048, per_row=True) | fire()'
    config.model.update(layers=1, width=16, heads=2)
    config.train.update(length=3, batch=8)
    config.eval.lengths = (3, 6)
    assert validate(config).name
    config.unlock()
    config.eval.lengths = (300,)
    with pytest.raises(ValueError, match='sums of 300-digit numbers need 301 index hints'):
        validate(config)


def test_evaluation_of_a_spaced_task_may_keep_its_spaces():
    task = dataclasses.replace(length_gen_recipe(), in_evaluation=True)
    batch = task.dataset(length=3, batch_size=8, seed=0, split='test')[0]
    assert any('.' in words(task, batch, row) for row in range(8))
