"""The tasks of `impact_pe`: the strings of the released code, solvers that read the prompts, and
scratchpads that are replayed.
"""

import collections
import math
import re

import numpy as np
import pytest

from posenc_jax.lab.tasks.impact_pe import scratchpad
from posenc_jax.lab.tasks.impact_pe.impact_pe import FAMILIES, ImpactPE
from posenc_jax.lab.tasks.impact_pe.lego import lego_example
from posenc_jax.lab.tasks.impact_pe.numbers import (
    addition_example,
    parity_example,
    poly_example,
    sum_example,
)
from posenc_jax.lab.tasks.impact_pe.sorting import RANKED, sort_example
from tests.lab.tasks.scan_test import interpreted

every_name = pytest.mark.parametrize('name', FAMILIES)
WITH_STEPS = [name for name, family in FAMILIES.items() if family.parts]
SHORT = {'scan': (1, 25), 'pcfg': (1, 8), 'lego': (2, 8)}
LONG = {'scan': (26, 48), 'pcfg': (9, 35), **dict.fromkeys(WITH_STEPS, (9, 16))}


def ranked(text):
    return [RANKED.index(letter) for letter in text]


# The strings of the sheet, read in the released code: the prompt, the answer, the parts of a
# scratchpad, and patterns of its text.
SHEET = [
    (
        sum_example([3, 9]), 'Compute: 3 + 9 .', 'The answer is 2 .', 'icovr',
        ['^Thinking step by step:  in 3 comp 3 + sum = 3 + 0 = out 3 [ sum: 3 = 3 ] re 9  # in 9 '
         'comp 9 + sum = 9 + 3 = out 1 2 [ sum: 1 2 = 2 ] re   . Thus,  The answer is 2 .$'],
    ),
    (
        parity_example([1, 1, 0, 1]), "Is the number of 1's even in the sequence [ 1, 1, 0, 1 ] ? ",
        'The answer is No.', 'icovr',
        ['in 1 comp 1 ** par = 1 ** 0 out 1 [ par: 1 ] re [ 1, 0, 1 ]  # ',
         're [  ]  . Thus,  The answer is No.$'],
    ),
    (
        addition_example(537, 98), 'Compute 5 3 7 + 9 8 ? ', 'The answer is 6 3 5.', 'icovr',
        ['in 7, 8 comp 7 + 8 + carry = 15 + 0 = 15 out 5 [ carry: 1 ] re 5 3 + 9  #',
         'out 6 [ carry: 0 ] re  +   . Thus,  The answer is 6 3 5.$'],
    ),
    (  # A carry has a step of its own, and the padding zeros of an operand are one zero.
        addition_example(999, 1), 'Compute 9 9 9 + 1 ? ', 'The answer is 1 0 0 0.', 'icovr',
        ['re 9 9 + 0  # in 9, 0', '0, 0 comp 0 + 0 + carry = 0 + 1 = 1 out 1 [ carry: 0 ] re  +   '
         '. Thus,  The answer is 1 0 0 0.$'],
    ),
    (  # -16 - 3 = -19, which is 1 modulo 10
        poly_example(-2, [(2, 3), (-3, 0)]),
        'Evaluate at x = - 2 in 2 * x ** 3 + - 3 * x ** 0 ? ', 'The answer is 1.', 'icovr',
        ['^Thinking step by step:  in 2 * x ** 3 comp 2 * - 2 ** 3 = 2 * - 8 out - 1 6 [ sum: 0 + '
         '- 1 6 = 4 ] re - 3 * x ** 0  # in - 3 * x ** 0 comp'],
    ),
    (
        sort_example(ranked('MEF'), RANKED.__getitem__), 'Sort the following list [ M, E, F ]. ',
        'The sorted list is [ E, F, M ].', 'icor', [],
    ),
    (
        sort_example(ranked('MEFFO'), RANKED.__getitem__),
        'Sort the following list [ M, E, F, F, O ]. ', 'The sorted list is [ E, F, F, M, O ].',
        'icor', ['^Thinking step by step:  in M comp The minimum of the unsorted portion out E re '
                 '[ M, F, F, O ]  # in M comp'],
    ),
    (
        lego_example('abc', [-1, -1, 1], 2, range(3)),
        'If a = -1, b = + a, c = - b. Then, what is the value of c? ', 'The answer is +1.', 'icor',
        [],
    ),
    (  # the order of clauses of the released example
        lego_example('qtcfr', [-1, 1, 1, -1, -1], 2, [2, 4, 1, 0, 3]),
        'If c = + t, r = + f, t = - q, q = -1, f = - c. Then, what is the value of c? ',
        'The answer is +1.', 'icor',
        ['^Thinking step by step:  in q comp  out -1 re c = + t, r = + f, t = - q, f = - c  # in t '
         'comp - q = - -1 out +1 re c = + t, r = + f, f = - c  # in c '],
    ),
]  # fmt: skip


