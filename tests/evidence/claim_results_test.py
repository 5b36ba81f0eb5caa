"""What an experiment wrote, as numbers that the formula of a claim reads."""

import json

import pytest
import scipy.stats

from evidence.claims.claim import FUNCTIONS, Procedure
from evidence.claims.results import MissingResultError, ResultRows, over_documents
from evidence.experiments.tables import report


def measurement(margin=0.1, sweep='flip_flop', arguments=('--only', 'tra'), effect='a - b', **more):
    return Procedure(sweep, arguments, effect, 'points', margin, **more)


def effects(found, effect='a - b', read=(), **where):
    return measurement(effect=effect, where=where, read=dict(read)).effects(found)


def results(directory, *rows):
    (directory / 'comparison').mkdir(parents=True, exist_ok=True)
    keys = ('run', 'seed', 'length', 'value', 'nll')
    content = {'results': [dict(zip(keys, row, strict=True), extend='') for row in rows]}
    (directory / 'comparison' / 'results.json').write_text(json.dumps(content))


def test_a_measure_reads_what_the_evaluation_wrote(tmp_path):
    first = ('runs/a_0', 0, 8, 0.5, 2.0), ('runs/b_0', 0, 8, 0.25, 1.5)
    second = (
        ('runs/a_1', 1, 8, 1.0, 2.5),
        ('runs/b_1', 1, 8, 0.0, 1.0),
        ('runs/a_1', 1, 16, 0.0, 9.0),
    )
    results(tmp_path, *first, *second)
    found = ResultRows(tmp_path)
    assert effects(found, length=8) == {0: 0.25, 1: 1.0}
    assert effects(found, 'b - a', length=8, field='nll') == {0: -0.5, 1: -1.5}
    both = effects(found, 'mean(a) + c', {'c': {'run': 'b', 'length': 8}}, length=[8, 16])
    assert both == {1: 0.5}
    with pytest.raises(MissingResultError, match="no result of 'c' with .*; there are .'a', 'b'."):
        found.values('c', length=8)
    with pytest.raises(MissingResultError, match="several results of 'a'"):
        found.values('a')


def test_a_measure_reads_the_table_of_a_sweep(tmp_path):
    rows = [('sum', 'a', 2.0, 0, 0.5), ('sum', 'a', 4.0, 0, 0.75), ('sum', 'b', 4.0, 0, 0.25)]
    report(rows, tmp_path, title='t', x='length', value='error')
    found = ResultRows(tmp_path)
    assert effects(found, panel='sum', x=4.0) == {0: 0.5}
    assert effects(found, 'a[1][1] - a[0][0]', panel='sum', every=True) == {0: -1.25}
    assert effects(found, 'best', {'best': {'matches': '[ab]', 'chosen': 'largest'}}) == {0: 0.75}
    assert effects(found, 'best', {'best': {'matches': '[ab]', 'chosen': 'least'}}) == {0: 0.25}


def test_numbers_are_kept_and_read_again(tmp_path):
    results(tmp_path, ('runs/a_0', 0, 8, 0.5, 2.0), ('runs/b_0', 0, 8, 0.25, 1.5))
    report([('sum', 'c', 4.0, 0, 0.75)], tmp_path / 'own', title='t', x='x', value='value')
    ResultRows(tmp_path).keep(tmp_path / 'kept' / 'text.csv')
    found = ResultRows.kept(tmp_path / 'kept' / 'text.csv')
    assert effects(found, length=8, folder='comparison') == {0: 0.25}
    assert effects(found, 'a + c', {'c': {'field': 'value', 'x': 4.0}}, field='nll') == {0: 2.75}
    with pytest.raises(MissingResultError, match='have no nll'):
        effects(found, 'c', field='nll')


