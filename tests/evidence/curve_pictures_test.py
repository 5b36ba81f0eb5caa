"""Pictures of curves are drawn from the numbers that the repository keeps."""

import pathlib

import pytest

from evidence.claims import CLAIMS, curve_pictures, headline, ledger
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
    (row,), records = headline.ROWS, ledger.read()
    headline.draw(tmp_path, CLAIMS, records)
    assert (tmp_path / row.picture).stat().st_size > 1000
    assert f']({row.picture})' in headline.markdown(CLAIMS, records)


def test_a_picture_of_a_stale_record_is_neither_drawn_nor_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(headline, 'ROWS', [row for row in headline.ROWS if row.panels][:1])
    (row,), records = headline.ROWS, ledger.read()
    for panel in row.panels:
        records[panel.claim] = {**records[panel.claim], 'digest': 'another'}
    headline.draw(tmp_path, CLAIMS, records)
    assert not list(tmp_path.iterdir())
    assert row.picture not in headline.markdown(CLAIMS, records)


def drawn(monkeypatch, tmp_path, panel: Panel, rows):
    """The axis of a picture with one panel."""
    figures = []
    monkeypatch.setattr(curve_pictures.disk, 'save_figure', lambda f, *_, **__: figures.append(f))
    monkeypatch.setattr(ResultRows, 'kept', lambda _: of(rows))
    record = {'results': 'a.csv', 'effects': {'0': 0.0, '1': 0.0}}
    curve_pictures.draw(tmp_path / 'a.png', [panel], {'X1': record})
    return figures[0].axes[0]


def test_a_line_of_many_places_has_a_band_and_one_of_few_has_marks(monkeypatch, tmp_path):
    curve = lambda places: [
        {'name': 'a', 'seed': seed, 'length': float(x), 'value': x + seed}
        for x in range(1, places + 1)
        for seed in (0, 1)
    ]
    axis = drawn(monkeypatch, tmp_path, PANEL, curve(20))
    (band,), (line,) = axis.collections, axis.get_lines()
    low, high = (band.get_datalim(axis.transData).get_points()[:, 1]).tolist()
    assert (low, high) == (1.0, 21.0)  # from the smaller seed at 1 to the larger one at 20
    assert line.get_ydata().tolist() == [x + 0.5 for x in range(1, 21)]
    axis = drawn(monkeypatch, tmp_path, PANEL, curve(3))
    *marks, line = axis.get_lines()
    assert not axis.collections
    assert [mark.get_ydata().tolist() for mark in marks] == [[1, 2], [2, 3], [3, 4]]


def test_named_places_stand_at_whole_numbers_with_the_curves_beside_each_other(
    monkeypatch, tmp_path
):
    rows = [{**row, 'task': task} for task in ('sum', 'copy') for row in ROWS if row['length'] < 5]
    places = {'sum': 'Sum', 'copy': 'Copy'}
    panel = Panel('', 'X1', {'A': 'a', 'B': 'b'}, 'share', by='task', places=places)
    axis = drawn(monkeypatch, tmp_path, panel, rows)
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ['Sum', 'Copy']
    means = [line for line in axis.get_lines() if not line.get_label().startswith('_')]
    assert [line.get_xdata().tolist() for line in means] == [[-0.05, 0.95], [0.05, 1.05]]
    assert axis.get_ylim() == (-0.03, 1.03)


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