@pytest.mark.parametrize('example, prompt, answer, parts, patterns', SHEET)
def test_the_strings_of_the_sheet(example, prompt, answer, parts, patterns):
    assert (example.prompt, example.answer) == (prompt, answer)
    text = f'^{scratchpad.written(example.steps, parts)} {example.answer}$'
    assert all(pattern in text for pattern in patterns)


def listed(text):
    return [item.replace(' ', '') for item in re.findall(r'\[ (.*?) \]', text)[-1].split(',')]


def applied(words):
    """The value of an expression of functions, by a stack that is read from the right."""
    stack, string = [], []
    for word in reversed(words):
        if word.islower():
            stack, string = [*stack, *[string] * bool(string)], []
            x = stack.pop()
            if word in ('append', 'prepend', 'remove_first', 'remove_second'):
                y = stack.pop()
                value = {'append': x + y, 'prepend': y + x, 'remove_first': y}.get(word, x)
            elif word == 'swap_first_last':
                value = x if len(x) == 1 else x[-1:] + x[1:-1] + x[:1]
            else:
                value = {'copy': x, 'reverse': x[::-1], 'shift': x[1:] + x[:1]}.get(word)
                value = value or (x + x[-1:] if word == 'echo' else x + x)
            stack.append(value)
        elif word == ',':
            stack, string = [*stack, *[string] * bool(string)], []
        else:
            string = [word, *string]
    (value,) = [*stack, *[string] * bool(string)]
    return value


def solved(name, prompt):
    """The answer, from the text of the prompt alone."""
    text = prompt.strip()
    if name.startswith(('copy', 'reverse')):
        string = re.fullmatch(r'.*?(?:: | in )(.*) \[SEP\]', text)[1]
        if name == 'copy_replace':
            one, other = re.match(r'Replace (.) with (.) in', text).groups()
            return string.replace(one, other)
        backward, again = ' '.join(reversed(string.split())), f'{string} {string}'
        return {
            'copy_2x': f'{string} [NEXT] {string}',
            'copy_repeat1_2x': again,
            'reverse': backward,
            'reverse_2x': f'{backward} [NEXT] {backward}',
            'reverse_then_copy': f'{backward} [NEXT] {string}',
        }.get(name, string)
    match name:
        case 'addition':
            a, b = (int(n.replace(' ', '')) for n in text[len('Compute ') : -1].split('+'))
            return f'The answer is {" ".join(str(a + b))}.'
        case 'poly':
            x, terms = re.fullmatch(r'Evaluate at x = (.*) in (.*) \?', text).groups()
            value = eval(re.sub(r'- (\d)', r'-\1', terms).replace('x', f'({x.replace(" ", "")})'))
            return f'The answer is {value - 10 * math.floor(value / 10)}.'
        case 'sum':
            return f'The answer is {sum(map(int, re.findall(r"[0-9]", text))) % 10} .'
        case 'parity':
            return f'The answer is {"No" if listed(text).count("1") % 2 else "Yes"}.'
        case 'sort_single':
            return f'The sorted list is [ {", ".join(sorted(listed(text)))} ].'
        case 'sort_multi':
            found = sorted(map(int, listed(text)))
            return f'The sorted list is [ {", ".join(" ".join(str(n)) for n in found)} ].'
        case 'lego':
            told, asked = re.fullmatch(r'If (.*)\. Then, what is the value of (.)\?', text).groups()
            values, clauses = {'1': 1}, re.findall(r'(\w) = ([+-]) ?(\w)', told)
            while len(values) <= len(clauses):
                for left, sign, right in clauses:
                    if right in values:
                        values[left] = values[right] * int(f'{sign}1')
            return f'The answer is {values[asked]:+d}.'
        case 'scan':
            done = interpreted(re.fullmatch(r'Solve: (.*)\[SEP\]', text)[1])
            return ' '.join({'L': 'Left', 'R': 'Right'}.get(a[0] * (a[1:] == 'TURN'), a.title())
                            for a in done)  # fmt: skip
        case 'pcfg':
            return ' '.join(applied(text.removesuffix(' [SEP]').split()))


