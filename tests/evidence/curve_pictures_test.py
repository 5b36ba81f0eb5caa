"""Pictures of curves are drawn from the numbers that the repository keeps."""

import pathlib

import pytest

from evidence.claims import curve_pictures, headline, ledger
from evidence.claims.__main__ import PAGE
from evidence.claims.curve_pictures import Panel
from evidence.claims.results import ResultRows

PANEL = Panel('Sums', 'X1', {'A': 'a'}, 'of sums')
ROWS = [
    {'name': name, 'seed': seed, 'length': length, 'value': length + seed, 'task': 'sum'}
    for name in 'ab'
    for length in (8.0, 4.0)
    for seed in (0, 1)
]


def of(rows):
    found = ResultRows(pathlib.Path('nowhere'))
    found.rows = rows
    return found


def test_a_curve_has_the_numbers_of_the_seeds_by_place():
    assert PANEL.curves(of(ROWS), [0, 1]) == {'A': {4.0: [4.0, 5.0], 8.0: [8.0, 9.0]}}
    both = Panel('', 'X1', {'mean': ['a', 'b']}, '', where={'seed': 1})
    assert both.curves(of([*ROWS, {**ROWS[0], 'name': 'c'}]), [1]) == {
        'mean': {4.0: [5.0], 8.0: [9.0]}
    }
    by_task = Panel('', 'X1', {'B': 'b'}, '', where={'length': 4}, by='task', places={'sum': 'Sum'})
    assert by_task.curves(of(ROWS), [0, 1]) == {'B': {'sum': [4.0, 5.0]}}


@pytest.mark.parametrize(
    'panel',
    [
        Panel('', 'X1', {'C': 'c'}, ''),
        Panel('', 'X1', {'A': 'a'}, '', by='task', places={'sum': 'Sum', 'copy': 'Copy'}),
        Panel('', 'X1', {'A': 'a'}, '', where={'length': 16}),
        Panel('', 'X1', {'A': 'a'}, '', by='task', places={'sum': 'Sum'}),
        Panel('', 'X1', {'mean': ['a', 'c']}, ''),
    ],
)
def test_a_curve_that_lacks_numbers_is_an_error(panel):
    with pytest.raises(
        ValueError, match='claim X1: the kept numbers have not one of each seed, of [ac]'
    ):
        panel.curves(of(ROWS), [0, 1])


@pytest.mark.parametrize(
    'rows, runs',
    [
        (ROWS[1:], 'a'),  # seed 0 lacks a place
        ([row for row in ROWS if row['seed']], 'a'),  # seed 0 lacks all
        ([*ROWS, ROWS[0]], 'a'),  # one number stands there twice
        ([{**row, 'name': 'a'} for row in ROWS], ['a', 'b']),  # two of one run, none of the other
    ],
)
def test_a_number_of_each_run_place_and_seed_is_needed(rows, runs):
    with pytest.raises(ValueError, match='claim X1: the kept numbers have not one of each seed'):
        Panel('', 'X1', {'A': runs}, '').curves(of(rows), [0, 1])


def test_numbers_that_are_not_kept_are_not_drawn(tmp_path):
    with pytest.raises(ValueError, match='claim X1 are not kept'):
        curve_pictures.draw(tmp_path / 'a.png', [PANEL], {'X1': {'results': None}})


def test_the_pictures_of_the_headline_page_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(headline, 'ROWS', [row for row in headline.ROWS if row.panels][:1])
    headline.draw(tmp_path, ledger.read())
    (row,) = headline.ROWS
    assert (tmp_path / row.picture).stat().st_size > 1000


def test_every_panel_has_its_numbers():
    records = ledger.read()
    for row in headline.ROWS:
        for panel in row.panels:
            record = records[panel.claim]
            kept = ResultRows.kept(ledger.RESULTS / record['results'])
            assert panel.curves(kept, ledger.effects(record)).keys() == panel.runs.keys()


def test_the_folder_has_the_pictures_of_the_page_and_no_other():
    drawn = {row.picture for row in headline.ROWS if row.panels}
    assert {f'headline/{path.name}' for path in (PAGE.parent / 'headline').iterdir()} == drawn