def test_a_mean_over_tasks_is_known_without_each_of_them(tmp_path):
    values = {'sort_a_1': 0.9, 'copy_a_1': 0.3, 'sort_b': 0.1, 'copy_b': 0.2}.items()
    results(
        tmp_path, *((f'runs/{name}_{s}', s, 8, own, 0.0) for name, own in values for s in (0, 1))
    )
    found, tasks = ResultRows(tmp_path), lambda name: {'run': [f'sort_{name}', f'copy_{name}']}
    how = measurement(effect='mean(a) - mean(b)', read={'a': tasks('a_1'), 'b': tasks('b')})
    assert how.without_each(found) == pytest.approx({'sort': 0.1, 'copy': 0.8})
    least = measurement(effect='min(a) - min(b)', read={'a': tasks('a_1'), 'b': tasks('b')})
    other = measurement(effect='mean(a) - sort_b', read={'a': tasks('a_1')})
    assert least.without_each(found) == other.without_each(found) == {}


def test_functions_of_formulas():
    slow, fast = [(10, 5.0), (20, 3.0), (40, 1.0)], [(10, 1.2), (20, 1.0), (40, 0.5)]
    assert FUNCTIONS['sooner'](fast, slow) == 2.0 and FUNCTIONS['sooner'](slow, fast) == 0.5
    ranks = FUNCTIONS['rank_correlation']
    assert ranks([1.0, 9.0, 3.0], [2.0, 4.0, 3.0]) == pytest.approx(1.0)
    assert ranks([1.0, 2.0], [2.0, 1.0]) == pytest.approx(-1.0)


def documents(directory, *sums, drawn='documents'):
    """Writes documents.csv: for each row (number, tokens, sum of the loss) of its documents."""
    path = directory / 'comparison' / 'results.json'
    content = json.loads(path.read_text()) | {'documents': 'documents.csv'}
    for row in content['results']:
        row['drawn'] = drawn
    path.write_text(json.dumps(content))
    lines = [
        f'{row},{drawn},{number},{tokens},{loss}'
        for row, own in enumerate(sums)
        for number, tokens, loss in own
    ]
    text = '\n'.join(['row,drawn,number,tokens,nll', *lines]) + '\n'
    path.with_name('documents.csv').write_text(text)


def b_below_a(found):
    return effects(found, length=8, field='nll')


def test_few_documents_give_the_range_of_the_effect(tmp_path):
    results(tmp_path, *((f'runs/{n}_{s}', s, 8, 1.0, 1.0) for s in (0, 1) for n in 'ab'))
    sums = [
        *([(4, 10, 20.0), (7, 30, 60.0)], [(4, 10, 10.0), (7, 30, 45.0)]),
        *([(4, 10, 24.0), (7, 30, 60.0)], [(4, 10, 10.0), (7, 30, 45.0)]),
    ]
    documents(tmp_path, *sums)
    found = ResultRows(tmp_path)
    low, high, count = over_documents(b_below_a, found)
    # b needs 1.0 and 1.4 nats less in the first document, and 0.5 in the second one.
    assert (low, high, count) == (pytest.approx(0.5), pytest.approx(1.2), 2)
    assert over_documents(lambda found: effects(found, field='seed', length=8), found) is None
    documents(tmp_path, *sums, drawn='windows')
    assert over_documents(b_below_a, ResultRows(tmp_path)) is None
    documents(tmp_path, *sums[:3])  # those of one number are not known
    assert over_documents(b_below_a, ResultRows(tmp_path)) is None


def test_many_documents_are_drawn_again_and_no_others(tmp_path):
    """Twelve documents of one token: the effect in a draw is the share of those in which b is
    better. A row that the measure does not read has more documents.
    """
    names = ('runs/a_0', 'runs/b_0', 'runs/other_0')
    results(tmp_path, *((name, 0, 8, 1.0, 1.0) for name in names))
    a = [(n, 1, 1.0 + n % 2) for n in range(12)]
    documents(tmp_path, a, [(n, 1, 1.0) for n in range(12)], [(n, 1, 9.0) for n in range(99)])
    low, high, count = over_documents(b_below_a, ResultRows(tmp_path))
    expected = scipy.stats.binom(12, 0.5).ppf([0.025, 0.975]) / 12
    assert count == 12 and (low, high) == pytest.approx(expected, abs=1 / 12)