PUBLISHED = {  # functions, and their value
    'append X6 Z11 T16 H9 , reverse remove_second Q13 Y2 C11 , A1': 'X6 Z11 T16 H9 C11 Y2 Q13',
    'swap_first_last remove_second L13 M18 , M7 X4': 'M18 L13',
    'echo A1 B2': 'A1 B2 B2',
    'echo append copy Q10 E4 S15 P7 , shift remove_second K15 D8 M9 W5 , H12 Q5': (
        'Q10 E4 S15 P7 D8 M9 W5 K15 K15'
    ),
}


@pytest.mark.parametrize('text', PUBLISHED)
def test_published_examples_of_functions(text):
    assert solved('pcfg', f'{text} [SEP] ') == PUBLISHED[text]


@every_name
@pytest.mark.parametrize('lengths', [SHORT, LONG], ids=['trained', 'longer'])
def test_a_solver_agrees_on_every_answer(name, lengths):
    task, rng = ImpactPE(name), np.random.default_rng(0)
    length = lengths.get(name, (2, 8) if lengths is SHORT else (21, 40))
    prompts = set()
    for _ in range(100):
        prompt, answer = task.example(rng, length)
        assert answer == solved(name, prompt), prompt
        prompts.add(prompt)
    assert len(prompts) > 60 and len({len(prompt.split()) for prompt in prompts}) > 2


@pytest.mark.parametrize('name', WITH_STEPS)
def test_the_steps_of_a_scratchpad_lead_to_the_answer(name):
    task, rng = ImpactPE(name, scratchpad='full'), np.random.default_rng(1)
    form = r'in (.*?) comp (.*?) out (.*?) ' + r'\[ (.*?) \] ' * (name in SUMS) + 're (.*) '
    for _ in range(60):
        prompt, answer = task.example(rng, LONG[name])
        text, _, said = answer.partition(' . Thus,  ')
        assert said == solved(name, prompt)
        steps = [re.fullmatch(form, step).groups() for step in text[24:].split(' # ')]
        assert len(steps) >= 5
        REPLAYED[name](prompt, steps, said)


def value(text):
    return int(text.replace(' ', ''))


