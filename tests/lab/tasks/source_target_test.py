"""Pairs of a source and a target: the examples of the paper, and solvers that read the source
alone.
"""

import itertools
import re

import numpy as np
import pytest

from posenc_jax.lab.tasks.source_target import (
    BIJECTIONS,
    STRINGS,
    TABLES,
    TRANSDUCTIONS,
    SourceTarget,
    deduped,
    looked_up,
)
from tests.golden_files import golden

GOLDEN = golden('monotonic_location')
OFTEN = {**dict.fromkeys('0123', 1), **dict.fromkeys('456', 3), **dict.fromkeys('789', 5)}


def runs(words):
    return [(word, len(list(run))) for word, run in itertools.groupby(words)]


def shortened(words):
    """Undoes recopying: every run of a digit is so many copies of it."""
    return [digit for digit, n in runs(words) for _ in range(n // OFTEN[digit])]


def stretched(words):
    return re.sub('.', lambda found: found[0] * OFTEN[found[0]], ''.join(words))


def retrieved(words):
    padded = [*words, *['n/a'] * 10]
    return ' '.join(f'{d} : {padded[int(d)]} ;' for d in words).split()


def walked(string, tables):
    seen = [string]
    for table in tables:
        seen.append(BIJECTIONS[table][seen[-1]])
    return seen


SOLVERS = {
    'copy': list,
    'reverse_copy': lambda x: [x[-1 - place] for place in range(len(x))],
    'recopy': lambda x: list(stretched(x)),
    'reverse_recopy': lambda x: list(stretched(x)[::-1]),
    'inv_recopy': shortened,
    'inv_reverse_recopy': lambda x: shortened(x)[::-1],
    'dedupe': lambda x: [digit for digit, _ in runs(x[:-1])],
    'pos_retrieve': retrieved,
    'lookup': lambda x: walked(x[0], x[1:-1]),
    'reverse_lookup': lambda x: walked(x[-2], x[-3::-1]),
}


@pytest.mark.parametrize('name', TRANSDUCTIONS)
def test_a_length_counts_digits_or_tables(name):
    source, target = TRANSDUCTIONS[name](np.random.default_rng(1), 9)
    if 'lookup' in name:
        assert sum(word in TABLES for word in source) == 9
        assert len(target) == 11 and source[-1] == '.'
    elif name == 'dedupe':
        assert source[-1] == '<eos>' and all(n % 2 for _, n in runs(source)) or len(target) < 10
    else:
        digits = shortened(source) if name.startswith('inv') else source
        assert len(digits) == 9


def test_golden_pairs(monkeypatch):
    """The sheet's example of recopying, with the source of each task."""
    x, y = '2 5 8'.split(), '2 5 5 5 8 8 8 8 8'.split()
    monkeypatch.setattr('posenc_jax.lab.tasks.source_target._digits', lambda rng, length: list(x))
    pairs = {
        'copy': (x, x),
        'reverse_copy': (x, x[::-1]),
        'recopy': (x, y),
        'reverse_recopy': (x, y[::-1]),
        'inv_recopy': (y, x),
        'inv_reverse_recopy': (y[::-1], x),
    }
    for name, (source, target) in pairs.items():
        assert TRANSDUCTIONS[name](None, 3) == (source, [*target, '<eos>'])
    source, target = deduped(['1', '1', '7'], [3, 1, 5])
    assert source == [*'111177777', '<eos>'] and target == ['1', '7', '<eos>']


def test_golden_lookups():
    """Lines of the released files: their tables, read off the other lines, give each line's
    target.
    """
    lines, tables = [[side.split() for side in pair] for pair in GOLDEN['lookup']['pairs']], {}
    for (string, *names, end), values in lines:
        assert end == '.'
        for name, before, after in zip(names, values, values[1:]):
            assert tables.setdefault(name, {}).setdefault(before, after) == after
    for source, values in lines:
        assert looked_up(source[0], source[1:-1], bijections=tables) == (source, [*values, '<eos>'])


def test_each_table_is_a_bijection_and_the_last_two_stand_alone():
    assert len(BIJECTIONS) == 8
    assert all(sorted(table.values()) == sorted(STRINGS) for table in BIJECTIONS.values())
    assert len({tuple(table.values()) for table in BIJECTIONS.values()}) == 8
    rng, task = np.random.default_rng(0), TRANSDUCTIONS['lookup']
    alone = {task(rng, 1)[0][1] for _ in range(300)}
    composed = {word for _ in range(300) for word in task(rng, 3)[0][1:-1]}
    assert alone == set(TABLES) and composed == set(TABLES[:6])


def test_no_source_of_no_length():
    with pytest.raises(ValueError, match='at least 1, got 0'):
        TRANSDUCTIONS['copy'](np.random.default_rng(0), 0)


@pytest.mark.parametrize('layout', ['row', 'source'])
@pytest.mark.parametrize('name', TRANSDUCTIONS)
def test_rows_hold_a_source_and_the_target_that_a_solver_finds(name, layout):
    task = SourceTarget(name, layout)
    batch = task.sample(np.random.default_rng(0), 500, (1, 12))
    for row in range(500):
        answer = task.decode(batch['targets'][row][batch['loss_mask'][row] == 1]).split()
        read = task.decode(batch['tokens'][row]).split(' ^ ' if layout == 'row' else '^ ')
        if layout == 'source':
            read = [task.decode(batch['source'][row][batch['source_valid'][row]]), read[1]]
        assert answer == [*SOLVERS[name](read[0].split()), '$']
        assert read[1].rstrip(' _').split() in (answer, answer[:-1])


def test_the_widest_rows_fit(monkeypatch):
    """The digit 9 is repeated five times, in the source or in the target."""
    monkeypatch.setattr('posenc_jax.lab.tasks.source_target._digits', lambda rng, n: ['9'] * n)
    for name in ('recopy', 'inv_reverse_recopy'):
        batch = SourceTarget(name).sample(np.random.default_rng(0), 1, 4)
        assert batch['tokens'].shape == (1, 4 + 1 + 20) and batch['loss_mask'][0, -1] == 1