def replay_addition(prompt, steps, said):
    a, b = re.fullmatch(r'Compute (.*) \+ (.*) \? ', prompt).groups()
    a, b, digits = value(a), value(b), ''
    for number, (read, computed, out, kept, rest) in enumerate(steps):
        x, y = a // 10**number % 10, b // 10**number % 10
        carry = (a % 10**number + b % 10**number) // 10**number
        assert read == f'{x}, {y}'
        assert computed == f'{x} + {y} + carry = {x + y} + {carry} = {x + y + carry}'
        digits = out + digits
        assert kept == f'carry: {(x + y + carry) // 10}'
        left = [' '.join(str(n // 10 ** (number + 1))) for n in (a, b)]
        over = number + 1 >= len(str(max(a, b)))
        assert rest == ('' if over else left[0]) + ' + ' + ('' if over else left[1])
    assert said == f'The answer is {" ".join(digits)}.' and int(digits) == a + b


def replay_poly(prompt, steps, said):
    x, terms = re.fullmatch(r'Evaluate at x = (.*) in (.*) \? ', prompt).groups()
    terms, total = terms.split(' + '), 0
    assert len(steps) == len(terms)
    for number, (read, computed, out, kept, rest) in enumerate(steps):
        factor, degree = re.fullmatch(r'(.*) \* x \*\* (\d)', read).groups()
        power = ' '.join(str(value(x) ** int(degree)))
        assert read == terms[number] and rest == ' + '.join(terms[number + 1 :])
        assert computed == f'{factor} * {x} ** {degree} = {factor} * {power}'
        assert value(out) == value(factor) * value(power)
        assert kept == f'sum: {total} + {out} = {(total + value(out)) % 10}'
        total = (total + value(out)) % 10
    assert said == f'The answer is {total}.'


def replay_sum(prompt, steps, said):
    numbers, total = re.findall(r'\d', prompt), 0
    assert [read for read, *_ in steps] == numbers
    for number, (read, computed, out, kept, rest) in enumerate(steps):
        assert computed == f'{read} + sum = {read} + {total} =' and value(out) == int(read) + total
        total = int(str(value(out))[-1])
        assert kept == f'sum: {out} = {total}' and rest == ' + '.join(numbers[number + 1 :])
    assert said == f'The answer is {total} .'


def replay_parity(prompt, steps, said):
    bits, ones = listed(prompt), 0
    for number, (read, computed, out, kept, rest) in enumerate(steps):
        assert read == bits[number] and computed == f'{read} ** par = {read} ** {ones % 2}'
        ones += read == '1'
        assert out == str(ones % 2) and kept == f'par: {out}'
        assert rest == f'[ {", ".join(bits[number + 1 :])} ]'
    assert len(steps) == len(bits)


def replay_sort(prompt, steps, said):
    rank = int if ' 1' in prompt or any(d in prompt for d in '23456789') else RANKED.index
    items, taken = listed(prompt), []
    for read, computed, out, rest in steps:
        assert computed == 'The minimum of the unsorted portion'
        front, least = read.replace(' ', ''), out.replace(' ', '')
        assert front == items[0] and rank(least) == min(map(rank, items))
        place = next(i for i, item in enumerate(items) if item == least)
        items[0], items[place] = items[place], items[0]
        taken.append(items.pop(0))
        assert [item for item in listed(rest) if item] == items
    assert not items and taken == listed(said)


def replay_lego(prompt, steps, said):
    clauses = prompt[3 : prompt.index('.')].split(', ')
    known = {}
    for read, computed, out, rest in steps:
        clause = next(c for c in clauses if c[0] == read)
        sign, before = re.fullmatch(r'. = ([+-]) ?(.)', clause).groups()
        if before == '1':
            assert computed == '' and out == f'{sign}1'
        else:
            assert computed == f'{sign} {before} = {sign} {known[before]}'
            assert int(out) == int(f'{sign}1') * int(known[before])
        known[read] = out
        assert rest == ', '.join(c for c in clauses if c[0] not in known)
    asked = prompt[-3]
    assert list(known)[-1] == asked and said == f'The answer is {known[asked]}.'


SUMS = ('addition', 'poly', 'sum', 'parity')
REPLAYED = {
    'addition': replay_addition,
    'poly': replay_poly,
    'sum': replay_sum,
    'parity': replay_parity,
    'sort_single': replay_sort,
    'sort_multi': replay_sort,
    'lego': replay_lego,
}


@pytest.mark.parametrize('name', WITH_STEPS)
def test_parts_of_steps_can_be_left_out(name):
    forms = {'i': r'in .*? (?=comp)', 'c': r'comp .*? (?=out)', 'o': r'out .*? (?=\[ |re )'}
    forms |= {'v': r'\[ .*? \] (?=re)' if name in SUMS else '', 'r': r're .* '}
    _, whole = ImpactPE(name, scratchpad='full').example(np.random.default_rng(3), 5)
    steps, _, said = whole[24:].partition(' . Thus,  ')
    have = FAMILIES[name].parts
    same = ImpactPE(name, scratchpad=scratchpad.named(have)).example(np.random.default_rng(3), 5)
    assert whole == same[1]
    for kept in ('o', 'ir', 'cor'):
        left = steps.split(' # ')
        for part in (letter for letter in have if letter not in kept):  # in their order
            left = [re.sub(forms[part], '', step, count=1) for step in left]
        task = ImpactPE(name, scratchpad=scratchpad.named(kept))
        _, found = task.example(np.random.default_rng(3), 5)
        assert found == f'Thinking step by step:  {" # ".join(left)} . Thus,  {said}'


@every_name
def test_rows_are_the_words_of_the_text(name):
    pads = ('none', 'full', 'i0_c1_o1_v0_r0') if FAMILIES[name].parts else ('none',)
    for pad in pads:
        task, longest = ImpactPE(name, scratchpad=pad), SHORT.get(name, (2, 6))
        batch = task.sample(np.random.default_rng(0), 30, longest)
        assert batch['tokens'].shape == (30, task.width(longest[1]))
        rng = np.random.default_rng(0)
        for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
            prompt, answer = (re.sub(r'\s', '', text) for text in task.example(rng, longest))
            row = task.decode(np.append(tokens, targets[-1])).replace(' ', '').rstrip('_')
            assert row == f'{prompt}{answer}$'
            assert task.decode(targets[mask == 1]).replace(' ', '') == f'{answer}$'


@pytest.mark.parametrize(
    'name', [name for name in FAMILIES if name not in ('poly', 'sum', 'pcfg', 'scan')]
)
@pytest.mark.parametrize('n', [2, 5])
def test_the_width_is_that_of_the_longest_row(name, n):
    """Where the longest example occurs at once, or is likely; a longer one would not fit."""
    for pad in ('none', 'full') if FAMILIES[name].parts else ('none',):
        task = ImpactPE(name, scratchpad=pad)
        batch = task.sample(np.random.default_rng(0), 40, n)
        reached = batch['loss_mask'][:, -1].any()
        assert reached or name in ('addition', 'sort_multi') and pad == 'full'


def test_digits_of_both_numbers_are_uniform():
    task, rng = ImpactPE('addition'), np.random.default_rng(0)
    digits = lambda number: len(re.findall(r'\d', number))
    drawn = lambda length: tuple(map(digits, task.example(rng, length)[0].split('+')))
    counts = collections.Counter(drawn((1, 3)) for _ in range(900))
    assert len(counts) == 9 and 70 < min(counts.values()) < max(counts.values()) < 130
    assert {drawn((2, 3)) for _ in range(150)} == {
        (i, j) for i in range(1, 4) for j in range(1, 4) if max(i, j) > 1
    }


@pytest.mark.parametrize('count, first', [(4, 2), (5, 3), (2, 1), (3, 2)])
def test_the_query_is_in_the_second_half(count, first):
    task, rng, asked = ImpactPE('lego'), np.random.default_rng(0), collections.Counter()
    for _ in range(300):
        prompt, _ = task.example(rng, count)
        names = re.findall(r'(\w) =', prompt)
        asked[names.index(prompt[-3])] += 1
    assert set(asked) == set(range(first, count)) and min(asked.values()) > 110 - 10 * count


def test_options():
    for name in ('copy', 'sort_single', 'pcfg'):
        few = ImpactPE(name, symbols=3)
        assert few.vocab_size == ImpactPE(name).vocab_size - len(FAMILIES[name].symbols) + 3
        few.sample(np.random.default_rng(0), 20, 6)
    plain, permuted = ImpactPE('lego'), ImpactPE('lego', permute_clauses=True)
    clauses = lambda text: text.partition('.')[0][3:].split(', ')
    starts = set()
    for seed in range(40):
        prompt, answer = permuted.example(np.random.default_rng(seed), 4)
        assert answer == solved('lego', prompt)
        starts.add([c[-2:] in ('+1', '-1') for c in clauses(prompt)].index(True))
        prompt, _ = plain.example(np.random.default_rng(seed), 4)
        assert clauses(prompt)[0][-2:] in ('+1', '-1')
    assert starts == {0, 1, 2, 3}
